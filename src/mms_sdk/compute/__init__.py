"""Layer 2: what is computed. Data, sharding, models, training and inference."""
