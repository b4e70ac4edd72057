"""What a run writes down: metrics, events, logs, checkpoints, results. Importing this package does not import torch."""
