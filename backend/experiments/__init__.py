"""Experiments: a spec and the runs that it made."""
