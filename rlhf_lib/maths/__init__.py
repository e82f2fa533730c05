"""The maths shelf: pure functions on tensors. No model, no config, no hidden normalisation."""
