"""Rewards: raw scores of drawn chains, per component. Nothing here imports torch until it is used."""
