"""Candidate log-probs, fast: model loading, tree attention, log-probs without logits, the reference cache."""
