"""The worker: starts what the service leases to it, and ships what the runs write. The only bridge between the two."""
