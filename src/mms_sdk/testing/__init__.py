"""Tests that every implementation of MMS's interfaces passes: ours, and yours. They need pytest."""
