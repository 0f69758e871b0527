"""The recipe `domain-expert`: adaptive pretraining, instruction residual, two experts, router (arXiv 2511.21101)."""
