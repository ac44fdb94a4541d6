"""Training a model: one loop over accelerate, with checkpoints and resumption."""
