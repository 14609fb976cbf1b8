"""Networks that nnU-Net does not have."""
