"""Between text and the library's decoding, for experiments.generate."""
