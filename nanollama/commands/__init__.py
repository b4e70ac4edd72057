"""Groups of `n2n` commands."""
