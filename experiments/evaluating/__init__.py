"""What experiments.evaluate keeps of its measurements."""
