"""Interactive prediction of a folder, with clicks from files or of a simulated user; resumable case by case.

What is known of each case lies in `.interact/<case>.json`, written after its mask; when all cases have theirs, they are
merged into the tables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa import __version__
from nnunet_qa.config_limited_data import ClickMode
from nnunet_qa.data.images import check_label_values, label_values
from nnunet_qa.data.paths import read_json
from nnunet_qa.data.pool import case_files
from nnunet_qa.errors import DatasetError, ImageError
from nnunet_qa.evaluation.segmentation import IGNORE, foreground_classes, ignore_value, overlaps
from nnunet_qa.files import clear, make_folder, remove_leftovers, replacing, write_csv, write_json
from nnunet_qa.inference.header_grid import header_grid
from nnunet_qa.inference.interactive import InteractivePredictor
from nnunet_qa.interaction.click_files import Mark, on_grid
from nnunet_qa.interaction.clicks import Click
from nnunet_qa.interaction.dialogue import simulate
from nnunet_qa.progress import track

CLICKS, DICE, PICTURE = "clicks.csv", "dice.csv", "dice.png"
"""Tables of a run, and the picture of one that `nnunet-qa interact` draws."""
RECORD, CASES = "qa_interact.json", ".interact"
_CLICK_COLUMNS = ["case_id", "round", "label", "k", "j", "i", "x", "y", "z"]

Talk = Iterator[tuple[list[Click], np.ndarray]]
"""All clicks so far and the mask, before the first click and after each round."""


@dataclass(frozen=True, kw_only=True)
class SimulatedUser:
    """How clicks are placed from the truth, see `nnunet_qa.interaction.dialogue.simulate`."""

    number: int = 5
    mode: ClickMode = ClickMode.POINTS
    least_error: int = 5


def interact_folder(
    predictor: InteractivePredictor,
    images: Path,
    output: Path,
    *,
    user: SimulatedUser | Mapping[str, Sequence[Mark]],
    truths: Path | None = None,
    previous_stage: Path | None = None,
    overwrite: bool = False,
) -> pd.DataFrame | None:
    """Predict every case of a folder with its clicks, and write masks, `clicks.csv` and, with truths, `dice.csv`.

    A run that was stopped goes on with the next case. A case whose clicks or files have changed since is predicted
    again. All clicks are placed in their images before the first prediction.

    Args:
        predictor: the model.
        images: folder of images named as nnU-Net wants them.
        output: for the masks `<case><file ending>` and the tables.
        user: a simulated one, which needs truths; or the clicks of each case, which are given one after the other.
        truths: folder of true label maps `<case><file ending>`.
        previous_stage: folder of the previous stage's predictions, for the cascade.
        overwrite: predict everything again, and delete first what an earlier run wrote.

    Returns:
        `dice.csv`: one row a case, round and class, with the number of clicks until then; None without truths.

    Raises:
        DatasetError: there is no case, a case has no truth or previous stage, or `output` holds another model's masks
            or one of the other folders.
        ImageError: an image or label map cannot be read or does not fit.
        ClickError: a click lies outside its image, or two contradict each other.
        StorageError: a file could not be written.
    """
    dataset = predictor.predictor.dataset_json
    ending = dataset["file_ending"]
    cases = case_files(images, ending, len(dataset["channel_names"]))
    if not cases:
        raise DatasetError(f"{images}: no image named like case_0000{ending} in this folder")
    for folder in (truths, previous_stage):
        missing = [case for case in cases if folder is not None and not (folder / f"{case}{ending}").is_file()]
        if missing:
            raise DatasetError(f"{folder}: holds no {missing[0]}{ending}; it needs a label map of every case")
    for folder in (images, truths, previous_stage):
        if folder is not None and folder.resolve().is_relative_to(output.resolve()):
            raise DatasetError(f"{folder}: lies in {output}, where masks are written; choose another folder with -o")
    if not isinstance(user, SimulatedUser):
        for case in (case for case in cases if user.get(case)):
            on_grid(user[case], header_grid(predictor.reader, cases[case]))
    run = _Run(predictor, output, truths, previous_stage, dataset)
    run.begin(images, overwrite=overwrite)
    todo = {case: run.asked(user, case, files) for case, files in cases.items()}
    todo = {case: asked for case, asked in todo.items() if not run.is_done(case, asked)}
    for case, asked in track(todo.items(), "clicking", len(todo)):
        run.predict(case, cases[case], user, asked)
    return run.merge(list(cases))


@dataclass(frozen=True)
class _Run:
    """The files of one run."""

    predictor: InteractivePredictor
    output: Path
    truths: Path | None
    previous_stage: Path | None
    dataset: dict[str, Any]

    def begin(self, images: Path, *, overwrite: bool) -> None:
        record = {
            "nnunet_qa": __version__,
            **self.predictor.source,
            "images": os.fspath(images.resolve()),
        }
        path = self.output / RECORD
        if not path.is_file() and self.output.is_dir() and any(self.output.iterdir()):
            raise DatasetError(f"{self.output}: is not empty and holds no {RECORD}; choose another folder with -o")
        if path.is_file() and overwrite:
            clear(self.output, path)  # masks of other images would pass for this run's
        elif path.is_file() and (old := read_json(path)) != record:
            changed = sorted(key for key in {*old, *record} if old.get(key) != record.get(key))
            raise DatasetError(
                f"{self.output}: holds other predictions ({', '.join(changed)}); choose another -o or --overwrite"
            )
        write_json(path, record)
        make_folder(self.output / CASES)
        for folder in (self.output, self.output / CASES):
            remove_leftovers(folder)
        for name in (CLICKS, DICE, PICTURE):  # would stand beside new masks until the end of the run
            (self.output / name).unlink(missing_ok=True)

    def asked(
        self, user: SimulatedUser | Mapping[str, Sequence[Mark]], case: str, images: Sequence[Path]
    ) -> dict[str, Any]:
        """What decides about a case, to know it again: clicks, and the state of its files."""
        if isinstance(user, SimulatedUser):
            what: dict[str, Any] = {"simulated": asdict(user)}
        else:
            what = {"clicks": [[list(mark.at), mark.physical, mark.label] for mark in user.get(case, ())]}
        name = self._mask(case).name
        folders = {"truths": self.truths, "previous_stage": self.previous_stage}
        others = {key: [_state(folder / name)] for key, folder in folders.items() if folder is not None}
        return {**what, "images": [_state(path) for path in images], **others}

    def is_done(self, case: str, asked: dict[str, Any]) -> bool:
        path = self._of_case(case)
        return path.is_file() and self._mask(case).is_file() and read_json(path)["asked"] == asked

    def predict(
        self,
        case: str,
        files: Sequence[Path],
        user: SimulatedUser | Mapping[str, Sequence[Mark]],
        asked: dict[str, Any],
    ) -> None:
        stage = self._label_map(self.previous_stage, case, None)
        self.predictor.set_image(files, previous_stage=stage, history=False)
        shape = self.predictor.mask.shape
        truth = self._label_map(self.truths, case, shape)
        if isinstance(user, SimulatedUser):
            assert truth is not None
            talk = self._simulated(user, truth)
        else:
            talk = self._given(on_grid(user.get(case, ()), self.predictor.grid))
        clicks: list[dict[str, Any]] = []
        dice: list[dict[str, Any]] = []
        for turn, (said, mask) in enumerate(talk):
            clicks += [self._click_row(case, turn, click) for click in said[len(clicks) :]]
            if truth is not None:
                dice += self._dice_rows(case, turn, len(said), mask, truth)
        self._of_case(case).unlink(missing_ok=True)
        with replacing(self._mask(case)) as temporary:
            self.predictor.reader.files.write_seg(
                np.ascontiguousarray(self.predictor.mask), str(temporary), self.predictor.properties
            )
        write_json(self._of_case(case), {"asked": asked, "clicks": clicks, "dice": dice})

    def merge(self, cases: Sequence[str]) -> pd.DataFrame | None:
        found = [read_json(self._of_case(case)) for case in cases]
        clicks = [row for case in found for row in case["clicks"]]
        write_csv(self.output / CLICKS, pd.DataFrame(clicks, columns=_CLICK_COLUMNS))
        write_json(self.output / "dataset.json", self.dataset)
        write_json(self.output / "plans.json", self.predictor.predictor.plans_manager.plans)
        if self.truths is None:
            return None
        table = pd.DataFrame([row for case in found for row in case["dice"]])
        write_csv(self.output / DICE, table)
        return table

    def _simulated(self, user: SimulatedUser, truth: np.ndarray) -> Talk:
        """In the network's order of axes, as the user of the training: slices are those that a 2D network sees."""
        predictor, order = self.predictor, self.predictor.order
        back = predictor.predictor.plans_manager.transpose_backward

        def predict(clicks: list[Click]) -> np.ndarray:
            new = [_turned(click, back) for click in clicks[len(predictor.clicks) :]]
            return (predictor.add_clicks(new) if new else predictor.mask).transpose(order)

        talk = simulate(
            truth.transpose(order),
            predict,
            number=user.number,
            least_error=user.least_error,
            spacing=[float(predictor.properties["spacing"][axis]) for axis in order],
            mode=user.mode,
            slices=predictor.sees_slices,
            ignore=ignore_value(self.dataset["labels"]),
        )
        for _ in talk:
            yield predictor.clicks, predictor.mask

    def _given(self, clicks: Sequence[Click]) -> Talk:
        yield [], self.predictor.mask
        for click in clicks:
            mask = self.predictor.add_clicks([click])
            yield self.predictor.clicks, mask

    def _click_row(self, case: str, turn: int, click: Click) -> dict[str, Any]:
        names = {value: name for name, value in self.dataset["labels"].items() if name != IGNORE}
        voxel = dict(zip("kji", click.position, strict=True))
        physical = dict(zip("xyz", self.predictor.grid.point(click.position), strict=True))
        return {"case_id": case, "round": turn, "label": names[click.label], **voxel, **physical}

    def _dice_rows(
        self, case: str, turn: int, clicks: int, mask: np.ndarray, truth: np.ndarray
    ) -> list[dict[str, Any]]:
        labels = self.dataset["labels"]
        counts = overlaps(mask, truth, classes=foreground_classes(labels), ignore=ignore_value(labels))
        start = {"case_id": case, "round": turn, "clicks": clicks}
        return [{**start, "label": name, "dice": count.dice()} for name, count in counts.items()]

    def _label_map(self, folder: Path | None, case: str, shape: tuple[int, ...] | None) -> np.ndarray | None:
        if folder is None:
            return None
        path = folder / self._mask(case).name
        array = self.predictor.reader.image([path])[0][0].astype(np.int16)
        if shape is not None and array.shape != shape:
            raise ImageError(f"{path}: has shape {array.shape}, its image {shape}; they must be the same")
        check_label_values(array, label_values(self.dataset["labels"]), str(path))
        return array

    def _mask(self, case: str) -> Path:
        return self.output / f"{case}{self.dataset['file_ending']}"

    def _of_case(self, case: str) -> Path:
        return self.output / CASES / f"{case}.json"


def _state(path: Path) -> list[str | int]:
    """A file, and what changes when its content does."""
    found = path.stat()
    return [os.fspath(path.resolve()), found.st_size, found.st_mtime_ns]


def _turned(click: Click, order: Sequence[int]) -> Click:
    return Click(tuple(click.position[axis] for axis in order), click.label)
