"""Talking-Critic: a video language model that answers one yes-or-no question a dimension (paper, 3.2)."""
