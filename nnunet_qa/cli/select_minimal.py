"""`nnunet-qa select minimal`: the minimal set S_m, which the first model does not yet agree with itself on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from nnunet_qa.errors import DatasetError, SelectionError
from nnunet_qa.selection.minimal import Ranking

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_SHOWN, _Q0 = 20, 0.9


def register(group: typer.Typer) -> None:
    """Add the command to the group `select`."""
    group.command("minimal")(minimal)


def minimal(
    quality: Path = typer.Option(..., "-q", help="quality.csv of the pool, as `nnunet-qa score` writes it."),
    dataset: str | None = typer.Option(None, "-d", help="Dataset whose cases.csv gives the subjects and roles."),
    cases: Path | None = typer.Option(None, "--cases", help="A case table, instead of -d."),
    q0: float | None = typer.Option(
        None, "--q0", help=f"Take cases with Q below it, in [0, 1]. Default {_Q0}, but none with -n alone."
    ),
    q0_from: Path | None = typer.Option(
        None, "--q0-from", help="quality.csv of a training: choose q0 by its validation cases, whose Dice is known."
    ),
    failure_dice: float = typer.Option(0.5, "--failure-dice", help="Dice below which a validation case has failed."),
    by: Ranking = typer.Option(Ranking.Q, "--by", help="What makes a case worth annotating."),
    number: int | None = typer.Option(None, "-n", help="Take at most so many, the most useful first."),
    per_subject: int | None = typer.Option(None, "--per-subject", help="Take at most so many of one subject."),
    diverse: bool = typer.Option(
        False, "--diverse", help="Choose images that differ from each other and from the annotated ones; needs -d."
    ),
    roles: list[str] | None = typer.Option(None, "--role", help="Role of the candidates, repeatable."),
    output: Path | None = typer.Option(None, "-o", help="Folder for minimal_set.csv and .png. Default: that of -q."),
) -> None:
    """Write S_m of QU-Net++ (Algorithm 1): every case on which the two finest outputs agree less than q0.

    Annotate these, `nnunet-qa promote` them, preprocess, and fine-tune from the first weights.

    Example: `nnunet-qa select minimal -q predictions/quality.csv -d 101 --q0 0.9 -n 30`
    """
    from nnunet_qa.cases import CaseTable
    from nnunet_qa.cli.case_table import find_cases
    from nnunet_qa.quality.table import read_quality
    from nnunet_qa.reports.minimal_set import minimal_set_picture
    from nnunet_qa.selection.minimal import FILE_NAME, minimal_set, q0_from_validation, write_minimal_set
    from nnunet_qa.selection.queue import candidates

    if q0 is not None and q0_from is not None:
        raise SelectionError("give --q0 or --q0-from, not both")
    if diverse and dataset is None:
        raise DatasetError("--diverse looks at the images; give their dataset with -d")
    if q0_from is not None:
        q0 = q0_from_validation(read_quality(q0_from), failure=failure_dice)
    elif q0 is None and number is None:
        q0 = _Q0
    path = find_cases(dataset, cases)
    subjects = CaseTable.read(path) if path is not None else None
    table = candidates(read_quality(quality), roles=roles or None, cases=subjects)
    features, annotated = None, None
    if diverse and dataset is not None:
        features, annotated = _looks(dataset, table["case_id"].tolist())
    chosen = minimal_set(
        table,
        q0=q0,
        ranking=by,
        number=number,
        per_subject=per_subject,
        roles=roles or None,
        cases=subjects,
        features=features,
        annotated=annotated,
    )
    folder = output if output is not None else quality.parent
    write_minimal_set(folder / FILE_NAME, chosen)
    picture = minimal_set_picture(folder / "minimal_set.png", table, chosen, q0=q0, ranking=by)
    _show(chosen)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    rest = f" (the first {_SHOWN} are shown)" if len(chosen) > _SHOWN else ""
    threshold = "" if q0 is None else f"q0 = {q0:g}. "
    console.print(f"{threshold}Wrote {folder / FILE_NAME}: {len(chosen)} cases{rest}, and {picture}.")


def _show(chosen: pd.DataFrame) -> None:
    shown = Table("rank", "case", "subject", "Q", "reason", title=f"S_m: annotate these {len(chosen)}")
    for row in chosen.head(_SHOWN).itertuples(index=False):
        shown.add_row(str(row.rank), str(row.case_id), str(row.subject_id), f"{row.q:.4f}", str(row.reason))
    Console().print(shown)


def _looks(dataset: str, cases: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Thumbnails of the candidates, by case, and of the other cases of a dataset that are annotated."""
    import numpy as np

    from nnunet_qa.data.images import holds_volumes, read_array
    from nnunet_qa.data.paths import raw_dataset_folder, read_json
    from nnunet_qa.data.pool import case_files
    from nnunet_qa.progress import track
    from nnunet_qa.selection.diversity import thumbnail

    raw = raw_dataset_folder(dataset)
    content = read_json(raw / "dataset.json")
    files: dict[str, list[Path]] = {}
    for name in ("imagesTr", "imagesUn", "imagesTs"):
        if (raw / name).is_dir():
            files |= case_files(raw / name, content["file_ending"], len(content["channel_names"]))
    annotated = {path.name.removesuffix(content["file_ending"]) for path in (raw / "labelsTr").glob("*")}
    known = sorted((annotated & files.keys()) - set(cases))
    for case in cases:
        if case not in files:
            raise DatasetError(f"{raw}: the scored case {case} has no image there; leave out --diverse or check -d")
    volumes = holds_volumes(content)
    looks = {
        case: thumbnail(read_array(files[case][0], volumes=volumes))
        for case in track([*cases, *known], "looking at the images", len(cases) + len(known))
    }
    return looks, np.stack([looks[case] for case in known]) if known else None
