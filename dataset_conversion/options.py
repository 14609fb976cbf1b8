"""Options that all conversion commands have, as types of their parameters; the defaults stand with the parameters."""

from __future__ import annotations

from typing import Annotated

import typer

Number = Annotated[int, typer.Option("-d", "--dataset", help="Dataset number, 1 to 999.")]
Jobs = Annotated[int, typer.Option("-np", "--jobs", help="Processes.")]
Dask = Annotated[str | None, typer.Option("--dask", help="Address of a Dask scheduler, such as tcp://host:8786.")]
Folds = Annotated[int, typer.Option("--folds", help="Cross-validation folds, grouped by subject.")]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Stop at the first file that cannot be converted, or is left out at the cost of an image or a mask.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete an earlier conversion of this dataset.")]
