"""Domain-adaptive pretraining, the instruction residual, two experts and a router (MortgageLLM, arXiv 2511.21101)."""
