"""Weights of other libraries in, weights for other libraries out."""
