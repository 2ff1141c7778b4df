"""Layer 1: what is kept. Datasets, checkpoints, model artefacts and the catalog that lists them."""
