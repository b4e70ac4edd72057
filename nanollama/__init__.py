"""nanollama: graph structured sequential models, learners trained on them, and the bound that none of them can beat."""

__version__ = "0.1.0"
