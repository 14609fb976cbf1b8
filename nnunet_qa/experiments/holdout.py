"""A fully annotated dataset, parted by subject into a pool to annotate, validation and test, for an experiment.

The annotator is played with known labels: the labels of the pool exist, and an arm may use those of the cases that it
chose. Plans and fingerprint come from pool and validation alone, never from test subjects. Each cell trains in nnU-Net
folders of its own, which refer to the preprocessed data and hold their own `splits_final.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.data.images import holds_volumes, read_array
from nnunet_qa.data.journal import locked
from nnunet_qa.data.paths import read_json
from nnunet_qa.data.pool import case_files
from nnunet_qa.data.raw_dataset import FOLDERS
from nnunet_qa.data.splits import FILE_NAME as SPLITS
from nnunet_qa.data.splits import write_splits
from nnunet_qa.environment import FOLDERS as VARIABLES
from nnunet_qa.errors import DatasetError, nearest
from nnunet_qa.experiments.budget import Budget
from nnunet_qa.experiments.commands import environment_of
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.files import make_folder, write_json, write_text

PLANNED, OWN, PARTS = "nnUNetPlans", "nnUNetPlansExperiment", "parts.json"


@dataclass(frozen=True)
class Parts:
    """Case identifiers of each part; no subject is in two of the first three."""

    pool: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
    """Cases whose labels nobody sees; nnU-Net's plans come without them. They may be of the subjects of the pool."""

    def with_labelled(self, number: int, subjects: Mapping[str, str], rng: np.random.Generator) -> Parts:
        """Leave so many cases in the pool, of as many subjects as possible; the others become unlabelled.

        Raises:
            DatasetError: there are not so many cases, or none would be left unlabelled.
        """
        if not 1 <= number < len(self.pool):
            raise DatasetError(
                f"{len(self.pool)} cases are neither for validation nor for test; {number} labelled ones leave none "
                "unlabelled. Label fewer"
            )
        by_subject: dict[str, list[str]] = {}
        for case in rng.permutation(sorted(self.pool)).tolist():
            by_subject.setdefault(subjects[case], []).append(case)
        rounds = [cases[place : place + 1] for place in range(len(self.pool)) for cases in by_subject.values()]
        kept = [case for cases in rounds for case in cases][:number]
        rest = tuple(case for case in self.pool if case not in kept)
        return replace(self, pool=tuple(sorted(kept)), unlabelled=rest)


def part_subjects(
    subjects: Mapping[str, str], *, seed: int, test_folds: int = 3, validation_subjects: int = 1
) -> Parts:
    """Part cases by subject. Seeds 0 to `test_folds` - 1 together test every subject once.

    Args:
        subjects: subject of each annotated case.
        seed: seed s tests fold s modulo `test_folds`, and draws its validation subjects with s.
        test_folds: how many folds the subjects are parted into, the same for every seed.
        validation_subjects: how many of the other subjects validate.

    Raises:
        DatasetError: too few subjects to leave one for the pool.
    """
    names = sorted(set(subjects.values()))
    if test_folds < 2 or len(names) < test_folds:
        raise DatasetError(
            f"{len(names)} subjects cannot be parted into {test_folds} test folds; use 2 to {len(names)}"
        )
    order = [names[index] for index in np.random.default_rng(0).permutation(len(names))]
    test = set(order[seed % test_folds :: test_folds])
    rest = [name for name in names if name not in test]
    if not 1 <= validation_subjects < len(rest):
        raise DatasetError(
            f"{len(rest)} subjects are left beside the test subjects; {validation_subjects} for validation leaves none "
            "for the pool or validates none. Change the validation subjects or the test folds"
        )
    validation = set(np.random.default_rng(seed).choice(rest, validation_subjects, replace=False).tolist())

    def cases(wanted: set[str]) -> tuple[str, ...]:
        return tuple(sorted(case for case, subject in subjects.items() if subject in wanted))

    return Parts(cases(set(rest) - validation), cases(validation), cases(test))


