"""Several processes as one run: how they meet, agree, watch over each other and stop."""
