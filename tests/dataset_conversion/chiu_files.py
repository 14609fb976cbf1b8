"""Small .mat files as those of Chiu et al. (2015)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

from nnunet_qa.dataset_conversion.engine import Options
from nnunet_qa.dataset_conversion.oct import Framing

NATIVE = Framing(size=None)
STRICT = Options(strict=True)


def small_mat(folder: Path, *, subjects: int = 2, bscans: int = 3, **changed: object) -> Path:
    """Subjects whose first two B-scans are annotated; `changed` replaces variables, None takes one away."""
    from nnunet_qa.data.phantoms import SubjectLook, draw_bscan

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, subjects + 1):
        rng = np.random.default_rng(number)
        look = SubjectLook.draw(rng, severity=1.0)
        drawn = [draw_bscan(rng, look=look, rows=64, columns=96, padding=False) for _ in range(bscans)]
        fluid = np.stack([bscan.fluid for bscan in drawn], axis=-1).astype(float)
        fluid[..., 2:] = np.nan
        content = {"images": np.stack([bscan.image for bscan in drawn], axis=-1), "manualFluid1": fluid, **changed}
        savemat(
            folder / f"Subject_{number:02d}.mat", {key: value for key, value in content.items() if value is not None}
        )
    return folder
