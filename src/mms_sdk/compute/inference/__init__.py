"""From a trained checkpoint to answers: artefacts, the predictor, the batcher, bulk prediction."""
