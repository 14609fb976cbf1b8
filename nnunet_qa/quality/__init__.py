"""Estimators of the quality of a segmentation without ground truth."""
