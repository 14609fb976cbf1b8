"""Datasets on disk: nnU-Net's raw and preprocessed folders, the unlabelled pool, phantoms."""
