"""What learners were worth on held-out sequences while they were trained."""
