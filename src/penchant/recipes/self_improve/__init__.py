"""A model that improves itself (SuperIntelliAgent)."""
