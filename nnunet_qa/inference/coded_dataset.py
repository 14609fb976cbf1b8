"""A planned dataset as a source of coded cases: what people, cross-validation and simulated errors say of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable
from nnunet_qa.config import QAConfig, QALossConfig
from nnunet_qa.data.existing import read_dataset_json
from nnunet_qa.data.partial_labels import labelled_classes
from nnunet_qa.data.paths import dataset_name, raw_dataset_folder, read_plans
from nnunet_qa.errors import DatasetError, ModelError, SelectionError
from nnunet_qa.inference.case_montages import (
    CaseFiles,
    CaseRenderer,
    case_files_of,
    case_renderer,
    dataset_images,
    label_maps,
)
from nnunet_qa.inference.coded_cases import coded_montages, dice_codes, load_for, simulated_cases
from nnunet_qa.inference.predictor import class_names
from nnunet_qa.quality.coded_montages import CodedMontages, subject_parts
from nnunet_qa.quality.codes import CodeSource, CodeThresholds, read_codes
from nnunet_qa.quality.discriminator import Discriminator

logger = logging.getLogger(__name__)

Coded = tuple[list[CaseFiles], pd.DataFrame]
"""Predictions, and their codes: `case_id`, `code`, `source`, `dice`."""


@dataclass(frozen=True, kw_only=True)
class CodedDataset:
    """A raw dataset with its plans.

    Attributes:
        raw: `nnUNet_raw/DatasetXXX`.
        dataset_json: content of its dataset.json.
        plans: content of the plans file.
        settings: `qa_loss` of its `qa.yaml`.
        images: channel files of all cases.
        table: the case table, where there is one.
    """

    raw: Path
    dataset_json: dict[str, Any]
    plans: dict[str, Any]
    settings: QALossConfig
    images: dict[str, list[Path]]
    table: CaseTable | None

    @classmethod
    def find(cls, dataset: str, plans_identifier: str) -> CodedDataset:
        """Read what nnU-Net's folders hold of a dataset given by number or name.

        Raises:
            DatasetError: the dataset is missing, has no image or has not been planned.
            EnvironmentVariableError: nnU-Net's paths are not set.
            CaseTableError: cases.csv is wrong.
            ConfigError: qa.yaml is wrong.
        """
        name = dataset_name(dataset)
        raw = raw_dataset_folder(name)
        dataset_json = read_dataset_json(raw)
        return cls(
            raw=raw,
            dataset_json=dataset_json,
            plans=read_plans(name, plans_identifier),
            settings=QAConfig.find(raw)[0].qa_loss,
            images=dataset_images(raw, dataset_json),
            table=CaseTable.read(raw / CASES) if (raw / CASES).is_file() else None,
        )

    @property
    def file_ending(self) -> str:
        """File ending of images and label maps."""
        return str(self.dataset_json["file_ending"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the foreground classes or regions."""
        return class_names(self.dataset_json, PlansManager(self.plans).get_label_manager(self.dataset_json))

    def renderer(self, configuration: str, settings: QALossConfig, *, slices: int | None) -> CaseRenderer:
        """See `case_renderer`."""
        anyone = next(iter(self.images.values()))
        return case_renderer(self.plans, configuration, self.dataset_json, settings, images=anyone, slices=slices)

    def load(
        self, discriminator: Path, configuration: str, *, device: torch.device
    ) -> tuple[Discriminator, CaseRenderer]:
        """See `load_for`."""
        anyone = next(iter(self.images.values()))
        given = (self.plans, configuration, self.dataset_json, self.settings)
        return load_for(discriminator, *given, images=anyone, device=device)

    def files(self, cases: Sequence[str], folder: Path) -> list[CaseFiles]:
        """Cases with their label maps in a folder.

        Raises:
            DatasetError: there is no case, or an image or label map is missing.
        """
        subjects = self.table.subjects() if self.table is not None else {}
        return case_files_of(cases, folder, self.images, subjects, self.file_ending)

    def predictions(self, folder: Path) -> list[CaseFiles]:
        """All predictions of a folder.

        Raises:
            DatasetError: there is none, or one of a case without image.
        """
        return self.files(label_maps(folder, self.file_ending), folder)

    def annotated(self) -> list[CaseFiles]:
        """Annotated training cases that label every class.

        Raises:
            DatasetError: there is none, or one without image.
        """
        folder = self.raw / "labelsTr"
        cases = label_maps(folder, self.file_ending)
        complete = [case for case in cases if case not in self._partial()]
        if cases and not complete:
            raise DatasetError(f"{folder}: every case labels only some of the classes; use --no-simulate")
        if len(complete) < len(cases):
            logger.warning("%d cases that label only some of the classes are left out", len(cases) - len(complete))
        return self.files(complete, folder)

    def coded(self, folder: Path, *, codes: Path | None, truths: Path | None, thresholds: CodeThresholds) -> Coded:
        """Predictions that people coded, or whose truth is known, or both.

        Args:
            folder: the predictions.
            codes: a `qa_codes.csv`.
            truths: folder of true label maps; predictions without one are left out.
            thresholds: Dice of each code.

        Raises:
            SelectionError: the codes are wrong or of unknown cases, or neither codes nor truths are given.
            DatasetError: no prediction has a truth, or an image or coded prediction is missing.
            ImageError: a label map cannot be read, or does not fit its truth.
        """
        if codes is None and truths is None:
            raise SelectionError(f"{folder}: give the codes of these predictions, or a folder of true label maps")
        frames = [] if codes is None else [read_codes(codes, self.images)]
        if truths is not None:
            frames.append(self._against(folder, truths, thresholds, CodeSource.DICE))
            dice = frames[-1].set_index("case_id")["dice"]
            frames = [frame.assign(dice=frame["dice"].fillna(frame["case_id"].map(dice))) for frame in frames]
        columns = ["case_id", "code", "source", "dice"]
        table = pd.concat([frame[columns] for frame in frames], ignore_index=True)
        return self.files(sorted(set(table["case_id"])), folder), table

    def cross_validation(self, model: Path, thresholds: CodeThresholds) -> list[Coded]:
        """Validation predictions of every trained fold of a model, coded by Dice.

        Args:
            model: `nnUNet_results/DatasetXXX/<trainer>__<plans>__<configuration>`.
            thresholds: Dice of each code.

        Raises:
            ModelError: no fold has validation predictions.
            DatasetError: a predicted case has no label or image.
            ImageError: a label map cannot be read, or does not fit its truth.
        """
        # `fold_all` validates on what it was trained on
        folders = [path / "validation" for path in sorted(model.glob("fold_[0-9]*"))]
        folders = [folder for folder in folders if label_maps(folder, self.file_ending)]
        if not folders:
            raise ModelError(
                f"{model}: no fold_X/validation with predictions; finish a training, or name another model"
            )
        found = []
        for folder in folders:
            table = self._against(folder, self.raw / "labelsTr", thresholds, CodeSource.CROSS_VALIDATION)
            found.append((self.files(table["case_id"].tolist(), folder), table))
        return found

    def _against(self, folder: Path, truths: Path, thresholds: CodeThresholds, source: CodeSource) -> pd.DataFrame:
        """Codes by Dice of the predictions that have a complete truth."""
        known = set(label_maps(truths, self.file_ending)) - self._partial()
        cases = [case for case in label_maps(folder, self.file_ending) if case in known]
        if not cases:
            raise DatasetError(f"{truths}: holds no truth with the ending {self.file_ending} for a case of {folder}")
        files = self.files(cases, folder)
        return dice_codes(files, truths, self.dataset_json, thresholds=thresholds, source=source)

    def _partial(self) -> set[str]:
        """Cases that label only some of the classes; their Dice would be too low."""
        flags = labelled_classes(self.dataset_json, self.table, self.classes) or {}
        return {case for case, labelled in flags.items() if not all(labelled)}


