"""The Prometheus metrics: made out of results and spool at each scrape, and put behind those of vLLM."""
