"""Tool calls in a model's answers, read and held against what is accepted, by the rules of the Berkeley leaderboard."""
