"""The whole loop on a phantom, with the commands that a user would type: convert, plan, train, score, select.

Each step leaves a mark when it is done, so a demo that was stopped goes on with the step that it was at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_qa.data.images import holds_volumes, read_array
from nnunet_qa.data.paths import read_json
from nnunet_qa.environment import FOLDERS
from nnunet_qa.errors import DatasetError, nearest
from nnunet_qa.experiments.commands import environment_of, run_command
from nnunet_qa.experiments.demo_sources import SOURCES, DemoSource
from nnunet_qa.files import clear, make_folder, write_json, write_text
from nnunet_qa.inference.score import SECOND
from nnunet_qa.quality.table import FILE_NAME as QUALITY
from nnunet_qa.quality.table import read_quality
from nnunet_qa.reports.figures import Panel, disagreement_picture, panel_title

NUMBER = 900
PLANS = "nnUNetPlansSmall"
MARK = "demo.json"
SETTINGS = """\
training: {epochs: 18, iterations_per_epoch: 40, val_iterations_per_epoch: 5, initial_lr: 0.04}
queue: {number: 10}
qa_loss: {simulation: {patches: 40, epochs: 6, learning_rate: 0.0003}}
"""


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Attributes:
        name: what it does, for the progress display.
        command: as typed, without the folders of the environment.
    """

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Demo:
    """The demo in one folder.

    Attributes:
        folder: holds everything that the demo writes.
        dataset: which layout, one of `SOURCES`.
        device: `cpu`, `cuda` or `mps`.
        jobs: processes of each step.
    """

    folder: Path
    dataset: str = "oct-chiu"
    device: str = "cpu"
    jobs: int = 2

    @property
    def source(self) -> DemoSource:
        """How the phantom is written and converted."""
        return SOURCES[self.dataset]

    @property
    def raw(self) -> Path:
        """The raw dataset."""
        return self.folder / "nnUNet_raw" / f"Dataset{NUMBER}_{self.source.name}"

    def predictions(self, images: str) -> Path:
        """Predictions of one of the raw dataset's folders."""
        return self.folder / f"predictions_{images}"

    def begin(self, *, overwrite: bool = False) -> None:
        """Make the folder, or go on in it.

        Raises:
            DatasetError: the folder holds something else, or a demo of another layout; or there is no such layout.
        """
        if self.dataset not in SOURCES:
            raise DatasetError(
                f'unknown dataset "{self.dataset}"{nearest(self.dataset, SOURCES)}; choose from {", ".join(SOURCES)}'
            )
        if overwrite and (self.folder / MARK).is_file():
            clear(self.folder, self.folder / MARK)
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / MARK).is_file():
            raise DatasetError(f"{self.folder}: holds something else than a demo; choose another -o")
        begun = read_json(self.folder / MARK).get("dataset") if (self.folder / MARK).is_file() else self.dataset
        if begun != self.dataset:
            raise DatasetError(f"{self.folder}: holds the demo of {begun}; choose another -o, or --overwrite it")
        make_folder(self.folder)
        if not (self.folder / MARK).is_file():
            write_json(self.folder / MARK, {"dataset": self.dataset})
        for name in FOLDERS:
            make_folder(self.folder / name)

    def steps(self) -> list[Step]:
        """All commands, in their order."""
        number, jobs = str(NUMBER), str(self.jobs)
        model = ("-d", number, "-c", "2d", "-f", "0", "-p", PLANS)
        small = ("--features", "8,16,32,64", "--batch-size", "8")
        phantom, truth = str(self.written), str(self.raw / "labelsTs")
        convert = ("-i", phantom, "-d", number, "--name", self.source.name, *self.source.convert, "--jobs", jobs)
        steps = [
            Step("convert", ("nnunet-qa", "convert", self.dataset, *convert)),
            Step("plan", ("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-np", jobs, "-npfp", jobs)),
            Step("shrink the plans", ("nnunet-qa", "plans", "-d", number, "-c", "2d", "-o", PLANS, *small)),
            Step(
                "train",
                ("nnUNetv2_train", number, "2d", "0", "-tr", "QAsemiTrainer", "-p", PLANS, "-device", self.device),
            ),
        ]
        for images in self.scored:
            output = ("-i", str(self.raw / images), "-o", str(self.predictions(images)))
            score = ("score", *output, *model, "--second", "-device", self.device, "--jobs", "1")
            steps.append(Step(f"score {images}", ("nnunet-qa", *score)))
        predicted, queue = str(self.predictions("imagesTs")), str(self.folder / "queue.csv")
        pool_quality = str(self.predictions("imagesUn") / QUALITY)
        evaluate = ("-p", predicted, "-gt", truth, "--cases", str(self.raw / "cases.csv"), "-o", str(self.folder))
        if self.source.tests:
            steps.append(Step("evaluate", ("nnunet-qa", "evaluate", *evaluate)))
        select = ("-q", pool_quality, "-d", number, "-n", "10", "--per-subject", "4", "-o", queue)
        steps.append(Step("select", ("nnunet-qa", "select", *select)))
        return steps

    @property
    def scored(self) -> tuple[str, ...]:
        """Folders of the raw dataset whose cases are predicted."""
        return ("imagesTs", "imagesUn") if self.source.tests else ("imagesUn",)

    @property
    def written(self) -> Path:
        """What the phantom's writer returned."""
        return Path(read_json(self.folder / MARK)["phantom"])

    def write_phantom(self) -> None:
        """Draw the subjects of the phantom."""
        if "phantom" not in read_json(self.folder / MARK):
            source = self.source.write(self.folder, np.random.default_rng(2015))
            write_json(self.folder / MARK, {"dataset": self.dataset, "phantom": str(source)})

    def run(self) -> Iterator[Step]:
        """Run the steps that are still to be done; yields each before it runs.

        Raises:
            DependencyError: a command failed; its output is in `demo.log`.
        """
        self.write_phantom()
        environment = environment_of(self.folder, jobs=self.jobs)
        for step in self.steps():
            mark = self.folder / f".{step.name.replace(' ', '-')}-done"
            yield step
            if mark.is_file():
                continue
            if step.name == "train":
                write_text(self.raw / "qa.yaml", SETTINGS)
            run_command(step.command, environment=environment, log=self.folder / "demo.log")
            write_text(mark, "")

    def picture(self, *, number: int = 8) -> Path:
        """Draw the test and pool B-scans with the lowest Q, both outputs overlaid.

        Args:
            number: how many B-scans.

        Returns:
            The PNG.
        """
        rows = []
        for images in self.scored:
            table = read_quality(self.predictions(images) / QUALITY)
            rows.append(table.assign(images=images))
        lowest = pd.concat(rows).sort_values(["q", "case_id"]).head(number)
        evaluation = self.folder / "evaluation.csv"
        dice = pd.read_csv(evaluation).set_index("case_id")["dice"] if self.source.tests else pd.Series(dtype=float)
        panels = [self._panel(row.case_id, row.images, row.q, dice.get(row.case_id)) for row in lowest.itertuples()]
        labels = read_json(self.raw / "dataset.json")["labels"]
        names = [name for name, value in labels.items() if value]
        return disagreement_picture(self.folder / "lowest_q.png", panels, heading="Lowest Q", class_names=names)

    def _panel(self, case: str, images: str, q: float, dice: float | None) -> Panel:
        folder, dataset_json = self.predictions(images), read_json(self.raw / "dataset.json")
        ending, volumes = dataset_json["file_ending"], holds_volumes(dataset_json)
        truth = self.raw / "labelsTs" / f"{case}{ending}"
        return Panel(
            title=panel_title(case, q, dice=dice),
            image=read_array(self.raw / images / f"{case}_0000{ending}", volumes=volumes),
            finest=read_array(folder / f"{case}{ending}", volumes=volumes),
            second=read_array(folder / SECOND / f"{case}{ending}", volumes=volumes),
            truth=read_array(truth, volumes=volumes) if truth.is_file() else None,
        )
