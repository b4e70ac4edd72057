"""Series of a run, read from its metric lines."""
