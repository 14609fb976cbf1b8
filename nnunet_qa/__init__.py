"""nnunet_qa: which scans to annotate, which predictions to trust, how to train on the rest, on top of nnU-Net v2."""

from __future__ import annotations

__version__ = "0.1.0"
