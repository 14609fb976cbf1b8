"""Measures against ground truth: of segmentations, and of the quality scores themselves."""
