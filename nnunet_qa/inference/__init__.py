"""Prediction with quality."""
