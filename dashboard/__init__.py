"""The page: what is running, how far each learner is from its bound, and the way to start another."""
