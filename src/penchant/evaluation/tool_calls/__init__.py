"""Tool calls read from answers and matched with the accepted ones by the rules of the Berkeley leaderboard."""
