"""The bank of pseudo-labels: predictions of pool cases that a training has taken as labels (paper 003, section 2.3).

One folder a round, `round_001` and so on, with the label maps of the chosen cases on the preprocessed grid and
`ranking.csv`, all cases that were ranked and which of them were chosen. A round is there as a whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pandas as pd
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2

from nnunet_qa.errors import DatasetError
from nnunet_qa.files import make_folder, storage_error, write_csv

RANKING = "ranking.csv"
CHOSEN = "chosen"
LOCATIONS = 10_000
"""Most foreground voxels of a class that a case keeps for drawing patches, as in nnU-Net's preprocessing."""

Group = int | tuple[int, ...]


class Bank:
    """Pseudo-labels of a training, by round.

    Args:
        folder: where the rounds lie; made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, number: int) -> Path:
        """An empty folder for the label maps of a round, in which `add` writes; a half-written one is thrown away."""
        path = self._unfinished(number)
        shutil.rmtree(path, ignore_errors=True)
        return make_folder(path)

    def add(self, number: int, case: str, labels: np.ndarray) -> None:
        """Put the label map `(1, *spatial)` of a candidate into a round that has begun."""
        wide = labels.max(initial=0) > np.iinfo(np.int8).max
        try:
            nnUNetDatasetBlosc2.save_seg(
                labels.astype(np.int16 if wide else np.int8), os.fspath(self._unfinished(number) / case)
            )
        except OSError as error:
            raise storage_error(self._unfinished(number) / case, error) from error

    def finish(self, number: int, ranking: pd.DataFrame, *, groups: Sequence[Group]) -> None:
        """Keep the label maps of the chosen cases, write the ranking, and let the round be there.

        Args:
            number: the round, from 1.
            ranking: one row a candidate: `case_id`, `chosen`, and whatever tells why.
            groups: label values, or sets of them, of which patches must be drawn: what nnU-Net's preprocessor notes for
                annotated cases.
        """
        path = self._unfinished(number)
        for case, chosen in zip(ranking["case_id"], ranking[CHOSEN], strict=True):
            if not chosen:
                (path / f"{case}.b2nd").unlink(missing_ok=True)
                continue
            places = foreground_locations(_opened(path / f"{case}.b2nd")[:], groups).values()
            np.savez_compressed(path / f"{case}.npz", *places)
        write_csv(path / RANKING, ranking)
        shutil.rmtree(self.round(number), ignore_errors=True)
        try:
            path.rename(self.round(number))
        except OSError as error:
            raise storage_error(self.round(number), error) from error

    def check(self, rounds: int) -> None:
        """Refuse a bank that lacks one of the first so many rounds.

        Raises:
            DatasetError: one is not there.
        """
        for number in range(1, rounds + 1):
            if not (self.round(number) / RANKING).is_file():
                raise DatasetError(
                    f"{self.round(number)}: the pseudo-labels of round {number} are missing, with which this training "
                    "went on; put the folder back, or train anew without --c"
                )

    def forget(self, rounds: int) -> None:
        """Throw away the rounds after the first so many: those of a training that was killed, or of an earlier one."""
        for path in self.folder.glob("round_*"):
            if not path.name[-3:].isdigit() or int(path.name[-3:]) > rounds:
                shutil.rmtree(path, ignore_errors=True)

    def round(self, number: int) -> Path:
        """Folder of a round."""
        return self.folder / f"round_{number:03d}"

    def ranking(self, number: int) -> pd.DataFrame:
        """What was ranked in a round, with the column `chosen`."""
        return pd.read_csv(self.round(number) / RANKING, dtype={"case_id": str, "subject_id": str})

    def cases(self, number: int) -> list[str]:
        """Chosen cases of a round, sorted."""
        table = self.ranking(number)
        return sorted(table.loc[table[CHOSEN], "case_id"])

    def labels(self, number: int, case: str) -> Any:
        """Label map `(1, *spatial)` of a chosen case, read when it is indexed, as nnU-Net's own are."""
        return _opened(self.round(number) / f"{case}.b2nd")

    def locations(self, number: int, case: str) -> list[np.ndarray]:
        """Places `(voxels, 1 + dimensions)` of each group that `finish` was given, in their order."""
        with np.load(self.round(number) / f"{case}.npz", allow_pickle=False) as content:
            return [content[name] for name in content.files]

    def _unfinished(self, number: int) -> Path:
        return self.folder / f"round_{number:03d}.unfinished"


class JoinedDataset(nnUNetBaseDataset):
    """Annotated cases, and pool cases with the pseudo-labels of one round, as one dataset for nnU-Net's loader.

    Args:
        annotated: nnU-Net's dataset over the annotated cases.
        pool: nnU-Net's dataset over the pool.
        bank: the pseudo-labels.
        number: which round.
        groups: those with which the round was finished.
    """

    def __init__(
        self,
        annotated: nnUNetBaseDataset,
        pool: nnUNetBaseDataset,
        bank: Bank,
        number: int,
        *,
        groups: Sequence[Group],
    ) -> None:
        chosen = bank.cases(number)
        super().__init__(
            annotated.source_folder,
            [*annotated.identifiers, *chosen],
            annotated.folder_with_segs_from_previous_stage,
        )
        self._annotated, self._pool, self._bank, self._number = annotated, pool, bank, number
        self._chosen, self._groups = set(chosen), tuple(groups)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image, labels, labels of the previous stage, and properties, as nnU-Net's datasets give them."""
        if identifier not in self._chosen:
            found: tuple[Any, Any, Any, dict[str, Any]] = self._annotated.load_case(identifier)
            return found
        image, _, previous, properties = self._pool.load_case(identifier)
        places = self._bank.locations(self._number, identifier)
        properties = {**properties, "class_locations": dict(zip(self._groups, places, strict=True))}
        return image, self._bank.labels(self._number, identifier), previous, properties

    @staticmethod
    def save_case(data: np.ndarray, seg: np.ndarray, properties: dict, output_filename_truncated: str) -> None:
        """Not possible: it joins what others hold."""
        raise NotImplementedError

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Not possible: it joins what others hold."""
        raise NotImplementedError


def foreground_locations(labels: np.ndarray, groups: Sequence[Group]) -> dict[Group, np.ndarray]:
    """Indices `(voxels, dimensions of labels)` of voxels of each group of label values, a sample where there are many.

    The sample is evenly spaced, so that it is the same after a resume.

    >>> foreground_locations(np.array([[[0, 2]]]), [1, (1, 2)])[(1, 2)].tolist()
    [[0, 0, 1]]
    """
    found = {}
    for group in groups:
        places = np.argwhere(np.isin(labels, group))
        step = max(1, -(-len(places) // LOCATIONS))
        found[group] = places[::step].astype(np.int32)
    return found


def _opened(path: Path) -> Any:
    return blosc2.open(urlpath=os.fspath(path), mode="r", dparams={"nthreads": 1})
