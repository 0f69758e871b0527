"""Models, adapters and heads: loading, saving and what they are."""
