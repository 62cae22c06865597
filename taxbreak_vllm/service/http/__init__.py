"""The API and the page: requests in, JSON and HTML out of the results, errors as problems."""
