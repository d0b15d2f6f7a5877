"""What all that measures shares: fair timing, calls of the rule, and time by kernel."""
