"""What the sidecar knows: the results file with all that was analyzed and counted, and which workers run now."""
