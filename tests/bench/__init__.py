"""Speed, measured beside the naive way in one run: `make bench`."""
