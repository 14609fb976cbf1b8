"""What the reports of the experiments share: Dice of each case, arms paired on the draws they share, tables of both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa.errors import SelectionError
from nnunet_qa.evaluation.paired import compare
from nnunet_qa.evaluation.per_image import ALL, summarise_images
from nnunet_qa.evaluation.segmentation import ignore_value
from nnunet_qa.experiments.experiment import METRICS
from nnunet_qa.experiments.holdout import Holdout
from nnunet_qa.experiments.runner import Cell, Runner
from nnunet_qa.experiments.tables import markdown_table
from nnunet_qa.files import write_csv, write_text
from nnunet_qa.reports.segmentation_figures import ErrorPanel


def done_cells(runner: Runner, *, without: Collection[str] = ()) -> list[Cell]:
    """Cells of which there is something to report.

    Args:
        runner: of the experiment.
        without: arms that are no result by themselves.

    Raises:
        SelectionError: no cell is done.
    """
    cells = [cell for cell in runner.done() if cell.arm not in without]
    if not cells:
        raise SelectionError(f"{runner.folder}: nothing is done yet; run the experiment first")
    return cells


def arm_titles(runner: Runner) -> dict[str, str]:
    """Title of each arm by its name."""
    return {arm.name: arm.title for arm in runner.arms}


def write_tables(
    folder: Path, cells: Sequence[Cell], result: Callable[[Cell, pd.DataFrame], dict[str, Any]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `per_image.csv` and `results.csv`.

    Args:
        folder: of the report.
        cells: that are done.
        result: the row of a cell in `results.csv`, from the cell and what `images_of` gave of it.

    Returns:
        Both tables, the images of all cells first.
    """
    by_cell = [images_of(cell) for cell in cells]
    images = pd.concat(by_cell, ignore_index=True)
    results = pd.DataFrame([result(cell, own) for cell, own in zip(cells, by_cell, strict=True)])
    write_csv(folder / "per_image.csv", images.round(6))
    write_csv(folder / "results.csv", results.round(6))
    return images, results


def write_page(folder: Path, parts: Sequence[str]) -> Path:
    """Write `README.md` of paragraphs, without the empty ones."""
    path = folder / "README.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def images_of(cell: Cell) -> pd.DataFrame:
    """The table of a cell with one row a test image and class, with the columns `arm` and `seed` in front."""
    table = pd.read_csv(cell.folder / METRICS, dtype={"case_id": str, "subject_id": str})
    table.insert(0, "arm", cell.arm)
    table.insert(1, "seed", cell.seed)
    return table


def image_means(images: pd.DataFrame) -> dict[str, float]:
    """Means over images and classes of one cell, see `summarise_images`."""
    summary = summarise_images(images.drop(columns=["arm", "seed", "subject_id"]))
    means: dict[str, float] = summary[summary["class"] == ALL].iloc[0].drop("class").to_dict()
    return means


def class_dice(images: pd.DataFrame) -> dict[str, float]:
    """Mean Dice of each class of one cell, as `dice_<class>`; nothing where there is one class alone."""
    means = images.groupby("class", sort=False)["dice"].mean()
    return {f"dice_{name}": float(dice) for name, dice in means.items()} if len(means) > 1 else {}


def dice_of_cases(images: pd.DataFrame) -> pd.DataFrame:
    """Mean Dice over the classes: one row an `arm`, `seed`, `subject_id` and `case_id`, in the order of `images`."""
    return images.groupby(["arm", "seed", "subject_id", "case_id"], as_index=False, sort=False)["dice"].mean()


def ranked_cases(images: pd.DataFrame) -> pd.DataFrame:
    """Cases whose truth holds any class, best Dice first: `case_id`, `dice`.

    Args:
        images: what `images_of` gave, of one cell.
    """
    rows = images.groupby("case_id", as_index=False).agg(dice=("dice", "mean"), foreground=("foreground", "any"))
    ranked = rows[rows["foreground"]].sort_values(["dice", "case_id"], ascending=[False, True], ignore_index=True)
    return ranked.drop(columns="foreground")


