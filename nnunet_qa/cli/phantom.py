"""`nnunet-qa phantom cine|cycle`: beating hearts with known curves, drawn or made from real pairs of images."""

from __future__ import annotations

import typing
from enum import Enum
from pathlib import Path

import typer
from rich.console import Console

from nnunet_qa.cli.options import DeleteEarlier


class View(str, Enum):
    """What a cine shows."""

    SHORT_AXIS = "sa"
    AORTIC = "ao"


class Format(str, Enum):
    """How it is written."""

    NIFTI = "nifti"
    DICOM = "dicom"


WrittenAs = typing.Annotated[Format, typer.Option("--format", help="NIfTI series, or UK Biobank's DICOM zips.")]


class Annotated(str, Enum):
    """Which frames get a mask."""

    ALL = "all"
    ED_ES = "ed_es"
    NONE = "none"


class LabelledFrames(str, Enum):
    """Which frames of a labelled acquisition become cases."""

    ED_ES = "ed_es"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Cine MR with known curves: drawn, or from real pairs of images.", no_args_is_help=True)
    group.command("cine")(cine)
    group.command("dataset")(dataset)
    group.command("cycle")(cycle)
    app.add_typer(group, name="phantom")


def cine(
    output: Path = typer.Option(..., "-o", help="Folder for the subjects."),
    view: View = typer.Option(View.SHORT_AXIS, "--view", help="sa: short-axis stack; ao: aorta, one slice."),
    subjects: int = typer.Option(5, "--subjects", min=1, help="How many."),
    disease: list[str] | None = typer.Option(
        None, "--disease", help="May be given several times. Default: all of the view in turn."
    ),
    frames: int | None = typer.Option(None, "--frames", min=3, help="Of one heartbeat. Default: 50 (sa), 100 (ao)."),
    written: WrittenAs = Format.NIFTI,
    annotated: Annotated = typer.Option(Annotated.ALL, "--annotated", help="Frames with a mask."),
    seed: int = typer.Option(0, "--seed", help="The same seed draws the same subjects."),
    overwrite: DeleteEarlier = False,
) -> None:
    """Draw cine MR of subjects who differ in anatomy, disease, contrast and artefacts.

    A run that was stopped goes on where it was. The true curves go to <eid>/true_curves.csv.

    Example: `nnunet-qa phantom cine -o phantoms --subjects 10`
    """
    from nnunet_qa.data.cine_subjects import Recipe, write_subjects

    recipe = Recipe.checked(view=view.value, diseases=disease, frames=frames, seed=seed)
    count = write_subjects(
        output,
        recipe,
        subjects=subjects,
        dicom=written is Format.DICOM,
        annotated=annotated.value,
        overwrite=overwrite,
    )
    _say(f"Drew {count} subjects in {output}; {subjects - count} were there already.")


def dataset(
    number: int = typer.Option(..., "-d", min=1, max=999, help="Number of the new dataset."),
    name: str = typer.Option("CinePhantom", "--name", help="Its name."),
    labelled: int = typer.Option(10, "--labelled", min=1, help="Subjects with masks, for training."),
    unlabelled: int = typer.Option(10, "--unlabelled", min=0, help="Subjects of the pool, without masks."),
    test: int = typer.Option(5, "--test", min=0, help="Subjects for testing."),
    labelled_frames: LabelledFrames = typer.Option(
        LabelledFrames.ED_ES, "--labelled-frames", help="Frames of the labelled subjects that become cases."
    ),
    view: View = typer.Option(View.SHORT_AXIS, "--view", help="sa: short-axis stack; ao: aorta, one slice."),
    disease: list[str] | None = typer.Option(
        None, "--disease", help="May be given several times. Default: all of the view in turn."
    ),
    frames: int | None = typer.Option(None, "--frames", min=3, help="Of one heartbeat. Default: 50 (sa), 100 (ao)."),
    seed: int = typer.Option(0, "--seed", help="The same seed draws the same subjects."),
    jobs: int = typer.Option(2, "--jobs", "-np", min=1, help="Processes of nnU-Net's check."),
    overwrite: DeleteEarlier = False,
) -> None:
    """Draw subjects into a raw nnU-Net dataset whose cases are the volumes of single frames.

    Subjects 1, 2, 3 … of `phantom cine` with the same seed: labelled ones first, then the pool, then those for testing.

    Example: `nnunet-qa phantom dataset -d 301 --labelled 10 --unlabelled 20 --test 10`
    """
    from nnunet_qa.data.cine_subjects import Recipe, write_dataset

    recipe = Recipe.checked(view=view.value, diseases=disease, frames=frames, seed=seed)
    folder, cases = write_dataset(
        number,
        name,
        recipe,
        labelled=labelled,
        unlabelled=unlabelled,
        test=test,
        frames_per_labelled=labelled_frames.value,
        jobs=jobs,
        overwrite=overwrite,
    )
    _say(f"Wrote {cases} cases of {labelled + unlabelled + test} subjects to {folder}.")


def cycle(
    images: Path = typer.Option(..., "-i", help="Folder with <patient>_ED.nii.gz and <patient>_ES.nii.gz."),
    labels: Path = typer.Option(..., "-l", help="Their masks under the same names: 1 LV, 2 myocardium, 3 RV."),
    output: Path = typer.Option(..., "-o", help="Folder for the patients."),
    frames: int = typer.Option(30, "--frames", min=3, help="Of the heartbeat."),
    spacing: tuple[float, float, float] | None = typer.Option(
        None, "--spacing", help="Z, y and x in mm, where the files do not say. Default: that of the ED image."
    ),
    written: WrittenAs = Format.NIFTI,
    annotated: Annotated = typer.Option(Annotated.ALL, "--annotated", help="Frames with a mask."),
    seed: int = typer.Option(0, "--seed", help="Of the noise that frames between the two images get."),
    overwrite: DeleteEarlier = False,
) -> None:
    """Build the whole heartbeat of real patients from an end-diastolic and an end-systolic volume each.

    Both volumes remain in the cycle as they are; frames between them are warped along a physiological volume curve.

    Example: `nnunet-qa phantom cycle -i images -l labels -o cycles --spacing 8 1.4 1.4`
    """
    from nnunet_qa.data.cine_subjects import write_cycles

    total, count = write_cycles(
        images,
        labels,
        output,
        frames=frames,
        spacing=spacing,
        dicom=written is Format.DICOM,
        annotated=annotated.value,
        seed=seed,
        overwrite=overwrite,
    )
    _say(f"Wrote {count} heartbeats to {output}; {total - count} were there already.")


def _say(line: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(line, markup=False)
