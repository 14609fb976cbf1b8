"""`nnunet-qa curve-classifier`: learn which volume or area curves are erroneous, say how well, and judge others."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.cli.options import CasesFile
from nnunet_qa.errors import ModelError, SelectionError

if TYPE_CHECKING:
    import numpy as np

    from nnunet_qa.quality.curve_estimator import CurveEstimator
    from nnunet_qa.quality.curves import Acquisition

_ROC, _JUDGED, _SUMMARY, _PREDICTED = "roc.png", "curve_evaluation.csv", "curve_evaluation.json", "curve_quality.csv"
_LABELS = "qc_labels.csv: case (the acquisition), label (good or erroneous)."
_DICE = "Instead of --labels: table with case_id and dice, such as evaluation.csv."
_CURVES = "Folder that `nnunet-qa curves` wrote."


class Kind(str, Enum):
    """The classifiers there are."""

    LSTM = "lstm"
    LOGISTIC = "logistic"
    RULES = "rules"


def register(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(
        name="curve-classifier", no_args_is_help=True, help="Tells good from erroneous volume and area curves."
    )
    for command in (fit, evaluate, predict):
        group.command()(command)
    app.add_typer(group)


def fit(
    curves: Path = typer.Option(..., "-i", help=_CURVES),
    output: Path = typer.Option(..., "-o", help="Where to write, ends in .pt"),
    labels: Path | None = typer.Option(None, "--labels", help=_LABELS),
    dice: Path | None = typer.Option(None, "--dice", help=_DICE),
    below: float = typer.Option(0.7, "--erroneous-below", help="With --dice: erroneous below this mean Dice."),
    dataset: str | None = typer.Option(
        None, "-d", help="With --dice: dataset whose cases.csv says whose frame a case is."
    ),
    cases: CasesFile = None,
    kind: Kind = typer.Option(Kind.LSTM, "--kind", help="The paper's LSTM, or one of the two to compare it with."),
    structures: str | None = typer.Option(None, "--structures", help="Such as lv,rv. Default: all that there are."),
    weight: float = typer.Option(0.7, "--weight", min=0.0, max=1.0, help="Of the sensitivity in the Youden index."),
    least_sensitivity: float = typer.Option(
        0.0, "--least-sensitivity", min=0.0, max=1.0, help="That the threshold must have in cross-validation."
    ),
    sizes: bool = typer.Option(False, "--sizes", help="LSTM: also tell it how large each structure is."),
    slices: bool = typer.Option(False, "--slices", help="LSTM: also show it how irregular slices are in each frame."),
    frames: int = typer.Option(50, "--frames", min=2, help="LSTM: what curves are resampled to."),
    hidden: int = typer.Option(64, "--hidden", min=1, help="LSTM: width."),
    epochs: int = typer.Option(40, "--epochs", min=1, help="LSTM: times that every acquisition is shown."),
    folds: int = typer.Option(5, "--folds", min=2, help="Parts of the subjects, to choose the threshold."),
    test_share: float = typer.Option(
        0.2, "--test-share", min=0.0, max=0.5, help="Part of the subjects kept for a test: a half, a third …; 0: none."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of splits, initial weights and draws."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a classifier that is there."),
) -> None:
    """Learn from labelled acquisitions; subjects never stand on both sides of a split.

    Writes the classifier with its threshold, a description of it (.json) and, with a test, <name>_roc.png beside it.

    Example: `nnunet-qa curve-classifier fit -i curves --labels qc_labels.csv -o curve_classifier.pt`
    """
    from nnunet_qa.quality.curve_classifier_file import KINDS, save
    from nnunet_qa.quality.curve_estimator import TEST

    if output.suffix != ".pt":
        raise ModelError(f"{output}: the file of a curve classifier ends in .pt; choose another -o")
    if output.exists() and not overwrite:
        raise ModelError(f"{output}: is there already; choose another -o, or use --overwrite")
    _one_thread()
    acquisitions, erroneous = _labelled(curves, labels, dice, below, dataset, cases)
    fitted, held_out = _split(acquisitions, erroneous, test_share, seed)
    lstm = {"sizes": sizes, "slices": slices, "frames": frames, "hidden": hidden, "epochs": epochs}
    threshold: Mapping[str, Any] = {"weight": weight, "least_sensitivity": least_sensitivity, "folds": folds}
    names = None if structures is None else [name.strip() for name in structures.split(",")]
    only_lstm: Mapping[str, Any] = lstm if kind is Kind.LSTM else {}
    classifier = KINDS[kind.value](structures=names, seed=seed, **threshold, **only_lstm)
    classifier.fit([acquisitions[number] for number in fitted], erroneous[fitted])
    if len(held_out):
        test = [acquisitions[number] for number in held_out]
        classifier.metrics_[TEST] = classifier.judge(test, erroneous[held_out])
        scores = {kind.value: (classifier, classifier.predict_proba(test))}
        heading = f"{len(test)} acquisitions of unseen subjects"
        _draw(output.with_name(f"{output.stem}_{_ROC}"), scores, erroneous[held_out], heading=heading)
    about = {"curves": str(curves), "labels": str(labels or dice), "acquisitions": len(acquisitions)}
    if dice is not None:
        about["erroneous below Dice"] = below
    save(classifier, output, about=about)
    _show(classifier.metrics_)
    _say(f"Erroneous from {classifier.threshold_:.3f} up. Wrote {output}")


def evaluate(
    curves: Path = typer.Option(..., "-i", help=_CURVES),
    models: list[Path] = typer.Option(..., "-m", help="curve_classifier.pt; give several to compare them."),
    output: Path = typer.Option(..., "-o", help="Folder to write to."),
    labels: Path | None = typer.Option(None, "--labels", help=_LABELS),
    dice: Path | None = typer.Option(None, "--dice", help=_DICE),
    below: float = typer.Option(0.7, "--erroneous-below", help="With --dice: erroneous below this mean Dice."),
    dataset: str | None = typer.Option(
        None, "-d", help="With --dice: dataset whose cases.csv says whose frame a case is."
    ),
    cases: CasesFile = None,
) -> None:
    """Compare what classifiers say with labels: AUROC, sensitivity and specificity at the stored threshold.

    Writes curve_evaluation.csv (one row an acquisition), curve_evaluation.json and roc.png.

    Example: `nnunet-qa curve-classifier evaluate -i curves -m curve_classifier.pt --labels qc_labels.csv -o evaluation`
    """
    import pandas as pd

    from nnunet_qa.files import write_csv, write_json
    from nnunet_qa.quality.operating_point import rates

    _one_thread()
    acquisitions, erroneous = _labelled(curves, labels, dice, below, dataset, cases)
    names = _names(models)
    scores = {name: _judged(path, acquisitions) for name, path in names.items()}
    table = pd.DataFrame(
        {
            "acquisition_id": [one.acquisition_id for one in acquisitions],
            "subject_id": [one.subject_id for one in acquisitions],
            "erroneous": erroneous.astype(int),
            **{f"p_erroneous_{name}": judged for name, (_, judged) in scores.items()},
        }
    )
    metrics = {
        name: rates(judged, erroneous, threshold=one.threshold_) | {"threshold": one.threshold_}
        for name, (one, judged) in scores.items()
    }
    about = {"curves": str(curves), "labels": str(labels or dice), **({} if dice is None else {"below": below})}
    write_csv(output / _JUDGED, table.round(6))
    write_json(output / _SUMMARY, {"about": about, "classifiers": metrics})
    written = [_JUDGED, _SUMMARY]
    if 0 < erroneous.sum() < len(erroneous):
        _draw(output / _ROC, scores, erroneous, heading=f"{len(erroneous)} acquisitions")
        written.append(_ROC)
    _show(metrics)
    _say(f"Wrote {', '.join(str(output / name) for name in written)}")


def predict(
    curves: Path = typer.Option(..., "-i", help=_CURVES),
    model: Path | None = typer.Option(
        None, "-m", help="curve_classifier.pt. Without it the rules judge: erroneous is what breaks any check."
    ),
    output: Path | None = typer.Option(None, "-o", help="Default: curve_quality.csv in the folder of the curves."),
) -> None:
    """Give each acquisition its probability of being erroneous.

    Writes curve_quality.csv: acquisition_id, subject_id, p_erroneous, erroneous (0 or 1), broken_checks (those of the
    rules, whatever the classifier, for people to see where to look), model.

    Example: `nnunet-qa curve-classifier predict -i curves -m curve_classifier.pt`
    """
    import hashlib

    import pandas as pd

    from nnunet_qa.files import write_csv
    from nnunet_qa.quality.curve_rules import CurveRules, broken_checks

    _one_thread()
    acquisitions = _read(curves)
    if model is None:
        classifier: CurveEstimator = CurveRules.without_labels(acquisitions)
        probabilities, name = classifier.predict_proba(acquisitions), "rules"
    else:
        classifier, probabilities = _judged(model, acquisitions)
        name = f"{model.name} {hashlib.sha256(model.read_bytes()).hexdigest()[:12]}"
    table = pd.DataFrame(
        {
            "acquisition_id": [one.acquisition_id for one in acquisitions],
            "subject_id": [one.subject_id for one in acquisitions],
            "p_erroneous": probabilities.round(6),
            "erroneous": (probabilities >= classifier.threshold_).astype(int),
            "broken_checks": [
                " ".join(check for check, broken in broken_checks(one, classifier.structures_).items() if broken)
                for one in acquisitions
            ],
            "model": name,
        }
    )
    path = output if output is not None else curves / _PREDICTED
    write_csv(path, table)
    _say(f"Wrote {path}: {table['erroneous'].sum()} of {len(table)} acquisitions are called erroneous")


def _read(curves: Path) -> list[Acquisition]:
    from nnunet_qa.quality.curve_files import read_curves

    acquisitions = read_curves(curves)
    if not acquisitions:
        raise SelectionError(f"{curves}: holds no acquisition; run `nnunet-qa curves` again")
    return acquisitions


def _labelled(
    curves: Path, labels: Path | None, dice: Path | None, below: float, dataset: str | None, cases: Path | None
) -> tuple[list[Acquisition], np.ndarray]:
    from nnunet_qa.cases import CaseTable
    from nnunet_qa.cli.case_table import find_cases
    from nnunet_qa.quality.qc_labels import labelled, labels_by_dice, read_qc_labels

    if (labels is None) == (dice is None):
        raise SelectionError("give either --labels qc_labels.csv or --dice evaluation.csv")
    if labels is not None:
        known = read_qc_labels(labels)
    elif dice is not None:
        table = find_cases(dataset, cases)
        known = labels_by_dice(dice, below=below, cases=None if table is None else CaseTable.read(table))
    acquisitions = _read(curves)
    chosen, erroneous = labelled(acquisitions, known)
    _say(
        f"{len(chosen)} of {len(acquisitions)} acquisitions have a label: {erroneous.sum()} erroneous, "
        f"{(~erroneous).sum()} good. {len(known) - len(chosen)} labels have no curves."
    )
    return chosen, erroneous


def _split(
    acquisitions: list[Acquisition], erroneous: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the acquisitions that are fitted, and of those kept for the test."""
    import numpy as np

    from nnunet_qa.quality.curve_estimator import subject_folds

    if share == 0:
        return np.arange(len(acquisitions)), np.arange(0)
    subjects = [one.subject_id for one in acquisitions]
    fitted, held_out = subject_folds(subjects, erroneous, folds=round(1 / share), seed=seed)[0]
    kept, known = len({subjects[number] for number in held_out}), len(set(subjects))
    _say(f"{kept} of {known} subjects ({kept / known:.0%}) are kept for the test; --test-share asked for {share:.0%}.")
    return fitted, held_out


