"""From a source to batches on the devices: collect, clean, split, preprocess, load."""
