"""Do the curve classifiers find what real networks get wrong in unseen subjects (paper 003, on phantoms)?

Three nnU-Nets are trained on 3, 6 and 12 phantom subjects. Each predicts subjects of its own that it has not seen, all
frames. A predicted series is erroneous where its mean Dice is low. The series of each draw are judged by classifiers
that learnt from those of the other draws, see `benchmarks.curve_qc_report`. `python -m benchmarks.curve_qc -o FOLDER`;
run it again to go on, `--report-only` for the tables.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.curve_qc_report import Series, report
from nnunet_qa.cases import CaseTable
from nnunet_qa.data.cine_files import write_frames
from nnunet_qa.data.cine_phantom import DISEASES_SA, Cine, short_axis_cine
from nnunet_qa.environment import FOLDERS, set_up
from nnunet_qa.evaluation.per_image import evaluate_images
from nnunet_qa.experiments.budget import Budget
from nnunet_qa.experiments.holdout import Holdout, Parts
from nnunet_qa.experiments.runner import Arm, Cell, Runner
from nnunet_qa.experiments.training import Training
from nnunet_qa.files import make_folder, write_csv
from nnunet_qa.quality.curve_files import read_acquisitions, read_curves, write_curves
from nnunet_qa.quality.curves import SCHEMES

TRAINED = (3, 6, 12)
"""Subjects that the networks learn from."""
SIZE = {"slices": 8, "shape": (96, 104), "spacing": (10.0, 3.6, 3.6)}
DICE = "dice.csv"
BUDGET = Budget(
    iterations=1500,
    iterations_per_epoch=25,
    val_iterations_per_epoch=2,
    initial_lr=0.1,
    features=(8, 16, 32, 64),
    batch_size=8,
    mirroring=False,
)


class Stacks(dict[str, tuple[str, Cine]]):
    """Subjects of one draw, drawn each time one is asked for."""

    def __init__(self, seed: int, number: int, frames: int) -> None:
        super().__init__({f"S{index:03d}_sa": None for index in range(number)})  # type: ignore[arg-type]
        self.seed, self.frames = seed, frames

    def __getitem__(self, stack: str) -> tuple[str, Cine]:
        index = int(stack[1:4])
        disease = DISEASES_SA[index % len(DISEASES_SA)]
        rng = np.random.default_rng([self.seed, index])
        return stack[:4], short_axis_cine(rng, disease=disease, frames=self.frames, **SIZE)  # type: ignore[arg-type]


def parts_of(cases: CaseTable, network: int, judged: int) -> Parts:
    """Who trains, validates and is judged: the first subject validates for all, then come the training subjects."""
    subjects = cases.subjects()
    names = sorted(set(subjects.values()))
    start = 1 + sum(TRAINED[:network])
    first = 1 + sum(TRAINED) + network * judged

    def of(wanted: list[str]) -> tuple[str, ...]:
        return tuple(sorted(case for case, subject in subjects.items() if subject in wanted))

    return Parts(of(names[start : start + TRAINED[network]]), of(names[:1]), of(names[first : first + judged]))


def run(cell: Cell, folder: Path, *, network: int, judged: int, frames: int, device: str) -> dict[str, int]:
    """Draw the subjects of a seed, train one network, predict its subjects, keep curves and Dice."""
    data = folder / "data" / f"seed_{cell.seed}"
    source = data / "nnUNet_raw" / f"Dataset{790 + cell.seed}_CurveQC"
    if not (source / "dataset.json").is_file():
        os.environ.update({name: os.fspath(data / name) for name in FOLDERS})
        stacks = Stacks(cell.seed, 1 + sum(TRAINED) + judged * len(TRAINED), frames)
        write_frames(source, stacks, labelled=list(stacks), frames_per_labelled="all")
    table = CaseTable.read(source / "cases.csv")
    parts = parts_of(table, network, judged)
    holdout = Holdout(source, folder / "holdout" / f"{cell.arm}_{cell.seed}", parts, "2d", BUDGET)
    holdout.prepare()
    plain = {"head_weights": "all", "pool": {"enabled": False}}
    training = Training(
        cell=cell, holdout=holdout, trainer="QAsemiTrainer", plans=holdout.plans, device=device, jobs=1, settings=plain
    )
    training.train(parts.pool, stages=1)
    training.predict("imagesTs")
    predictions = cell.folder / "imagesTs"
    write_curves(cell.folder / "curves", read_acquisitions(predictions, scheme=SCHEMES["ukbb"], cases=table))
    dice = evaluate_images(predictions, holdout.raw / "labelsTs", parts.test, holdout.dataset_json)
    own = dice.assign(acquisition_id=dice["case_id"].map(table.acquisitions()))
    # a class that is rightly left empty counts 1
    write_csv(cell.folder / DICE, own.fillna({"dice": 1.0}).groupby("acquisition_id")["dice"].mean().reset_index())
    return {"trained_subjects": TRAINED[network], "judged": judged}


def judged(runner: Runner) -> dict[int, list[Series]]:
    """The predicted series of each draw, as far as the networks are done."""
    draws: dict[int, list[Series]] = {}
    for cell in runner.done():
        dice = pd.read_csv(cell.folder / DICE).set_index("acquisition_id")["dice"]
        for one in read_curves(cell.folder / "curves"):
            draws.setdefault(cell.seed, []).append(Series(one, float(dice[one.acquisition_id]), cell.arm))
    return draws


def main() -> None:
    """Run what is missing and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", required=True, type=Path, help="folder of the experiment")
    parser.add_argument("--seeds", type=int, default=3, help="draws")
    parser.add_argument("--judged", type=int, default=30, help="unseen subjects that each network predicts")
    parser.add_argument("--frames", type=int, default=16, help="of each series")
    parser.add_argument("--erroneous-below", type=float, default=0.7, help="mean Dice of a series")
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args()
    set_up()
    torch.set_num_threads(1)
    folder = options.o.absolute()

    def arm(network: int) -> Arm:
        how = {"judged": options.judged, "frames": options.frames, "device": options.device}
        return Arm(f"trained_on_{TRAINED[network]}", lambda cell: run(cell, folder, network=network, **how))

    settings = {"experiment": "curve-qc", "judged": options.judged, "frames": options.frames}
    runner = Runner(folder, {**settings, "budget": BUDGET.model_dump()}, tuple(map(arm, range(len(TRAINED)))))
    runner.begin()
    if not options.report_only:
        for cell in runner.run(None, range(options.seeds)):
            print(cell.arm, cell.seed, "done before" if cell.done else "running", flush=True)
    draws = judged(runner)
    if len(draws) < 2:
        parser.error("classifiers of a draw learn from the other draws: run two at least")
    print(report(make_folder(folder / "report"), draws, below=options.erroneous_below).read_text())


if __name__ == "__main__":
    main()
