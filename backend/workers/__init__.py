"""Workers: registration and heartbeat."""
