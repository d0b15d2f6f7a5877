"""What experiments.evaluate measures, and the file that keeps it."""
