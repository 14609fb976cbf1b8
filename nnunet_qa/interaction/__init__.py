"""Clicks: where a user places them, how a network is shown them, and a user who is simulated (paper 004)."""
