"""`nnunet-qa inject`: a new dataset that trains on the best predictions of the pool, too."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from nnunet_qa.errors import DatasetError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inject")(inject)


def inject(
    dataset: str = typer.Option(..., "-d", help="Dataset with the annotated cases and the pool, number or name."),
    target: int = typer.Option(..., "--target", help="Number of the new dataset."),
    ranking: Path = typer.Option(
        ..., "--ranking", help="ranking.csv of `nnunet-qa best-in-class`; all its cases are taken."
    ),
    predictions: Path = typer.Option(..., "--predictions", help="Folder with the predictions that were ranked."),
    name: str | None = typer.Option(None, "--name", help="Name of the new dataset. Default: that of the source."),
    round_number: int = typer.Option(1, "--round", min=1, help="Which round of injection this is."),
    model: str | None = typer.Option(None, "--model", help="Whose predictions they are. Default: as in the ranking."),
    force: bool = typer.Option(False, "--force", help="Replace an injected dataset, with its preprocessed data."),
) -> None:
    """Write a dataset whose training cases are the annotated ones and the best of the pool with their predictions.

    Images are referred to, not copied. Pseudo-labels never validate, and a fold does not train on one of a subject
    that it validates. cases.csv says which labels are pseudo-labels, and where they come from.

    Example: `nnunet-qa inject -d 111 --target 211 --ranking ranking.csv --predictions predictions`
    """
    from nnunet_qa.data.inject import inject as write
    from nnunet_qa.data.paths import PREPROCESSED, base_folder, new_dataset_name, raw_dataset_folder
    from nnunet_qa.selection.best_in_class_files import read_ranking

    source = raw_dataset_folder(dataset)
    if target == int(source.name[7:10]):
        raise DatasetError(f"{source.name}: is the source itself; choose another number with --target")
    full = new_dataset_name(target, name if name is not None else source.name[11:])
    preprocessed = base_folder(PREPROCESSED)
    done = write(
        source,
        source.parent / full,
        read_ranking(ranking, dataset=source.name),
        predictions,
        source_preprocessed=preprocessed / source.name,
        target_preprocessed=preprocessed / full,
        round_number=round_number,
        model=model,
        overwrite=force,
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"Wrote {done.folder}: {done.human} annotated cases and {done.pseudo} with pseudo-labels.")
    console.print(f"Left in the pool: {done.pool}.")
    if done.splits is not None:
        sizes = ", ".join(f"{len(fold['train'])}/{len(fold['val'])}" for fold in done.splits)
        console.print(f"Folds (training/validation, the latter annotated by people alone): {sizes}.")
    old = int(source.name[7:10])
    console.print(f"Next: nnUNetv2_plan_and_preprocess -d {target} --verify_dataset_integrity, to plan anew;")
    console.print(
        f"or nnUNetv2_extract_fingerprint -d {target}, nnUNetv2_move_plans_between_datasets -s {old} -t {target} "
        f"-sp nnUNetPlans -tp nnUNetPlans and nnUNetv2_preprocess -d {target}, to keep the plans of {source.name}."
    )
