"""Losses, optimizers, the training step and checkpoints."""
