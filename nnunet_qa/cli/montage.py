"""`nnunet-qa montage`: each prediction as one picture of slices, for people who give quality codes."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import typer
from rich.console import Console

from nnunet_qa.cli.options import DatasetJson, Processes


class View(str, Enum):
    """How a volume is cut, in the order of the axes of a volume in LPS orientation."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("montage")(montage)


def montage(
    predictions: Path = typer.Option(..., "-p", help="Folder of predicted label maps."),
    images: Path = typer.Option(..., "-i", help="Folder of their images, named like case_0000.nii.gz."),
    output: Path = typer.Option(..., "-o", help="Where the pictures go."),
    dataset: str | None = typer.Option(None, "-d", help="Dataset that gives dataset.json."),
    dataset_json: DatasetJson = None,
    channel: int = typer.Option(0, "--channel", min=0, help="Image channel that is shown."),
    window: tuple[float, float] | None = typer.Option(
        None,
        "--window",
        help="Intensities shown as black and white. Default: -175 275 where the channel is named CT, else the 0.5 and "
        "99.5 percentiles of each image.",
    ),
    view: View | None = typer.Option(
        None, "--view", help="Slices of volumes. Default: as they were taken, where they are thick, else axial."
    ),
    grid: tuple[int, int] | None = typer.Option(
        None, "--grid", help="Rows and columns of tiles. Default: up to 8 8, no more than there are slices."
    ),
    tile: int | None = typer.Option(
        None, "--tile", min=1, help="Pixels of a tile's longer side. Default: 168; for 2D images their own size."
    ),
    legend: bool = typer.Option(False, "--legend", help="Names of the classes beside their colours, below."),
    jobs: Processes = 2,
    overwrite: bool = typer.Option(False, "--overwrite", help="Draw pictures again that are up to date."),
) -> None:
    """Draw each predicted case as one PNG: slices in gray on a grid, with the classes in colour.

    Look at the pictures and write a code for each case into qa_codes.csv: 0 success, 1 errors as published methods make
    them, 2 gross failure. A run that was stopped goes on where it was.

    Example: `nnunet-qa montage -p predictions -i imagesTs -o montages --legend`
    """
    from nnunet_qa.cli.dataset_json import find_dataset_json
    from nnunet_qa.data.paths import read_json
    from nnunet_qa.reports.montage_pictures import Look, montage_pictures

    source = find_dataset_json(predictions, dataset, dataset_json)
    pictures, drawn = montage_pictures(
        predictions,
        images,
        output,
        dataset_json=read_json(source),
        source=str(source),
        look=Look(
            channel=channel,
            window=window,
            axis=list(View).index(view) if view is not None else None,
            grid=grid,
            tile=tile,
            legend=legend,
        ),
        jobs=jobs,
        overwrite=overwrite,
    )
    kept = f", {len(pictures) - drawn} were up to date" if drawn < len(pictures) else ""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(
        f"Drew {drawn} pictures in {output}{kept}."
    )
