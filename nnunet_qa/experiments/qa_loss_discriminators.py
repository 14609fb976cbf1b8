"""The discriminators of the experiment of paper 002, judged by predictions for test subjects whose truth is known.

The one that the arm with the QA loss has fitted judges every arm of its draw; one that another arm has fitted for
itself judges that arm and the supervised one, so that discriminators compare on predictions that none of them steered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_qa.config import FILE_NAME as SETTINGS
from nnunet_qa.config import QAConfig
from nnunet_qa.data.paths import read_json
from nnunet_qa.evaluation.codes import NAMES
from nnunet_qa.evaluation.failure_detection import judge
from nnunet_qa.experiments.qa_loss import QA, SUPERVISED, QALossExperiment
from nnunet_qa.experiments.report_parts import draws_text
from nnunet_qa.experiments.runner import Cell
from nnunet_qa.experiments.tables import markdown_table, mean_sd
from nnunet_qa.files import write_csv
from nnunet_qa.inference.coded_cases import predicted_codes
from nnunet_qa.quality.codes import CodeThresholds
from nnunet_qa.quality.discriminator import code_metrics
from nnunet_qa.quality.discriminator_file import FILE_NAME
from nnunet_qa.quality.table import FILE_NAME as QUALITY
from nnunet_qa.quality.table import read_quality
from nnunet_qa.reports.discriminator_figures import learning_curve_picture

PREDICTED = "predicted_codes"
"""Beginning of the names of the files in which the codes are kept."""
TRUTH = "truth"
_SCORES = {"code": "Code", "q": "Q"}
_RANKED = ("spearman", "aurc", "naurc", "auroc")


def fitted_discriminators(experiment: QALossExperiment, cells: Sequence[Cell]) -> list[tuple[Cell, Path]]:
    """The files of the discriminators that arms have fitted, each with the cell that did."""
    files = [(cell, experiment.model_of(cell) / "fold_0" / FILE_NAME) for cell in cells]
    return [(cell, path) for cell, path in files if path.is_file()]


def judged_arms(experiment: QALossExperiment, cells: Sequence[Cell], codes: pd.DataFrame) -> pd.DataFrame:
    """How the codes of each discriminator, and Q, go with the Dice of test cases.

    Args:
        experiment: the experiment.
        cells: all that are done.
        codes: what `codes_of_cases` gave.

    Returns:
        One row a discriminator (`fitted_by`, an arm), `arm` and `seed`: number of `cases`; of the codes rounded
        `accuracy`, beside the share of the `most_frequent` code, `recall_<code>` and `confusion_<given>_<predicted>`;
        `rmse`, `mean_code` by Dice, `mean_predicted`; and for the predicted code (its negative) and Q as scores of the
        Dice `code_` and `q_` with `spearman`, `aurc`, `naurc` and `auroc` of failures. The arm `truth` stands for the
        true labels of the same cases, all of code 0; there is nothing to rank in it.
    """
    rows = []
    for maker, path in fitted_discriminators(experiment, cells):
        own = codes[(codes["arm"] == maker.arm) & (codes["seed"] == maker.seed)].set_index("case_id")
        truths = experiment.holdout(maker.seed).raw / "labelsTs"
        said = _predicted(experiment, path, maker, truths, maker.folder / f"{PREDICTED}_truth.csv", own.index.tolist())
        key = {"fitted_by": maker.arm, "seed": maker.seed}
        rows.append({**key, "arm": TRUTH, **_agreement(said.to_numpy(), np.zeros(len(said), dtype=np.int64))})
        for cell in cells:
            if cell.seed != maker.seed or not (maker.arm == QA or cell.arm in (SUPERVISED, maker.arm)):
                continue
            known = codes[(codes["arm"] == cell.arm) & (codes["seed"] == cell.seed)].set_index("case_id")
            kept = cell.folder / (f"{PREDICTED}.csv" if maker.arm == QA else f"{PREDICTED}_{maker.arm}.csv")
            said = _predicted(experiment, path, maker, cell.folder / "imagesTs", kept, known.index.tolist())
            quality = read_quality(cell.folder / "imagesTs" / QUALITY).set_index("case_id")["q"]
            table = known.assign(predicted=said, q=quality)
            found = _agreement(table["predicted"].to_numpy(), table["code"].to_numpy())
            rows.append({**key, "arm": cell.arm, **found, **_ranking(table, experiment.protocol.thresholds)})
    return pd.DataFrame(rows)


def _predicted(
    experiment: QALossExperiment, path: Path, maker: Cell, predictions: Path, kept: Path, cases: list[str]
) -> pd.Series:
    """The codes that a discriminator gives to test cases in a folder, kept in a file; by case."""
    if not kept.is_file() or kept.stat().st_mtime < path.stat().st_mtime:
        holdout = experiment.holdout(maker.seed)
        table = predicted_codes(
            path,
            plans=read_json(experiment.model_of(maker) / "plans.json"),
            configuration=experiment.protocol.configuration,
            dataset_json=holdout.dataset_json,
            predictions=predictions,
            images={case: holdout.images(case) for case in cases},
            cases=cases,
            settings=QAConfig.read(maker.folder / SETTINGS).qa_loss,
            device=experiment.device,
            jobs=experiment.jobs,
        )
        write_csv(kept, table.round(6))
    return pd.read_csv(kept, dtype={"case_id": str}).set_index("case_id")["predicted_code"]


def _agreement(predicted: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """Figures of predicted codes against given ones."""
    found = code_metrics(predicted, codes)
    row: dict[str, Any] = {
        "cases": found["n"],
        "accuracy": found["accuracy"],
        "most_frequent": float(np.bincount(codes).max() / len(codes)),
        "rmse": found["rmse"],
        "mean_code": float(codes.mean()),
        "mean_predicted": float(predicted.mean()),
    }
    for given in NAMES:
        row[f"recall_{given}"] = found["recall"][given]
        row |= {f"confusion_{given}_{code}": found["confusion"][given][code] for code in NAMES}
    return row


def _ranking(table: pd.DataFrame, thresholds: CodeThresholds) -> dict[str, float]:
    """Figures of the predicted code and of Q as scores of the Dice."""
    row: dict[str, float] = {}
    for name, score in zip(_SCORES, (-table["predicted"], table["q"]), strict=True):
        found = judge(
            score.to_numpy(),
            table["dice"].to_numpy(),
            subjects=table["subject_id"].tolist(),
            rng=np.random.default_rng(0),
            failure_dice=thresholds.failure,
            resamples=0,
        )
        row |= {f"{name}_{metric}": found.values[metric] for metric in _RANKED}
    return row


def discriminator_section(
    folder: Path, experiment: QALossExperiment, cells: Sequence[Cell], table: pd.DataFrame, titles: Mapping[str, str]
) -> list[str]:
    """Text on the discriminators; writes the learning curve of each.

    Args:
        folder: where to.
        experiment: the experiment.
        cells: all that are done.
        table: what `judged_arms` gave; it has rows.
        titles: names of the arms.
    """
    note = (
        "The codes that a discriminator gives to whole predicted test cases, against the codes by Dice. Mean (SD over "
        "draws). `Most frequent` is the accuracy of always naming the most frequent code. `Mean code`: by Dice, then "
        "as predicted; where the second is lower for an arm with the QA loss than for the supervised one at equal "
        "Dice, the network has learnt to please. True labels ought to have the code 0: where they have not, the "
        "discriminator judges the case rather than its segmentation. Spearman, AURC and AUROC of failures take the "
        "code (its negative, not rounded) and Q of the same predictions as scores of the Dice: high Spearman and AUROC "
        "and low AURC are good."
    )
    names = {**titles, TRUTH: "True labels"}
    by_draw = table[table["arm"].isin([SUPERVISED, QA, TRUTH]) & (table["fitted_by"] == QA)]
    parts = [_agreement_table(table, names), note]
    if not by_draw.empty:
        parts += [_ranking_by_draw(by_draw, names), _confusions(by_draw, names)]
    return [*parts, *_simulated(folder, fitted_discriminators(experiment, cells), titles)]


def _agreement_table(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    rows = []
    for (maker, arm), part in table.groupby(["fitted_by", "arm"], sort=False):
        who = titles[str(arm)] if maker == QA else f"{titles[str(arm)]}, by that of: {titles[str(maker)]}"
        means = f"{part['mean_code'].mean():.2f}, {part['mean_predicted'].mean():.2f}"
        first = [mean_sd(part[column], 2) for column in ("accuracy", "most_frequent", "rmse")]
        second = [
            mean_sd(part[f"{score}_{metric}"], 2) for metric in ("spearman", "aurc", "auroc") for score in _SCORES
        ]
        rows.append([who, draws_text(part["seed"]), *first, means, *second])
    heads = ["Predictions of", "Draws", "Accuracy", "Most frequent", "RMSE", "Mean code"]
    ranked = [f"{metric}, {score}" for metric in ("Spearman", "AURC", "AUROC") for score in _SCORES.values()]
    return markdown_table([*heads, *ranked], rows)


def _ranking_by_draw(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    columns = ["accuracy", "most_frequent", "rmse"]
    columns += [f"{score}_{metric}" for metric in ("spearman", "aurc") for score in _SCORES]
    rows = [
        [titles[row["arm"]], str(row["seed"]), str(row["cases"]), *(_two(row[column]) for column in columns)]
        for row in table.to_dict("records")
    ]
    ranked = [f"{metric}, {score}" for metric in ("Spearman", "AURC") for score in _SCORES.values()]
    heads = ["Predictions of", "Draw", "Cases", "Accuracy", "Most frequent", "RMSE", *ranked]
    return markdown_table(heads, rows)


def _confusions(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    rows = []
    for arm, part in table.groupby("arm", sort=False):
        for given, name in NAMES.items():
            counts = [int(part[f"confusion_{given}_{code}"].sum()) for code in NAMES]
            if any(counts):
                rows.append([f"{titles[str(arm)]}: {name}", *map(str, counts)])
    return markdown_table(["Code by Dice, all draws", *(f"Predicted {name}" for name in NAMES.values())], rows)


def _simulated(folder: Path, makers: Sequence[tuple[Cell, Path]], titles: Mapping[str, str]) -> list[str]:
    """What each discriminator reached when it was fitted, on subjects that it was not fitted on."""
    rows, pictures = [], []
    for cell, path in makers:
        description = read_json(path.with_suffix(".json"))
        name, heading = f"learning_curve_{cell.arm}_{cell.seed}.png", f"{titles[cell.arm]}, draw {cell.seed}"
        history = pd.DataFrame(description["history"])
        learning_curve_picture(folder / name, history, best_epoch=description["best_epoch"], heading=heading)
        pictures.append(f"![Learning curve of the discriminator: {heading}]({name})")
        epochs = f"{description['best_epoch']} of {len(history)}"
        for part, whole in description["metrics"].items():
            for source, found in whole["by_source"].items():
                figures = [_two(found[metric]) for metric in ("accuracy", "rmse", "auroc")]
                rows.append([titles[cell.arm], str(cell.seed), epochs, f"{part}, {source}", str(found["n"]), *figures])
    heads = [
        "Discriminator of",
        "Draw",
        "Best epoch",
        "Part, codes",
        "Pictures",
        "Accuracy",
        "RMSE",
        "AUROC of success",
    ]
    note = (
        "On annotated training cases of subjects that the discriminator was not fitted on; the best epoch is that of "
        "the validation part. `simulated`: simulated errors; `dice`: predictions of the network for these cases when "
        "the discriminator was fitted last."
    )
    return [markdown_table(heads, rows), note, *pictures]


def _two(value: float | None) -> str:
    return "n/a" if value is None or np.isnan(value) else f"{value:.2f}"