def shared_draws(seeds: Mapping[str, Collection[int]], reference: str) -> dict[tuple[int, ...], list[str]]:
    """Arms by the draws that they share with the reference; arms that share none are left out.

    >>> shared_draws({"base": [0, 1], "a": [1, 0], "b": [1, 2], "c": [2], "d": [0, 1]}, "base")
    {(0, 1): ['a', 'd'], (1,): ['b']}
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for arm, own in seeds.items():
        shared = tuple(sorted(set(own) & set(seeds.get(reference, ()))))
        if arm != reference and shared:
            groups.setdefault(shared, []).append(arm)
    return groups


def fullest_draw(cells: Sequence[Cell]) -> tuple[int, list[Cell]]:
    """The draw with most cells, the first of several, and its cells."""
    by_draw: dict[int, list[Cell]] = {}
    for cell in cells:
        by_draw.setdefault(cell.seed, []).append(cell)
    return max(by_draw.items(), key=lambda item: (len(item[1]), -item[0]))


def draws_text(draws: Collection[int]) -> str:
    """Numbers of draws for a table.

    >>> draws_text([2, 0])
    '0, 2'
    """
    return ", ".join(map(str, sorted(draws)))


def compare_dice(images: pd.DataFrame, *, reference: str, without: Collection[str] = ()) -> pd.DataFrame:
    """Compare the Dice of each arm with that of the reference, on the draws that both have.

    Args:
        images: what `images_of` gave, of all cells.
        reference: the arm that the others are compared with.
        without: arms of which nothing can be said.

    Returns:
        The columns of `nnunet_qa.evaluation.paired.compare` and `draws`; no row where nothing can be compared. Tests
        are adjusted over the arms that share their draws.
    """
    dice = dice_of_cases(images[~images["arm"].isin(list(without))])
    seeds = {str(arm): set(rows["seed"]) for arm, rows in dice.groupby("arm", sort=False)}
    tables = []
    for draws, arms in shared_draws(seeds, reference).items():
        kept = dice[dice["arm"].isin([reference, *arms]) & dice["seed"].isin(draws)]
        table = compare(kept, reference=reference, metric="dice", rng=np.random.default_rng(0))
        tables.append(table.assign(draws=draws_text(draws)))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def comparison_table(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """The table of `compare_dice` for people."""
    rows = [
        [
            titles[row.arm],
            row.draws,
            f"{row.difference:+.3f}",
            "n/a" if np.isnan(row.low) else f"{row.low:+.3f} to {row.high:+.3f}",  # one subject
            p_with_holm(row.p_wilcoxon, row.p_wilcoxon_holm),
            p_with_holm(row.p_t, row.p_t_holm),
            f"{row.seeds_better} of {row.seeds}",
            f"{row.subjects}/{row.pairs}",
        ]
        for row in table.itertuples()
    ]
    heads = ["Arm", "Draws", "Difference in Dice", "95 % interval", "p Wilcoxon (Holm)", "p t-test (Holm)"]
    return markdown_table([*heads, "Better in draws", "Subjects/pairs"], rows)


def p_with_holm(p: float, adjusted: float) -> str:
    """A p-value with the adjusted one in brackets.

    >>> [p_with_holm(*both) for both in ((0.0123, 0.0369), (1e-5, 0.002), (float("nan"), float("nan")))]
    ['0.012 (0.037)', '< 0.001 (0.002)', 'n/a']
    """
    first, second = (f"{value:.3f}" if value >= 0.001 else "< 0.001" for value in (p, adjusted))
    return "n/a" if np.isnan(p) else f"{first} ({second})"


def error_panel(holdout: Holdout, cell: Cell, case: str, dice: float) -> ErrorPanel:
    """A test case as a cell predicted it, for a figure of its errors."""
    ending = holdout.dataset_json["file_ending"]
    return ErrorPanel(
        case_id=case,
        image=holdout.image(case),
        prediction=holdout.labels(cell.folder / "imagesTs" / f"{case}{ending}"),
        truth=holdout.labels(holdout.label(case)),
        dice=dice,
        ignore=ignore_value(holdout.dataset_json["labels"]),
    )


def arm_panel(holdout: Holdout, cell: Cell, case: str, title: str) -> ErrorPanel:
    """As `error_panel`, with the title of the arm in place of the case, for arms side by side."""
    images = images_of(cell)
    dice = float(images.loc[images["case_id"] == case, "dice"].mean())
    return replace(error_panel(holdout, cell, case, dice), case_id=title)


def machines_table(cells: Sequence[Cell]) -> str:
    """Which machine ran how many cells, with which versions, and for how long."""
    rows: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        record: dict[str, Any] = cell.result()
        machine = record["machine"]
        key = (machine["gpu"] or machine["processor"], machine["cores"], machine["torch"], machine["nnunet_qa"])
        rows.setdefault(tuple(map(str, key)), []).append(float(record["seconds"]))
    body = [[*key, str(len(took)), f"{sum(took) / 60:.0f}"] for key, took in rows.items()]
    return markdown_table(["Device", "Cores", "torch", "nnunet_qa", "Cells", "Minutes"], body)
