"""`nnunet-qa curve-classifier`: learn which volume or area curves are erroneous, say how well, and judge others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
_BELOW = 0.7

CurvesFolder = Annotated[Path, typer.Option("-i", help="Folder that `nnunet-qa curves` wrote.")]
Labels = Annotated[
    Path | None, typer.Option("--labels", help="qc_labels.csv: case (the acquisition), label (good or erroneous).")
]
Dice = Annotated[
    Path | None,
    typer.Option("--dice", help="Instead of --labels: table with case_id and dice, such as evaluation.csv."),
]
Below = Annotated[
    float | None,
    typer.Option("--erroneous-below", help=f"With --dice: erroneous below this mean Dice. Default: {_BELOW}."),
]
DiceDataset = Annotated[
    str | None, typer.Option("-d", help="With --dice: dataset whose cases.csv says whose frame a case is.")
]


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
    curves: CurvesFolder,
    output: Path = typer.Option(..., "-o", help="Where to write, ends in .pt"),
    labels: Labels = None,
    dice: Dice = None,
    below: Below = None,
    dataset: DiceDataset = None,
    cases: CasesFile = None,
    kind: Kind = typer.Option(Kind.LSTM, "--kind", help="The paper's LSTM, or one of the two to compare it with."),
    structures: str | None = typer.Option(None, "--structures", help="Such as lv,rv. Default: all that there are."),
    weight: float = typer.Option(0.7, "--weight", min=0.0, max=1.0, help="Of the sensitivity in the Youden index."),
    least_sensitivity: float = typer.Option(
        0.0, "--least-sensitivity", min=0.0, max=1.0, help="That the threshold must have in cross-validation."
    ),
    sizes: bool | None = typer.Option(None, "--sizes", help="LSTM: also tell it how large each structure is."),
    slices: bool | None = typer.Option(None, "--slices", help="LSTM: also show it how irregular slices are."),
    frames: int | None = typer.Option(None, "--frames", min=2, help="LSTM: length of resampled curves. Default: 50."),
    hidden: int | None = typer.Option(None, "--hidden", min=1, help="LSTM: width. Default: 64."),
    epochs: int | None = typer.Option(None, "--epochs", min=1, help="LSTM: passes over the series. Default: 40."),
    folds: int = typer.Option(5, "--folds", min=2, help="Parts of the subjects, to choose the threshold."),
    test_share: float = typer.Option(
        0.2, "--test-share", min=0.0, max=0.5, help="Part of the subjects kept for a test: a half, a third …; 0: none."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of splits, initial weights and draws."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a classifier that is there."),
) -> None:
    """Learn from labelled acquisitions; subjects never stand on both sides of a split.

    Writes the classifier with its threshold and beside it a description (.json) and, with a test that has good and
    erroneous acquisitions, its ROC curve (_roc.png).

    Example: `nnunet-qa curve-classifier fit -i curves --labels qc_labels.csv -o curve_classifier.pt`
    """
    from nnunet_qa.quality.curve_classifier_file import KINDS, save
    from nnunet_qa.quality.curve_estimator import TEST

    _check_output(output, overwrite=overwrite)
    truth = _Truth(labels=labels, dice=dice, below=below, dataset=dataset, cases=cases)
    settings: dict[str, Any] = {"weight": weight, "least_sensitivity": least_sensitivity, "folds": folds, "seed": seed}
    settings |= _of_lstm(kind, sizes=sizes, slices=slices, frames=frames, hidden=hidden, epochs=epochs)
    settings["structures"] = None if structures is None else [name.strip() for name in structures.split(",")]
    classifier = KINDS[kind.value](**settings)
    _one_thread()
    acquisitions, erroneous = _labelled(curves, truth)
    fitted, held_out = _split(acquisitions, erroneous, test_share, seed)
    classifier.fit([acquisitions[number] for number in fitted], erroneous[fitted])
    test = [acquisitions[number] for number in held_out]
    if test:
        classifier.metrics_[TEST] = classifier.judge(test, erroneous[held_out])
    save(classifier, output, about={**truth.about(curves), "acquisitions": len(acquisitions)})
    if test:
        picture, heading = output.with_name(f"{output.stem}_{_ROC}"), f"{len(test)} acquisitions of unseen subjects"
        scores = {kind.value: (classifier, classifier.predict_proba(test))}
        _draw(picture, scores, erroneous[held_out], heading=heading)
    _show(classifier.metrics_)
    _say(f"Erroneous from {classifier.threshold_:.3f} up. Wrote {output}")


def evaluate(
    curves: CurvesFolder,
    models: list[Path] = typer.Option(..., "-m", help="curve_classifier.pt; give several to compare them."),
    output: Path = typer.Option(..., "-o", help="Folder to write to."),
    labels: Labels = None,
    dice: Dice = None,
    below: Below = None,
    dataset: DiceDataset = None,
    cases: CasesFile = None,
) -> None:
    """Compare what classifiers say with labels: AUROC, sensitivity and specificity at the stored threshold.

    Writes curve_evaluation.csv (one row an acquisition), curve_evaluation.json and, where some are good and some
    erroneous, roc.png.

    Example: `nnunet-qa curve-classifier evaluate -i curves -m curve_classifier.pt --labels qc_labels.csv -o evaluation`
    """
    import pandas as pd

    from nnunet_qa.files import write_csv, write_json
    from nnunet_qa.quality.operating_point import rates

    truth = _Truth(labels=labels, dice=dice, below=below, dataset=dataset, cases=cases)
    _one_thread()
    acquisitions, erroneous = _labelled(curves, truth)
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
    write_csv(output / _JUDGED, table.round(6))
    write_json(output / _SUMMARY, {"about": truth.about(curves), "classifiers": metrics})
    written = [_JUDGED, _SUMMARY]
    if _draw(output / _ROC, scores, erroneous, heading=f"{len(erroneous)} acquisitions"):
        written.append(_ROC)
    _show(metrics)
    _say(f"Wrote {', '.join(str(output / name) for name in written)}")


def predict(
    curves: CurvesFolder,
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
            "p_erroneous": probabilities,  # not rounded: good ones crowd near 0, and a ranking must tell them apart
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


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """The options that say which acquisitions are erroneous: what people said, or the Dice of their frames."""

    labels: Path | None
    dice: Path | None
    below: float | None
    dataset: str | None
    cases: Path | None

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.dice is None):
            raise SelectionError("give either --labels qc_labels.csv or --dice evaluation.csv")
        if self.labels is not None:
            useless = {"-d": self.dataset, "--cases": self.cases, "--erroneous-below": self.below}
            _refuse(useless, beside="--labels", instead="--dice")

    @property
    def limit(self) -> float:
        """Mean Dice below which an acquisition is erroneous."""
        return _BELOW if self.below is None else self.below

    def read(self) -> dict[str, bool]:
        """Whether each acquisition is erroneous."""
        from nnunet_qa.cases import CaseTable
        from nnunet_qa.cli.case_table import find_cases
        from nnunet_qa.quality.qc_labels import labels_by_dice, read_qc_labels

        if self.dice is None:
            assert self.labels is not None
            return read_qc_labels(self.labels)
        table = find_cases(self.dataset, self.cases)
        return labels_by_dice(self.dice, below=self.limit, cases=None if table is None else CaseTable.read(table))

    def about(self, curves: Path) -> dict[str, Any]:
        """What a result says about where it comes from."""
        limit = {} if self.dice is None else {"erroneous below Dice": self.limit}
        return {"curves": str(curves), "labels": str(self.labels or self.dice), **limit}


def _check_output(output: Path, *, overwrite: bool) -> None:
    if output.suffix != ".pt":
        raise ModelError(f"{output}: the file of a curve classifier ends in .pt; choose another -o")
    if output.exists() and not overwrite:
        raise ModelError(f"{output}: is there already; choose another -o, or use --overwrite")


def _of_lstm(kind: Kind, **given: Any) -> dict[str, Any]:
    """Those options of the LSTM that were given; the others keep the defaults of `CurveLSTM`."""
    if kind is not Kind.LSTM:
        _refuse(
            {f"--{name}": value for name, value in given.items()}, beside=f"--kind {kind.value}", instead="--kind lstm"
        )
    return {name: value for name, value in given.items() if value is not None}


def _refuse(useless: Mapping[str, object], *, beside: str, instead: str) -> None:
    """Refuse options that were given though they change nothing beside another one."""
    given = ", ".join(name for name, value in useless.items() if value is not None)
    if given:
        raise SelectionError(f"{beside} makes no use of {given}; leave that out, or choose {instead}")


def _read(curves: Path) -> list[Acquisition]:
    from nnunet_qa.quality.curve_files import read_curves

    acquisitions = read_curves(curves)
    if not acquisitions:
        raise SelectionError(f"{curves}: holds no acquisition; run `nnunet-qa curves` again")
    return acquisitions


def _labelled(curves: Path, truth: _Truth) -> tuple[list[Acquisition], np.ndarray]:
    from nnunet_qa.quality.qc_labels import labelled

    known = truth.read()
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
) -> bool:
    """Draw the ROC curves, if there are good and erroneous ones; whether there were."""
    if erroneous.all() or not erroneous.any():
        path.unlink(missing_ok=True)  # that of an earlier run shows other ones
        _say(f"No ROC curve: of {heading}, all are {'erroneous' if erroneous.any() else 'good'}.")
        return False
    from nnunet_qa.reports.curve_classifier_figures import Judged, roc_picture

    shown = {
        name: Judged(scores=judged, erroneous=erroneous, threshold=one.threshold_)
        for name, (one, judged) in scores.items()
    }
    roc_picture(path, shown, heading=heading)
    return True


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
