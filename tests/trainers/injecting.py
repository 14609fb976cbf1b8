"""A trainer that injects, on the tiny dataset, and a judge of its predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnunet_qa.cases import CaseTable
from tests.phantom import trainer_of
from tests.trainers.semi import settings

PLAIN: dict[str, Any] = {"qa_loss": {"enabled": False}}
POOL = [f"P0_c{number}" for number in range(4)]


def injecting(qa_yaml: Any, dataset: str, configuration: str = "2d", *, fold: int | str = 0, **own: Any) -> Any:
    """A trainer of three epochs with a round before the second and the third."""
    training = {"training": {"epochs": 3, "iterations_per_epoch": 2, "val_iterations_per_epoch": 1}}
    more = own.pop("sections", PLAIN)
    section = {"enabled": True, "at": [0.34, 0.67], "stop_when_worse": False, **own}
    qa_yaml(settings(injection=section, **training, **more))
    return trainer_of(dataset, configuration, fold)


def rename_cases(folder: Path, **columns: Any) -> None:
    """Change columns of cases.csv, each by a function of the case."""
    frame = CaseTable.read(folder / "cases.csv").frame
    for column, of_case in columns.items():
        frame[column] = [of_case(case) for case in frame["case_id"]]
    CaseTable.from_rows(frame.to_dict("records")).write(folder / "cases.csv")


class Judge:
    """A curve classifier that says what the test wants, and remembers what it saw."""

    def __init__(self, said: dict[str, float]) -> None:
        self.said = said
        self.seen: list[Any] = []

    def predict_proba(self, acquisitions: Any) -> np.ndarray:
        self.seen = list(acquisitions)
        return np.array([self.said[one.acquisition_id] for one in acquisitions])
