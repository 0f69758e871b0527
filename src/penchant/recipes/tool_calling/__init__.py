"""Small tool-calling agents (TinyLLM)."""
