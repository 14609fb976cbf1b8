"""`nnunet-qa body-part`: where in the body slices are, and the same part of the body from many scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.cli.device import chosen_device
from nnunet_qa.cli.options import DeviceOption, Processes
from nnunet_qa.errors import ModelError, SelectionError

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20
_AXES = "z: from head to feet, y: from front to back, x: from right to left."


def register(app: typer.Typer) -> None:
    """Add the group and its commands."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode="markdown",
        help="Learn from scans without labels where in the body a slice is, and cut the same part out of all of them.",
    )
    for command in (fit, score, extract):
        group.command(command.__name__)(command)
    app.add_typer(group, name="body-part")


def fit(
    images: Path = typer.Option(..., "-i", help="Folder of volumes, such as imagesUn; labels are not needed."),
    output: Path = typer.Option(..., "-o", help="The model file to write, such as body_part.pt."),
    steps: int = typer.Option(1000, "--steps", min=1, help="Steps of the optimiser."),
    size: int = typer.Option(64, "--size", min=16, help="Rows and columns to which slices are shrunk."),
    window: str | None = typer.Option(
        None,
        "--window",
        metavar="LOW,HIGH",
        help="Intensities from black to white. Default: 0.5 to 99.5% of each scan.",
    ),
    axis: str = typer.Option("z", "--axis", help=f"Axis of the patient, found through the files' geometry. {_AXES}"),
    landmarks: Path | None = typer.Option(
        None,
        "--landmarks",
        help="CSV with case_id, slice_index, score: what scores mean. Default: -12 is where a typical scan of the "
        "folder begins, 12 where it ends.",
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Seed of the training."),
    device: DeviceOption = None,
    jobs: int = typer.Option(2, "--jobs", "-np", min=1, help="Processes for reading."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a model that is there."),
) -> None:
    """Learn the order of slices from a folder of volumes; a run that was stopped goes on where it was.

    Example: `nnunet-qa body-part fit -i imagesUn -o body_part.pt --window -175,275`
    """
    from nnunet_qa.data.slice_stack import BodyAxis, SliceSpec, field_of_view, read_stacks
    from nnunet_qa.quality.body_part import BodyPartRegressor
    from nnunet_qa.quality.body_part_file import save
    from nnunet_qa.quality.body_part_scale import read_landmarks

    if output.suffix != ".pt":
        raise ModelError(f"{output}: name a file that ends in .pt, such as body_part.pt")
    if output.exists() and not overwrite:
        raise ModelError(f"{output}: is there already; choose another name, or replace it with --overwrite")
    known = [one.value for one in BodyAxis]
    if axis not in known:
        raise SelectionError(f'--axis "{axis}": must be one of {", ".join(known)}')
    limits = _numbers(window, "--window", 2) if window is not None else None
    if limits is not None and not limits[0] < limits[1]:
        raise SelectionError(f'--window "{window}": the first number must be lower than the second')
    given = read_landmarks(landmarks) if landmarks is not None else []
    place = chosen_device(device)
    paths = _first_channels(images)
    spec = SliceSpec(
        size=size,
        field_of_view=field_of_view(list(paths.values()), BodyAxis(axis)),
        window=(limits[0], limits[1]) if limits is not None else None,
        axis=BodyAxis(axis),
    )
    volumes = read_stacks(paths, spec, jobs=jobs, show_progress=True)
    regressor = BodyPartRegressor(spec, steps=steps, seed=seed, device=place)
    regressor.fit(volumes, landmarks=given, state=output.with_suffix(".state"), show_progress=True)
    save(regressor, output)
    _show(regressor.score(volumes), "The scans that were learnt from")
    console = _console()
    console.print(f"Scale: {regressor.scale_.meaning}.")
    console.print(f"Wrote {output}. Next, with scans that it has not seen: nnunet-qa body-part score -m {output} -i …")


def score(
    images: Path = typer.Option(..., "-i", help="Folder of volumes."),
    model: Path = typer.Option(..., "-m", help="Model file, as `body-part fit` writes it."),
    output: Path = typer.Option(..., "-o", help="Folder for body_part.csv, body_part_scans.csv and body_part.png."),
    device: DeviceOption = None,
    jobs: int = typer.Option(2, "--jobs", "-np", min=1, help="Processes for reading."),
) -> None:
    """Write the score of every slice, and how well scores follow the order of the slices.

    Example: `nnunet-qa body-part score -i imagesTs -m body_part.pt -o scores`
    """
    import pandas as pd

    from nnunet_qa.data.slice_stack import read_stacks
    from nnunet_qa.files import write_csv
    from nnunet_qa.quality.body_part import monotonicity_table, score_table
    from nnunet_qa.quality.body_part_file import load
    from nnunet_qa.reports.body_part import score_curves

    regressor = load(model, device=chosen_device(device))
    volumes = read_stacks(_first_channels(images), regressor.spec, jobs=jobs, show_progress=True)
    scores = [regressor.predict(volume) for volume in volumes]
    scans = monotonicity_table(volumes, scores)
    slices = pd.concat([score_table(*one) for one in zip(volumes, scores, strict=True)], ignore_index=True)
    write_csv(output / "body_part.csv", slices)
    write_csv(output / "body_part_scans.csv", scans.round(4))
    score_curves(output / "body_part.png", slices, scans)
    _show(scans, "Scans")
    console = _console()
    for case in scans.loc[scans["spearman"] < 0, "case_id"]:
        console.print(f'The scores of "{case}" fall where they should grow: is its direction wrong in the file?')
    console.print(f"Wrote {output / 'body_part.csv'}, body_part_scans.csv and body_part.png beside it.")


def extract(
    images: Path = typer.Option(..., "-i", help="Folder of volumes."),
    model: Path = typer.Option(..., "-m", help="Model file, as `body-part fit` writes it."),
    output: Path = typer.Option(..., "-o", help="Folder for images/, labels/ and slabs.csv."),
    low: float = typer.Option(-6.0, "--from", help="Score at which the slab begins."),
    high: float = typer.Option(6.0, "--to", help="Score at which it ends."),
    spacing: str = typer.Option("2,2,6", "--spacing", metavar="MM,MM,MM", help="Across the body, twice, and along it."),
    size: str = typer.Option("168,168,64", "--size", metavar="N,N,N", help="Voxels, in the same order."),
    labels: Path | None = typer.Option(None, "--labels", help="Folder of label maps, to be cut in the same way."),
    min_covered: float = typer.Option(
        0.9, "--min-covered", min=0.0, max=1.0, help="Leave out scans that hold a smaller share of the range of scores."
    ),
    jobs: Processes = 2,
    overwrite: bool = typer.Option(False, "--overwrite", help="Do everything again instead of going on."),
) -> None:
    """Cut the slab between two scores out of every scan, all on the same grid; a run that was stopped goes on.

    Example: `nnunet-qa body-part extract -i imagesTr -m body_part.pt -o slabs --from -6 --to 6 --labels labelsTr`
    """
    from nnunet_qa.data.slab import SlabSpec
    from nnunet_qa.quality.measure import images_in
    from nnunet_qa.quality.slabs import TABLE, SlabWish, extract_slabs

    steps, counts = _numbers(spacing, "--spacing", 3), _numbers(size, "--size", 3)
    if any(count % 1 for count in counts):
        raise SelectionError(f'--size "{size}": must be whole numbers')
    grid = SlabSpec(spacing=(steps[0], steps[1], steps[2]), size=(int(counts[0]), int(counts[1]), int(counts[2])))
    cases, ending = images_in(images)
    table = extract_slabs(
        cases,
        file_ending=ending,
        model=model,
        output=output,
        wish=SlabWish(low=low, high=high, min_covered=min_covered, grid=grid),
        labels=labels,
        overwrite=overwrite,
        jobs=jobs,
    )
    console = _console()
    for row in table[table["left_out"].notna()].itertuples(index=False):
        console.print(f"{row.case_id} is left out: {row.left_out}")
    length = (table["to_mm"] - table["from_mm"]).abs()
    cut = int((length > grid.size[2] * grid.spacing[2]).sum())
    if cut:
        console.print(f"{cut} slabs are longer than {grid.size[2]} slices of {grid.spacing[2]:g} mm: cut at both ends.")
    console.print(f"Wrote {table['left_out'].isna().sum()} slabs of {len(table)} scans and {output / TABLE}.")


def _first_channels(folder: Path) -> dict[str, Path]:
    from nnunet_qa.quality.measure import images_in

    return {case: paths[0] for case, paths in images_in(folder)[0].items()}


def _numbers(text: str, option: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(abs(number) < float("inf") for number in numbers):
        raise SelectionError(f'{option} "{text}": must be {count} numbers parted by commas')
    return numbers


def _show(scans: pd.DataFrame, title: str) -> None:
    """The scans whose scores follow the order least."""
    shown = Table("case", "slices", "scored", "Spearman", "increasing", "smoothed", title=title)
    for row in scans.sort_values("spearman", kind="stable").head(_SHOWN).itertuples(index=False):
        numbers = (row.spearman, row.increasing, row.increasing_smoothed)
        shown.add_row(row.case_id, str(row.slices), str(row.scored), *(f"{number:.3f}" for number in numbers))
    if len(scans) > _SHOWN:
        shown.caption = f"the {_SHOWN} lowest of {len(scans)}"
    Console().print(shown)


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
