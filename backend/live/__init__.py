"""What happens, as it happens: server-sent events for runs and logs."""
