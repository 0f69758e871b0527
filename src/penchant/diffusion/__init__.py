"""Diffusion models and how they are tuned on preferences."""
