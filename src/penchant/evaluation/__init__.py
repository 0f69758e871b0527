"""Held-out preference metrics with their statistics, generation, and the report a person reads."""
