"""A dataset of bright squares, and predictions of it that a CRF can mend: they lie beside the squares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.images import Geometry, write_image

LABELS = {"background": 0, "square": 1}
GEOMETRY = Geometry((1.5, 2.0, 8.0), (3.0, -4.0, 5.0), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
SIZE = 28
SUBJECTS = 4


def draw_square(rng: np.random.Generator, slices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and truth `(slices, rows, columns)` and probabilities `(2, slices, rows, columns)`."""
    truth = np.zeros((slices, SIZE, SIZE), np.uint8)
    row, column = rng.integers(4, 10, 2)
    truth[:, row : row + 12, column : column + 12] = 1
    image = truth * 100 + rng.normal(50, 12, truth.shape)
    inside = 0.15 + 0.7 * np.roll(truth, 2, axis=2)
    return image.clip(0, 255), truth, np.stack([1 - inside, inside]).astype(np.float32)


def save_probabilities(path: Path, probabilities: np.ndarray) -> None:
    """As nnU-Net saves them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, probabilities=probabilities)


def shifted_dataset(base: Path, *, name: str = "Dataset401_Squares", ending: str = ".nii.gz") -> Path:
    """A raw dataset with two annotated cases a subject and a test case.

    Their probabilities lie in `base/validation` and `base/predictions`.
    """
    folder = base / "nnUNet_raw" / name
    rng = np.random.default_rng(0)
    slices = 1 if ending == ".png" else 3
    rows = []
    cases = [(f"S{subject}_{frame}", Role.LABELLED) for subject in range(SUBJECTS) for frame in range(2)]
    for case, role in [*cases, ("T0_0", Role.TEST)]:
        image, truth, probabilities = draw_square(rng, slices)
        suffix = "Tr" if role is Role.LABELLED else "Ts"
        for kind, array in (
            (f"images{suffix}/{case}_0000", image.astype(np.float32)),
            (f"labels{suffix}/{case}", truth),
        ):
            if ending == ".png":
                write_image(folder / f"{kind}{ending}", array[0].astype(np.uint8))
            else:
                write_image(folder / f"{kind}{ending}", array, GEOMETRY)
        place = "validation" if role is Role.LABELLED else "predictions"
        save_probabilities(base / place / f"{case}.npz", probabilities)
        rows.append({"case_id": case, "subject_id": case[:2], "role": role.value})
    CaseTable.from_rows(rows).write(folder / "cases.csv")
    content = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": len(cases), "file_ending": ending}
    for place in (folder, base / "predictions"):
        (place / "dataset.json").write_text(json.dumps(content))
    return folder
