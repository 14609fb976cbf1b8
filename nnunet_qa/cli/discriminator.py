"""`nnunet-qa discriminator`: learn quality codes, say how well they were learnt, and code predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.cli.device import chosen_device
from nnunet_qa.cli.options import DatasetOption, DeviceOption
from nnunet_qa.errors import DatasetError, ModelError, SelectionError

if TYPE_CHECKING:
    from nnunet_qa.inference.case_montages import CaseRenderer
    from nnunet_qa.inference.coded_dataset import CodedDataset

_CURVE, _CONFUSION = "learning_curve.png", "confusion.png"
_FOLDER, _JUDGED, _SUMMARY = "qa_evaluation", "qa_evaluation.csv", "qa_evaluation.json"
_FIGURES = ("spearman", "aurc", "e_aurc", "auroc")
_Drawing = Annotated[int, typer.Option("--jobs", "-np", min=1, help="Processes that draw.")]


def register(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(
        name="discriminator", no_args_is_help=True, help="The network that gives predictions a quality code (0, 1, 2)."
    )
    for command in (fit, evaluate, predict):
        group.command()(command)
    app.add_typer(group)


def fit(
    dataset: DatasetOption,
    configuration: str = typer.Option(..., "-c", help="Configuration: 2d, 3d_fullres, …"),
    plans: str = typer.Option("nnUNetPlans", "-p", "--plans", help="Plans identifier."),
    predictions: Path | None = typer.Option(None, "--predictions", help="Folder of predicted label maps with codes."),
    codes: Path | None = typer.Option(None, "--codes", help="qa_codes.csv of these predictions."),
    truths: Path | None = typer.Option(None, "-gt", help="True label maps of these predictions: codes by Dice."),
    model: Path | None = typer.Option(
        None, "--cross-validation", help="Model folder; its validation predictions, coded by Dice with labelsTr."
    ),
    simulate: bool = typer.Option(True, "--simulate/--no-simulate", help="Errors simulated in annotated cases."),
    per_code: int = typer.Option(4, "--per-code", min=1, help="Simulated errors of each code in each case."),
    success: float | None = typer.Option(
        None, "--success", help="Code 0 from this Dice up. Default: qa.yaml, else 0.8."
    ),
    failure: float | None = typer.Option(None, "--failure", help="Code 2 below this Dice. Default: qa.yaml, else 0.5."),
    window: tuple[float, float] | None = typer.Option(
        None, "--window", help="HU shown as black and white. Default: qa.yaml, else -175 275."
    ),
    slices: int | None = typer.Option(
        None, "--slices", min=1, help="Slices shown, rounded up to fill the grid. Default: as a training shows."
    ),
    epochs: int = typer.Option(200, "--epochs", min=1, help="At most so many."),
    patience: int = typer.Option(20, "--patience", min=1, help="Stop after so many without a better validation RMSE."),
    learning_rate: float = typer.Option(1e-4, "--learning-rate", min=1e-9, help="Of Adam."),
    batch_size: int = typer.Option(16, "--batch-size", min=2, help="Pictures a step."),
    noise: float = typer.Option(
        0.0, "--noise", min=0.0, help="Standard deviation of noise on the pictures, in [0, 1]."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of the split, the draws and the simulated errors."),
    weights: Path | None = typer.Option(None, "--weights", help="State dict of torchvision's ResNet-18 to start from."),
    output: Path | None = typer.Option(
        None,
        "-o",
        help="Where to write. Default: nnUNet_results/DatasetXXX/qa/discriminator.pt, which QAsemiTrainer uses.",
    ),
    jobs: _Drawing = 2,
    device: DeviceOption = None,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a discriminator that is there."),
) -> None:
    """Learn quality codes from people, cross-validation and simulated errors, whichever are given.

    Subjects are split 80/10/10; the epoch of the best validation RMSE is kept. Writes the discriminator, a description
    of it (.json), the learning curve and the confusion matrix.

    Example: `nnunet-qa discriminator fit -d 101 -c 2d --predictions predictions --codes qa_codes.csv`
    """
    import numpy as np

    from nnunet_qa.inference.coded_dataset import CodedDataset, gather
    from nnunet_qa.networks.discriminator import resnet18_regressor
    from nnunet_qa.quality.discriminator import Discriminator

    known = CodedDataset.find(dataset, plans)
    path = output if output is not None else _default_file(known.raw.name)
    if path.exists() and not overwrite:
        raise ModelError(f"{path}: is there already; choose another -o, or use --overwrite")
    where = chosen_device(device)
    resnet18_regressor(weights)  # refuses weights of something else, before hours of drawing
    thresholds = _thresholds(known.settings, success, failure)
    renderer = _renderer(known, configuration, window=window, slices=slices)
    montages = gather(
        known,
        renderer,
        predictions=predictions,
        codes=codes,
        truths=truths,
        model=model,
        per_code=per_code if simulate else None,
        thresholds=thresholds,
        rng=np.random.default_rng(seed),
        jobs=jobs,
    )
    fitted = Discriminator(
        renderer.renderer.specs[0],
        known.classes,
        learning_rate=learning_rate,
        batch_size=batch_size,
        epochs=epochs,
        patience=patience,
        noise=noise,
        seed=seed,
        weights=weights,
        device=where,
    ).fit(montages)
    about = {
        "configuration": configuration,
        "plans": plans,
        "thresholds": vars(thresholds),
        "codes": {source: montages.sources.count(source) for source in sorted(set(montages.sources))},
    }
    _write_fitted(path, fitted, dataset=known.plans["dataset_name"], about=about)


def evaluate(
    discriminator: Path = typer.Option(..., "-i", help="discriminator.pt"),
    dataset: str = typer.Option(..., "-d", help="Dataset number or name."),
    configuration: str = typer.Option(..., "-c", help="Configuration that the discriminator was made for."),
    predictions: Path = typer.Option(..., "-p", "--predictions", help="Folder of predicted label maps."),
    codes: Path | None = typer.Option(None, "--codes", help="qa_codes.csv of these predictions."),
    truths: Path | None = typer.Option(None, "-gt", help="Folder of true label maps, with the same names."),
    plans: str = typer.Option("nnUNetPlans", "--plans", help="Plans identifier."),
    success: float | None = typer.Option(
        None, "--success", help="Code 0 from this Dice up. Default: qa.yaml, else 0.8."
    ),
    failure: float | None = typer.Option(None, "--failure", help="Code 2 below this Dice. Default: qa.yaml, else 0.5."),
    output: Path | None = typer.Option(
        None, "-o", help="Folder to write to. Default: qa_evaluation in that of the predictions."
    ),
    resamples: int = typer.Option(1000, "--resamples", min=0, help="Bootstrap draws; 0 for no intervals."),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of the bootstrap."),
    jobs: _Drawing = 2,
    device: DeviceOption = None,
) -> None:
    """Compare the codes of a discriminator with those of people, or with codes by Dice, or with both.

    Where the Dice is known, also says how well the code finds failures, beside Q of a quality.csv with the predictions.
    Writes qa_evaluation.csv (one row a case and source of codes), qa_evaluation.json and confusion.png.

    Example: `nnunet-qa discriminator evaluate -i discriminator.pt -d 101 -c 2d -p predictions -gt labelsTs`
    """
    import numpy as np

    from nnunet_qa.files import write_csv, write_json
    from nnunet_qa.inference.coded_cases import judged
    from nnunet_qa.inference.coded_dataset import CodedDataset
    from nnunet_qa.quality.judged_codes import judge_against_dice, metrics_by_source
    from nnunet_qa.reports.discriminator_figures import confusion_picture

    known = CodedDataset.find(dataset, plans)
    thresholds = _thresholds(known.settings, success, failure)
    folder = output if output is not None else predictions / _FOLDER
    if known.file_ending == ".png" and folder.resolve() == predictions.resolve():
        raise DatasetError(f"{folder}: {_CONFUSION} would pass for a prediction there; choose another folder with -o")
    loaded, renderer = known.load(discriminator, configuration, device=chosen_device(device))
    files, table = known.coded(predictions, codes=codes, truths=truths, thresholds=thresholds)
    table.insert(1, "subject_id", table["case_id"].map({case.case_id: case.subject for case in files}))
    _add_q(table, predictions)
    table["predicted_code"] = table["case_id"].map(dict(judged(loaded, renderer, files, jobs=jobs)))
    metrics = metrics_by_source(table["predicted_code"].to_numpy(), table["code"].to_numpy(), table["source"].tolist())
    against_dice = judge_against_dice(
        table.drop_duplicates("case_id"),
        failure_dice=thresholds.failure,
        rng=np.random.default_rng(seed),
        resamples=resamples,
    )
    about = {"discriminator": discriminator, "predictions": predictions, "codes": codes, "truth": truths}
    named = {name: str(value) for name, value in about.items() if value is not None}
    settings = {"thresholds": vars(thresholds), "bootstrap draws": resamples, "seed": seed}
    write_csv(folder / _JUDGED, table.round(6))
    write_json(folder / _SUMMARY, {"about": {**named, **settings}, "codes": metrics, "against_dice": against_dice})
    confusion_picture(folder / _CONFUSION, metrics["confusion"], heading=known.raw.name)
    _show_metrics({"evaluated": metrics})
    _show_against_dice(against_dice)
    _say(f"Wrote {', '.join(str(folder / name) for name in (_JUDGED, _SUMMARY, _CONFUSION))}")


def predict(
    discriminator: Path = typer.Option(..., "-i", help="discriminator.pt"),
    dataset: str = typer.Option(..., "-d", help="Dataset number or name."),
    configuration: str = typer.Option(..., "-c", help="Configuration that the discriminator was made for."),
    predictions: Path = typer.Option(..., "-p", "--predictions", help="Folder of predicted label maps."),
    output: Path | None = typer.Option(None, "-o", help="Default: qa_predicted.csv in the folder of predictions."),
    plans: str = typer.Option("nnUNetPlans", "--plans", help="Plans identifier."),
    into_quality: bool = typer.Option(
        False, "--into-quality", help="Also add the column qa_code to the quality.csv beside the predictions."
    ),
    jobs: _Drawing = 2,
    device: DeviceOption = None,
    overwrite: bool = typer.Option(False, "--overwrite", help="Code everything again instead of going on."),
) -> None:
    """Give each prediction of a folder a quality code: 0 success, 1 minor errors, 2 failure.

    Writes qa_predicted.csv: case_id, predicted_code (a number), code (rounded), model. A run that was stopped goes on.

    Example: `nnunet-qa discriminator predict -i discriminator.pt -d 101 -c 2d -p predictions`
    """
    from nnunet_qa.inference.coded_cases import PREDICTED, judge_folder
    from nnunet_qa.inference.coded_dataset import CodedDataset
    from nnunet_qa.quality.judged_codes import add_to_quality
    from nnunet_qa.quality.table import FILE_NAME, read_quality

    known = CodedDataset.find(dataset, plans)
    files = known.predictions(predictions)
    if into_quality:
        read_quality(predictions / FILE_NAME)  # before hours of drawing
    loaded, renderer = known.load(discriminator, configuration, device=chosen_device(device))
    path = output if output is not None else predictions / PREDICTED
    table = judge_folder(path, discriminator, loaded, renderer, files, overwrite=overwrite, jobs=jobs)
    counts = table["code"].value_counts()
    found = ", ".join(f"{counts.get(code, 0)} with code {code}" for code in range(3))
    _say(f"Wrote {path}: {len(table)} predictions, {found}")
    if into_quality:
        add_to_quality(predictions / FILE_NAME, table)
        _say(f"Added the column qa_code to {predictions / FILE_NAME}")


def _default_file(name: str) -> Path:
    from nnunet_qa.data.paths import RESULTS, base_folder
    from nnunet_qa.quality.discriminator_file import FILE_NAME

    return base_folder(RESULTS) / name / "qa" / FILE_NAME


def _renderer(
    known: CodedDataset, configuration: str, *, window: tuple[float, float] | None, slices: int | None
) -> CaseRenderer:
    """Draws the montages, with the window of the user in place of the one of qa.yaml."""
    settings = known.settings if window is None else known.settings.model_copy(update={"window": window})
    renderer = known.renderer(configuration, settings, slices=slices)
    if window is not None and renderer.renderer.window is None:
        raise SelectionError("--window is for CT; the images of this dataset each have percentiles of their own")
    return renderer


def _thresholds(settings: Any, success: float | None, failure: float | None) -> Any:
    from nnunet_qa.quality.codes import CodeThresholds

    given = settings.codes
    return CodeThresholds(given.success if success is None else success, given.failure if failure is None else failure)


def _write_fitted(path: Path, fitted: Any, *, dataset: str, about: dict[str, Any]) -> None:
    """The discriminator and its figures; the file last, for it says that all is done."""
    from nnunet_qa.quality.discriminator_file import save
    from nnunet_qa.reports.discriminator_figures import confusion_picture, learning_curve_picture

    part, metrics = list(fitted.metrics_.items())[-1]  # the test, where there are subjects for one
    learning_curve_picture(path.parent / _CURVE, fitted.history_, best_epoch=fitted.best_epoch_, heading=dataset)
    confusion_picture(path.parent / _CONFUSION, metrics["confusion"], heading=f"{dataset}, {part}")
    save(fitted, path, dataset=dataset, about=about)
    _show_metrics(fitted.metrics_)
    subjects = fitted.parts_.groupby("part")["subject"].nunique()
    _say(f"Subjects: {', '.join(f'{number} {part}' for part, number in subjects.items())}.")
    _say(f"Epoch {fitted.best_epoch_} of {len(fitted.history_)} was kept. Wrote {path}")


def _add_q(table: Any, predictions: Path) -> None:
    """Add Q where the predictions were scored."""
    from nnunet_qa.quality.table import FILE_NAME, read_quality

    path = predictions / FILE_NAME
    if not path.is_file():
        return
    table["q"] = table["case_id"].map(read_quality(path).set_index("case_id")["q"])
    if table["q"].isna().any():
        case = table.loc[table["q"].isna(), "case_id"].iloc[0]
        raise SelectionError(f'{path}: has no row of the case "{case}"; score all predictions of the folder')


def _show_metrics(parts: dict[str, dict[str, Any]]) -> None:
    shown = Table("part", "source", "n", "accuracy", "RMSE", "recall 0", "recall 1", "recall 2", "AUROC", title="Codes")
    for part, metrics in parts.items():
        for source, own in {"all": metrics, **metrics["by_source"]}.items():
            numbers = (own["accuracy"], own["rmse"], *own["recall"], own["auroc"])
            shown.add_row(part, source, str(own["n"]), *(_text(number) for number in numbers))
    Console().print(shown)


def _show_against_dice(judged: dict[str, dict[str, Any]]) -> None:
    if not judged:
        return
    shown = Table("score", *_FIGURES, title=f"Against the Dice of {judged['qa_code']['cases']} cases")
    for name, detection in judged.items():
        shown.add_row(name, *(_text(detection["values"][figure]) for figure in _FIGURES))
    Console().print(shown)


def _text(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(text)
