"""Training: optimizer, loss, step, checkpoints and the loop that joins them."""
