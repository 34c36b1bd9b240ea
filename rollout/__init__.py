"""Stochastic sampling of chains with log-probabilities, and its faithful replay."""