def _judged(path: Path, acquisitions: list[Acquisition]) -> tuple[CurveEstimator, np.ndarray]:
    """A classifier from its file and its probabilities."""
    from nnunet_qa.quality.curve_classifier_file import load

    first = acquisitions[0]
    classifier = load(path, structures=list(first.pixels), measured=first.scheme.kind)
    return classifier, classifier.predict_proba(acquisitions)


def _names(models: list[Path]) -> dict[str, Path]:
    """Files by the name of the file, or with that of their folder where two have the same."""
    stems = [path.stem for path in models]
    single = len(set(stems)) == len(stems)
    names = {path.stem if single else f"{path.parent.name}_{path.stem}": path for path in models}
    if len(names) < len(models):
        raise SelectionError("two classifiers have the same name and folder name; copy one to another name")
    return names


def _draw(
    path: Path, scores: Mapping[str, tuple[CurveEstimator, np.ndarray]], erroneous: np.ndarray, *, heading: str
) -> None:
    from nnunet_qa.reports.curve_classifier_figures import Judged, roc_picture

    shown = {
        name: Judged(scores=judged, erroneous=erroneous, threshold=one.threshold_)
        for name, (one, judged) in scores.items()
    }
    roc_picture(path, shown, heading=heading)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # on networks this small several threads cost more than they bring


def _show(parts: Mapping[str, Mapping[str, Any]]) -> None:
    shown = Table("", "n", "erroneous", "AUROC", "sensitivity (95 %)", "specificity (95 %)", title="Curve classifier")
    for part, metrics in parts.items():
        both = (_with_interval(metrics, name) for name in ("sensitivity", "specificity"))
        shown.add_row(part, str(metrics["n"]), str(metrics["erroneous"]), _text(metrics["auroc"]), *both)
    Console().print(shown)


def _with_interval(metrics: Mapping[str, Any], name: str) -> str:
    if metrics[name] is None:
        return "–"
    low, high = metrics[f"{name}_95"]
    return f"{metrics[name]:.3f} ({low:.3f} to {high:.3f})"


def _text(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(text)
