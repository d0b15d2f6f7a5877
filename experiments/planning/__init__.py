"""What a model or a run needs and costs, told before anything runs."""
