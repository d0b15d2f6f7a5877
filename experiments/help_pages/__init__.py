"""What `--help` prints of a command."""
