"""Training runs that are killed, and what is compared at their end."""
