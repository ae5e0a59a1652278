"""Linear regression by nodes of which one lies."""
