"""The recipe `tool-calling`: small agents that call functions (TinyLLM)."""
