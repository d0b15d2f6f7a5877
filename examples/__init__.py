"""Short programs that use the library by its public names, each on one screen."""
