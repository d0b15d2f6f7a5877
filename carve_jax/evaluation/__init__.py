"""Measures of a trained model; each module is one of them."""
