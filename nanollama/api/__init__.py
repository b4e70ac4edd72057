"""The wire: what the service and its callers say to each other."""
