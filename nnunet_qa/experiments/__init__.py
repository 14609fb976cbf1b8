"""Protocols that run end to end."""
