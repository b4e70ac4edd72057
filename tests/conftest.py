"""Settings of every test process, made before anything imports torch."""

import os

# tests run beside each other on few cores: one thread each, and no spinning while one waits for another
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
