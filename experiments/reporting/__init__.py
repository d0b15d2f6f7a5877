"""The report of a sweep: `sweep` reads it, `compare` judges it, the rest shows it."""
