"""Files, folders, caches and fingerprints on disk."""
