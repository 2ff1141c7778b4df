"""Judging from numbers how things go."""
