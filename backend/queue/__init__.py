"""Leases and transitions: who may execute an attempt, and how it ended."""
