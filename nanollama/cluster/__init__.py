"""What a run computes on: ranks and devices, torchrun, Slurm. Importing this package does not import torch."""