def gather(
    dataset: CodedDataset,
    renderer: CaseRenderer,
    *,
    predictions: Path | None,
    codes: Path | None,
    truths: Path | None,
    model: Path | None,
    per_code: int | None,
    thresholds: CodeThresholds,
    rng: np.random.Generator,
    jobs: int,
) -> CodedMontages:
    """Montages of all coded cases that there are.

    Args:
        dataset: the dataset.
        renderer: draws the montages.
        predictions: folder of predictions that have codes or truths; None for none.
        codes: `qa_codes.csv` of these predictions.
        truths: true label maps of these predictions.
        model: folder of a model with validation predictions; None for none.
        per_code: simulated pictures of each code from each annotated case; None for none.
        thresholds: Dice of each code.
        rng: source of chance.
        jobs: processes.

    Raises:
        SelectionError: there is no source of codes, or they are wrong or too few: see `subject_parts`.
        NnunetQAError: as the methods of `CodedDataset`.
    """
    given: list[Coded] = []
    if predictions is not None:
        given.append(dataset.coded(predictions, codes=codes, truths=truths, thresholds=thresholds))
    elif codes is not None or truths is not None:
        raise SelectionError(f"{codes or truths}: name the folder of the predictions that this is about: --predictions")
    if model is not None:
        given += dataset.cross_validation(model, thresholds)
    if per_code is None:
        if not given:
            raise SelectionError("there are no codes to learn from; give --codes, --cross-validation or --simulate")
        # before hours of drawing
        subjects = {case.case_id: case.subject for files, _ in given for case in files}
        table = pd.concat([table for _, table in given])
        subject_parts([subjects[case] for case in table["case_id"]], table["code"].to_numpy(), rng)
    parts = [coded_montages(files, table, renderer, jobs=jobs) for files, table in given]
    if per_code is not None:
        annotated = dataset.annotated()
        parts.append(simulated_cases(annotated, renderer, thresholds=thresholds, per_code=per_code, rng=rng, jobs=jobs))
    return CodedMontages.joined(parts)
