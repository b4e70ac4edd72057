"""Runs, their attempts and what happened to them."""
