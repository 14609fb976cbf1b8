"""Options that several commands have, each with the same words everywhere; a command adds only its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnunet_qa.cli.device import Device

DatasetOption = Annotated[str, typer.Option("-d", help="Dataset number or name.")]
DatasetJson = Annotated[
    Path | None,
    typer.Option("--dataset-json", help="Default: dataset.json in the folder of predictions, where nnU-Net writes it."),
]
CasesFile = Annotated[Path | None, typer.Option("--cases", help="That case table, instead of -d.")]
SchemeKind = Annotated[str | None, typer.Option("--kind", help="Of your own scheme: volume or area. [volume]")]
SchemeEndDiastole = Annotated[
    str | None,
    typer.Option("--end-diastole", help="Of your own scheme: the first frame, or the one of the largest LV. [largest]"),
]
DeviceOption = Annotated[Device | None, typer.Option("-device", help="Default: cuda where there is one, else cpu.")]
Processes = Annotated[int, typer.Option("--jobs", "-np", min=1, help="Processes.")]
StartAnew = Annotated[bool, typer.Option("--overwrite", help="Start anew instead of going on.")]
DeleteEarlier = Annotated[bool, typer.Option("--overwrite", help="Start anew: delete what an earlier run wrote there.")]
ReplacePlans = Annotated[bool, typer.Option("--overwrite", help="Replace other plans of this name.")]