@dataclass(frozen=True)
class Holdout:
    """The parts of one seed as a dataset of their own, planned and preprocessed once for all arms.

    Attributes:
        source: `nnUNet_raw/DatasetXXX` with every case annotated and a cases.csv.
        folder: where this seed's data go.
        parts: who is in which part.
        configuration: `2d`, `3d_fullres`, …
        budget: size of the trainings.
        jobs: processes for planning and preprocessing.
    """

    source: Path
    folder: Path
    parts: Parts
    configuration: str
    budget: Budget
    jobs: int = 1

    def with_everything(self) -> Holdout:
        """The same parts beside this one's, but with the labels of the unlabelled cases."""
        pool = tuple(sorted((*self.parts.pool, *self.parts.unlabelled)))
        folder = self.folder.with_name(f"{self.folder.name}_everything")
        return replace(self, folder=folder, parts=replace(self.parts, pool=pool, unlabelled=()))

    @property
    def raw(self) -> Path:
        """The raw dataset of this seed."""
        return self.folder / VARIABLES[0] / self.source.name

    @property
    def number(self) -> str:
        """Dataset number, as nnU-Net's `-d` takes it."""
        return str(int(self.source.name[7:10]))

    @property
    def plans(self) -> str:
        """Name of the plans that every arm trains with."""
        budget = self.budget
        own = (budget.features, budget.batch_size, budget.patch_size, budget.image_size)
        return PLANNED if own == (None,) * 4 else OWN

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        """Content of the source's dataset.json."""
        return read_json(self.source / "dataset.json")

    @cached_property
    def cases(self) -> CaseTable:
        """The source's case table."""
        return CaseTable.read(self.source / CASES)

    def images(self, case: str) -> list[Path]:
        """Channel files of a case."""
        return list(self._files[case]["images"])

    def label(self, case: str) -> Path:
        """True label of a case."""
        return self._files[case]["label"]

    def image(self, case: str) -> np.ndarray:
        """First channel of a case, `(rows, columns)` or `(slices, rows, columns)`."""
        return read_array(self.images(case)[0], volumes=holds_volumes(self.dataset_json))

    def labels(self, path: Path) -> np.ndarray:
        """A label map of this dataset, true or predicted."""
        return read_array(path, volumes=holds_volumes(self.dataset_json))

    @cached_property
    def _files(self) -> dict[str, dict[str, Any]]:
        # nnU-Net's own search forks processes, which would keep our locks if this one were killed
        entries = self.dataset_json.get("dataset")
        if entries is None:
            channels, ending = len(self.dataset_json["channel_names"]), self.dataset_json["file_ending"]
            images = case_files(self.source / FOLDERS[Role.LABELLED][0], ending, channels)
            labels = self.source / FOLDERS[Role.LABELLED][1]
            return {case: {"images": paths, "label": labels / f"{case}{ending}"} for case, paths in images.items()}
        return {
            case: {"images": [self.source / path for path in entry["images"]], "label": self.source / entry["label"]}
            for case, entry in entries.items()
        }

    def prepare(self) -> None:
        """Write the raw dataset of links, plan and preprocess it; what an earlier run finished is kept.

        Cells of several processes may share the data: where another one is preparing them, this waits for it.

        Raises:
            DatasetError: a case of the table has no image or label in the source.
            DependencyError: a command of nnU-Net failed.
        """
        with locked(make_folder(self.folder), wait=True) as lock:
            self._check_parts()
            self._prepare(lock)

    def _check_parts(self) -> None:
        """The parts stay those of the first run, whatever happens to the case table of the source."""
        path, parts = self.folder / PARTS, {name: list(cases) for name, cases in asdict(self.parts).items()}
        if not path.is_file():
            write_json(path, parts)
        elif {"unlabelled": [], **read_json(path)} != parts:  # files of earlier versions lack it
            raise DatasetError(
                f"{self.source / CASES}: parts the subjects otherwise than when the experiment was begun ({path}); put "
                "the table back, or start anew with --overwrite"
            )

    def _prepare(self, lock: int | None) -> None:
        self._link_raw()
        cell = Cell("holdout", 0, self.folder, environment_of(self.folder, jobs=self.jobs), lock)
        jobs = ("-np", str(self.jobs), "-npfp", str(self.jobs))
        cell.call("plan", "nnUNetv2_plan_and_preprocess", "-d", self.number, "-c", self.configuration, *jobs)
        planned = read_json(self.folder / VARIABLES[1] / self.source.name / f"{PLANNED}.json")["configurations"]
        if self.configuration not in planned:
            raise DatasetError(
                f'{self.source}: nnU-Net plans no configuration "{self.configuration}" for this dataset'
                f"{nearest(self.configuration, planned)}; it plans {', '.join(planned)}"
            )
        if self.plans != PLANNED:
            cell.call(
                "plans", "nnunet-qa", "plans", "-d", self.number, "-c", self.configuration, "-o", OWN, *self._size()
            )
        if self.budget.image_size is not None:
            data = ("-d", self.number, "-c", self.configuration, "-plans_name", OWN, "-np", str(self.jobs))
            cell.call("preprocess", "nnUNetv2_preprocess", *data)
        if self.parts.unlabelled:
            pool = ("-d", self.number, "-c", self.configuration, "-p", self.plans, "--jobs", str(self.jobs))
            cell.call("pool", "nnunet-qa", "pool", *pool)

    def _size(self) -> list[str]:
        budget = self.budget
        options: dict[str, Sequence[int] | None] = {
            "--features": budget.features,
            "--batch-size": (budget.batch_size,) if budget.batch_size is not None else None,
            "--patch-size": budget.patch_size,
            "--image-size": budget.image_size,
        }
        return [
            part
            for name, numbers in options.items()
            if numbers is not None
            for part in (name, ",".join(map(str, numbers)))
        ]

    def _link_raw(self) -> None:
        mark = self.folder / ".raw-done"
        if mark.is_file():
            return
        shutil.rmtree(self.raw, ignore_errors=True)
        ending = self.dataset_json["file_ending"]
        roles = {Role.LABELLED: (*self.parts.pool, *self.parts.validation), Role.TEST: self.parts.test}
        if self.parts.unlabelled:
            roles[Role.UNLABELLED] = self.parts.unlabelled
        for role, cases in roles.items():
            for case in cases:
                self._link_case(case, role, ending)
        kept = {key: value for key, value in self.dataset_json.items() if key != "dataset"}
        write_json(self.raw / "dataset.json", {**kept, "numTraining": len(roles[Role.LABELLED])})
        frame = self.cases.frame
        own = CaseTable(frame[frame["case_id"].isin([case for cases in roles.values() for case in cases])])
        own = own.with_role(self.parts.test, Role.TEST).with_role(self.parts.unlabelled, Role.UNLABELLED)
        own.write(self.raw / CASES)
        write_text(mark, "")

    def _link_case(self, case: str, role: Role, ending: str) -> None:
        """Link the images of a case, and its label unless nobody is to see it."""
        if case not in self._files:
            raise DatasetError(f"{self.source}: the case {case} of {CASES} has no image in imagesTr")
        if not self.label(case).is_file():
            raise DatasetError(f"{self.label(case)}: not found; the experiment needs a label for every case")
        images = make_folder(self.raw / FOLDERS[role][0])
        for channel, path in enumerate(self.images(case)):
            _link(path, images / f"{case}_{channel:04d}{ending}")
        first = self.images(case)[0]
        name = first.name.removesuffix(ending)[: -len("_0000")]
        # nnU-Net keeps the spacing of a 3D TIFF in a JSON file beside it, named without the channel
        sidecars = {first.with_name(f"{name}.json"): images}
        if role is not Role.UNLABELLED:
            labels = make_folder(self.raw / FOLDERS[role][1])
            _link(self.label(case), labels / f"{case}{ending}")
            sidecars[self.label(case).with_suffix(".json")] = labels
        for path, folder in sidecars.items():
            if ending in (".tif", ".tiff") and path.is_file():
                _link(path, folder / f"{case}.json")

    def populate(
        self, cell: Cell, train: Sequence[str], earlier: Cell | None = None, *, unlabelled: Sequence[str] = ()
    ) -> None:
        """Give a cell nnU-Net folders of its own in which fold 0 trains on the given cases.

        Args:
            cell: the cell.
            train: identifiers of pool cases; all validation cases validate.
            earlier: a cell whose plans this one uses too.
            unlabelled: pool cases that are this cell's unlabelled pool, whose labels it does not see.
        """
        for name in (VARIABLES[0], VARIABLES[2]):
            make_folder(cell.folder / name)
        if unlabelled:
            parts = replace(self.parts, pool=tuple(train), unlabelled=tuple(unlabelled))
            replace(self, folder=cell.folder, parts=parts)._link_raw()
        else:
            _link(self.raw, cell.folder / VARIABLES[0] / self.source.name)
        own = make_folder(cell.folder / VARIABLES[1] / self.source.name)
        for start in (self.folder, earlier.folder if earlier is not None else self.folder):
            for path in (start / VARIABLES[1] / self.source.name).iterdir():
                if path.name != SPLITS:
                    _link(path, own / path.name)
        write_splits(own, [{"train": sorted(train), "val": sorted(self.parts.validation)}])


def _link(target: Path, link: Path) -> None:
    """A symbolic link, made anew; nnU-Net reads through it."""
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())
