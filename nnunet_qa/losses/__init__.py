"""Losses of the papers, on tensors, without nnU-Net."""
