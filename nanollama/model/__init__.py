"""The learners, built from their specs."""
