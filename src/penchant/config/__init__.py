"""Configuration files as typed objects."""
