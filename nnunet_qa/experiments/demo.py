"""The whole loop on a phantom, with the commands that a user would type: convert, plan, train, score, select.

Each step leaves a mark when it is done, so a demo that was stopped goes on with the step that it was at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from nnunet_qa.data.images import read_picture
from nnunet_qa.data.phantoms import write_chiu
from nnunet_qa.environment import FOLDERS
from nnunet_qa.errors import DatasetError
from nnunet_qa.experiments.commands import environment_of, run_command
from nnunet_qa.files import clear, make_folder, write_text
from nnunet_qa.inference.score import SECOND
from nnunet_qa.quality.table import FILE_NAME as QUALITY
from nnunet_qa.quality.table import read_quality
from nnunet_qa.reports.figures import Panel, disagreement_picture, panel_title

NUMBER, NAME = 900, "OCTPhantom"
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
        device: `cpu`, `cuda` or `mps`.
        jobs: processes of each step.
    """

    folder: Path
    device: str = "cpu"
    jobs: int = 2

    @property
    def raw(self) -> Path:
        """The raw dataset."""
        return self.folder / "nnUNet_raw" / f"Dataset{NUMBER}_{NAME}"

    def predictions(self, images: str) -> Path:
        """Predictions of one of the raw dataset's folders."""
        return self.folder / f"predictions_{images}"

    def begin(self, *, overwrite: bool = False) -> None:
        """Make the folder, or go on in it.

        Raises:
            DatasetError: the folder holds something else.
        """
        if overwrite and (self.folder / MARK).is_file():
            clear(self.folder, self.folder / MARK)
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / MARK).is_file():
            raise DatasetError(f"{self.folder}: holds something else than a demo; choose another -o")
        make_folder(self.folder)
        write_text(self.folder / MARK, "{}\n")
        for name in FOLDERS:
            make_folder(self.folder / name)

    def steps(self) -> list[Step]:
        """All commands, in their order."""
        number, jobs = str(NUMBER), str(self.jobs)
        model = ("-d", number, "-c", "2d", "-f", "0", "-p", PLANS)
        small = ("--features", "8,16,32,64", "--batch-size", "8")
        source, truth = str(self.folder / "2015_BOE_Chiu"), str(self.raw / "labelsTs")
        convert = ("-i", source, "-d", number, "--name", NAME, "--test-subjects", "S05,S06", "--jobs", jobs)
        steps = [
            Step("convert", ("nnunet-qa", "convert", "oct-chiu", *convert)),
            Step("plan", ("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-np", jobs, "-npfp", jobs)),
            Step("shrink the plans", ("nnunet-qa", "plans", "-d", number, "-c", "2d", "-o", PLANS, *small)),
            Step(
                "train",
                ("nnUNetv2_train", number, "2d", "0", "-tr", "QAsemiTrainer", "-p", PLANS, "-device", self.device),
            ),
        ]
        for images in ("imagesTs", "imagesUn"):
            output = ("-i", str(self.raw / images), "-o", str(self.predictions(images)))
            score = ("score", *output, *model, "--second", "-device", self.device, "--jobs", "1")
            steps.append(Step(f"score {images}", ("nnunet-qa", *score)))
        predicted, queue = str(self.predictions("imagesTs")), str(self.folder / "queue.csv")
        pool_quality = str(self.predictions("imagesUn") / QUALITY)
        evaluate = ("-p", predicted, "-gt", truth, "--cases", str(self.raw / "cases.csv"), "-o", str(self.folder))
        steps.append(Step("evaluate", ("nnunet-qa", "evaluate", *evaluate)))
        select = ("-q", pool_quality, "-d", number, "-n", "10", "--per-subject", "4", "-o", queue)
        steps.append(Step("select", ("nnunet-qa", "select", *select)))
        return steps

    def write_phantom(self) -> None:
        """Draw six subjects in the layout of Chiu et al. 2015, each annotated in part; the last two are for testing."""
        if not (self.folder / ".phantom-done").is_file():
            rng = np.random.default_rng(2015)
            write_chiu(self.folder, rng, subjects=6, rows=248, columns=384, bscans=12, annotated=8, severity=0.7)
            write_text(self.folder / ".phantom-done", "")

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
        for images in ("imagesTs", "imagesUn"):
            table = read_quality(self.predictions(images) / QUALITY)
            rows.append(table.assign(images=images))
        lowest = pd.concat(rows).sort_values(["q", "case_id"]).head(number)
        dice = pd.read_csv(self.folder / "evaluation.csv").set_index("case_id")["dice"]
        panels = [self._panel(row.case_id, row.images, row.q, dice.get(row.case_id)) for row in lowest.itertuples()]
        return disagreement_picture(self.folder / "lowest_q.png", panels, heading="Lowest Q", class_names=["fluid"])

    def _panel(self, case: str, images: str, q: float, dice: float | None) -> Panel:
        folder = self.predictions(images)
        truth = self.raw / "labelsTs" / f"{case}.png"
        return Panel(
            title=panel_title(case, q, dice=dice),
            image=read_picture(self.raw / images / f"{case}_0000.png"),
            finest=read_picture(folder / f"{case}.png"),
            second=read_picture(folder / SECOND / f"{case}.png"),
            truth=read_picture(truth) if truth.is_file() else None,
        )
