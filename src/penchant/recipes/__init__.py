"""Whole pipelines, from data to report, built from the public rooms only: a recipe never reaches into the engine."""
