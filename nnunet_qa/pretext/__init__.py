"""Restoration pretraining (paper 004): distortions that a network learns to undo, without any label."""
