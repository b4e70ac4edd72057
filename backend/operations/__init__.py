"""What those who run the service look at: whether it is ready, and its figures for Prometheus."""
