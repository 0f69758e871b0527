"""What the engine computes a layer and the log-probs with."""
