"""Options that the experiments share; a command adds only its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[str, typer.Option("-d", help="Raw dataset with every case annotated and a cases.csv.")]
Output = Annotated[Path, typer.Option("-o", help="Folder of the experiment; run again to go on.")]
Configuration = Annotated[str, typer.Option("-c", help="2d or 3d_fullres.")]
BudgetName = Annotated[str, typer.Option("--budget", help="cpu, gpu, or a YAML file with a budget.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Draws, with commas between them; may be extended later.")]
Arms = Annotated[str, typer.Option("--arms", help="Arms, with commas between them. Default: all.")]
Success = Annotated[float, typer.Option("--success", min=0.0, max=1.0, help="Dice from which a case has code 0.")]
Failure = Annotated[float, typer.Option("--failure", min=0.0, max=1.0, help="Dice below which a case has code 2.")]
TestFolds = Annotated[
    int, typer.Option("--test-folds", min=2, help="Seed s tests fold s of so many folds of subjects.")
]
ValidationSubjects = Annotated[int, typer.Option("--validation-subjects", min=1, help="Subjects for validation.")]
FitEpochs = Annotated[int, typer.Option("--fit-epochs", min=1, help="Epochs of the discriminator, at most.")]
Jobs = Annotated[int, typer.Option("--jobs", "-np", min=1, help="Processes of each command.")]
ReportOnly = Annotated[bool, typer.Option("--report-only", help="Write tables and figures of what is done.")]
