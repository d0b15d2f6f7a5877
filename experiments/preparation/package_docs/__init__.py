"""English text that packages of Python carry: their wheels, what is read of them, what is kept."""
