"""The loop, its optimizer and schedule, its checkpoints and its log."""
