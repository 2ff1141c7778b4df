"""What is said on the wire and written in the catalog: one noun a file."""
