"""Graph Structured Sequential Models: training and data generation."""
