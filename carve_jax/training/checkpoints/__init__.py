"""Checkpoints on disk: written as one, sealed, and used whole or not at all."""
