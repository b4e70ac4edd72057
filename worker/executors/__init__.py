"""How an attempt is executed: the interface, processes on this machine, and a fake for tests."""
