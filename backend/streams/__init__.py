"""Byte streams of attempts: logs, metric lines and events."""
