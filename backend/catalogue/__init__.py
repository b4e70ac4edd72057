"""True models with the entropy of their sequences, and files of sequences."""
