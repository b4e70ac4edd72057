"""Validation of configs, and the ones that ship with the project."""
