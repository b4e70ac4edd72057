"""Runs and experiments as files: export, and import into another service."""
