"""Group-relative reinforcement learning of editing chains."""
