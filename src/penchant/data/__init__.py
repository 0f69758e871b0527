"""Preference groups: reading, checking, tokenizing and packing them."""
