"""Priors with parameters, and divergences from them."""
