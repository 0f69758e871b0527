"""The recipe `recommend`: a language model chooses the title that a user takes next (S-DPO, arXiv 2406.09215)."""
