"""Applications: scripts that put the rooms of the library together."""
