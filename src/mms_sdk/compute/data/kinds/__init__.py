"""One module for each kind of data: decoding, encoding, looking at it."""
