"""Checkpoints that training reported."""
