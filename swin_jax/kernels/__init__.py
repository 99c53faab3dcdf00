"""Pallas kernels, each beside the plain JAX formulation that says what it computes."""
