"""Evaluation: how well answers fit known rows, how sure that is, and whether one version is better than another."""
