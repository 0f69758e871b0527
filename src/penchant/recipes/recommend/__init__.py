"""Recommendation: a language model chooses the title a user takes next (S-DPO, arXiv 2406.09215)."""
