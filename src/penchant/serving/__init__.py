"""Trained models behind an OpenAI-compatible address."""
