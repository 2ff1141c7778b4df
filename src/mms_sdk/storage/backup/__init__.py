"""Copies of a whole workspace in another store, and workspaces made of them."""
