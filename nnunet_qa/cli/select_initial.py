"""`nnunet-qa select initial`: which images to annotate first, before there is any model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.errors import DatasetError, SelectionError
from nnunet_qa.quality.image_quality import METRICS, Definition
from nnunet_qa.quality.roi import Roi

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20


def register(group: typer.Typer) -> None:
    """Add the command to the group `select`."""
    group.command("initial")(initial)


def initial(
    output: Path = typer.Option(..., "-o", help="Folder for initial_set.csv and initial_set.png."),
    dataset: str | None = typer.Option(
        None, "-d", help="Dataset; its imagesUn, or imagesTr where there is none or with --roi labels."
    ),
    folder: Path | None = typer.Option(None, "-i", help="A folder of images, instead of -d."),
    roi: Roi = typer.Option(Roi.NONE, "--roi", help="Region in which CoV and mean are measured."),
    masks: Path | None = typer.Option(
        None, "--masks", help="Folder of masks or label maps for --roi mask or labels. Default with labels: labelsTr."
    ),
    labels: list[int] | None = typer.Option(
        None, "--label", help="Label value for --roi labels, repeatable. Default: all above 0."
    ),
    definition: Definition = typer.Option(Definition.PAPER, "--definition", help="Whose formulas and thresholds."),
    quantiles: tuple[float, float] | None = typer.Option(
        None, "--quantiles", help="Thresholds: these quantiles of blurriness and PSNR-inv instead of their means."
    ),
    epsilon: float | None = typer.Option(
        None,
        "--epsilon",
        help="Of images closer than this in CoV and mean keep the sharper one. Default 0.3; 0 for all.",
    ),
    target_size: int | None = typer.Option(None, "--target-size", help="Keep so many; finds the epsilon."),
    channel: int = typer.Option(0, "--channel", min=0, help="Channel that is measured."),
    offset: float = typer.Option(0.0, "--offset", help="Added to all intensities: 1024 for HU; none may be below 0."),
    median_size: int | None = typer.Option(
        None, "--median-size", min=1, help="Pixels of the median window. Default 3, of the reference code 20."
    ),
    jobs: int = typer.Option(1, "--jobs", min=1, help="Processes."),
) -> None:
    """Choose the images to annotate first: sharp, clean, and no two alike. No model is needed.

    Example: `nnunet-qa select initial -d 101 --roi retina --target-size 8 -o initial --jobs 4`
    """
    from nnunet_qa.quality.measure import measure_cases
    from nnunet_qa.reports.initial_set import initial_set_picture
    from nnunet_qa.selection.initial import FIGURE_NAME, FILE_NAME, initial_set, write_initial_set

    settings, subjects = _images(dataset, folder, roi, masks)
    first = next(iter(settings["images"].values()))
    each = "1 channel" if len(first) == 1 else f"{len(first)} channels"
    _say(f"Measuring {len(settings['images'])} cases of {each} each in {first[0].parent}.")
    settings |= {"definition": definition, "channel": channel, "offset": offset, "median_size": median_size}
    measured = measure_cases(**settings, roi=roi, labels=labels or (), jobs=jobs)
    table = initial_set(
        measured,
        definition=definition,
        quantiles=quantiles,
        epsilon=epsilon,
        target_size=target_size,
        subjects=subjects,
    )
    write_initial_set(output / FILE_NAME, table)
    initial_set_picture(output / FIGURE_NAME, table, definition=definition)
    _show(table, output / FILE_NAME, output / FIGURE_NAME)


def _images(
    dataset: str | None, folder: Path | None, roi: Roi, masks: Path | None
) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Which files are measured, as arguments of `measure_cases`, and the subjects of a dataset with a case table."""
    from nnunet_qa.cases import FILE_NAME, CaseTable
    from nnunet_qa.data.existing import read_dataset_json
    from nnunet_qa.data.images import holds_volumes
    from nnunet_qa.data.journal import refuse_unsettled
    from nnunet_qa.data.paths import raw_dataset_folder
    from nnunet_qa.data.pool import case_files
    from nnunet_qa.quality.measure import images_in

    if (dataset is None) == (folder is None):
        raise SelectionError("give either a dataset with -d or a folder of images with -i")
    if folder is not None:
        found, ending = images_in(folder)
        return {"images": found, "file_ending": ending, "masks": masks}, None
    raw = raw_dataset_folder(str(dataset))
    refuse_unsettled(raw)
    content = read_dataset_json(raw)
    ending = content["file_ending"]
    annotated = roi is Roi.LABELS and masks is None
    images: dict[str, list[Path]] = {}
    for name in ("imagesTr",) if annotated else ("imagesUn", "imagesTr"):
        if not images and (raw / name).is_dir():
            images = case_files(raw / name, ending, len(content["channel_names"]))
    if not images:
        raise DatasetError(f"{raw}: neither imagesUn nor imagesTr holds an image with the ending {ending}")
    table = raw / FILE_NAME
    settings = {
        "images": images,
        "file_ending": ending,
        "masks": raw / "labelsTr" if annotated else masks,
        "volumes": holds_volumes(content),
    }
    return settings, CaseTable.read(table).subjects() if table.is_file() else None


def _show(table: pd.DataFrame, path: Path, figure: Path) -> None:
    selected = table[table["selected"]]
    shown = Table("case", "subject", *METRICS, title="Initial set")
    for row in selected.head(_SHOWN).to_dict("records"):
        shown.add_row(row["case_id"], row["subject_id"], *(f"{row[metric]:.4g}" for metric in METRICS))
    Console().print(shown)
    rest = f" (the first {_SHOWN} are shown)" if len(selected) > _SHOWN else ""
    alike = table["reason"].str.startswith(("dropped: within", "dropped: less sharp")).sum()
    _say(
        f"Wrote {path} and {figure}: {len(selected)} of {len(table)} images{rest}; {len(selected) + alike} passed both "
        f"thresholds, epsilon {table['epsilon'].iloc[0]:.4g}."
    )


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(text)
