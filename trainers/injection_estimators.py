"""What injection ranks predictions by: agreement Q, the code of the discriminator, the curve classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable, Role
from nnunet_qa.config import Unit
from nnunet_qa.data.bank import CHOSEN
from nnunet_qa.errors import CaseTableError, ConfigError, CurveError, FloorError
from nnunet_qa.inference.case_montages import CaseRenderer
from nnunet_qa.quality.curve_classifier_file import load as load_classifier
from nnunet_qa.quality.curve_estimator import CurveEstimator
from nnunet_qa.quality.curve_files import check_frames
from nnunet_qa.quality.curves import Acquisition, LabelScheme, count_pixels
from nnunet_qa.selection.best_in_class import FIRST, best_in_class, score_table

if TYPE_CHECKING:
    from .qa_semi_trainer import QAsemiTrainer

COLUMNS = {"q": "q", "code": "predicted_code", "curves": "p_erroneous"}
"""Column of each estimator in a ranking."""


class Estimators:
    """The estimators that the settings name.

    Args:
        trainer: the training.
        cases: case table of the dataset, where there is one.
    """

    def __init__(self, trainer: QAsemiTrainer, cases: CaseTable | None) -> None:
        self.trainer = trainer
        self.config = trainer.config.injection
        self.cases = cases
        self._subjects = cases.subjects() if cases is not None else {}

    @cached_property
    def _scheme(self) -> LabelScheme:
        config = self.config
        return LabelScheme.parse(config.scheme, kind=config.kind, end_diastole=config.end_diastole)

    @cached_property
    def _classifier(self) -> CurveEstimator:
        assert self.config.classifier is not None
        scheme = self._scheme
        return load_classifier(self.config.classifier, structures=list(scheme.values), measured=scheme.kind)

    def check(self, candidates: Sequence[str]) -> None:
        """Refuse settings that the dataset cannot serve.

        Args:
            candidates: pool cases that may be trained on.

        Raises:
            ConfigError: the code is asked for and there is no discriminator.
            ModelError: the curve classifier cannot be read, or was made for other curves.
            SelectionError: there is no such label scheme, or it has its own kind and end-diastole.
            CaseTableError: cases.csv names an unlabelled frame of a candidate's acquisition that is no candidate.
            CurveError: the dataset has labels that the scheme does not know, or an acquisition lacks a frame.
        """
        if "code" in self.config.weights and not self.trainer.learns_from_pool:
            raise ConfigError(
                'injection.weights in qa.yaml names "code", but without the QA loss (qa_loss.enabled, qa_loss.weight) '
                "there is no discriminator; leave it out"
            )
        if self.config.unit is Unit.ACQUISITION:
            self._check_whole(candidates)
        if "curves" not in self.config.weights:
            return
        self._classifier.predict_proba([])  # read here, not at the first round
        unknown = sorted(set(self.trainer.label_manager.foreground_labels) - set(self._scheme.values.values()))
        if unknown:
            raise CurveError(
                f'injection.scheme in qa.yaml: "{self.config.scheme}" does not know the label {unknown[0]} of this '
                "dataset; name all of them, such as lv=1,myocardium=2,rv=3"
            )
        order = _frames(self.cases, candidates).sort_values(["acquisition_id", "frame_index"])
        for name, own in order.groupby("acquisition_id"):
            check_frames(str(name), [None if pd.isna(index) else int(index) for index in own["frame_index"]])

    def _check_whole(self, candidates: Sequence[str]) -> None:
        """Refuse acquisitions of which some frames, but not all unlabelled ones, may be trained on."""
        known, allowed = self.units(candidates), set(candidates)
        assert self.cases is not None
        of_case = self.cases.acquisitions()
        for case in self.cases.case_ids(Role.UNLABELLED):
            if of_case[case] in known and case not in allowed:
                why = (
                    "is of another subject, whom this fold validates or who is tested; correct subject_id or stack_id"
                    if case in self.trainer.pool_images
                    else "has no image in the pool (imagesUn); put it there, or delete its row"
                )
                raise CaseTableError(f'{CASES}: the frame "{case}" of the acquisition "{of_case[case]}" {why}')

    def check_images(self, properties: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse acquisitions whose frames have different shapes or spacings.

        Args:
            properties: what nnU-Net's preprocessor noted of each candidate.

        Raises:
            CurveError: see above.
        """
        first: dict[str, tuple[str, Any]] = {}
        order = _frames(self.cases, list(properties))
        for case, own in properties.items():
            found = (tuple(own["shape_before_cropping"]), tuple(np.round(own["spacing"], 4)))
            name = order.loc[case, "acquisition_id"]
            before, expected = first.setdefault(name, (case, found))
            if found != expected:
                raise CurveError(
                    f"{name}: the frame {case} has another shape or spacing than {before}; all frames of a series need "
                    "the same"
                )

    def of_case(
        self, case: str, image: np.ndarray, labels: np.ndarray, logits: torch.Tensor, properties: dict[str, Any]
    ) -> dict[str, Any]:
        """What is needed of one prediction: its code, and its labelled pixels for the curve.

        Args:
            case: identifier.
            image: `(channels, *spatial)`.
            labels: predicted label map `(*spatial)`, -1 outside of the body.
            logits: of which the label map was made, `(channels, *spatial)`.
            properties: of the preprocessed case.
        """
        found: dict[str, Any] = {"foreground": int(np.count_nonzero(labels > 0))}
        if "code" in self.config.weights:
            found[COLUMNS["code"]] = self._code(case, image, labels)
        if "curves" in self.config.weights:
            found["_pixels"], found["_spacing"] = self._pixels(case, logits, properties)
        return found

    def of_acquisitions(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows of cases, each with what the curve classifier says of its acquisition."""
        if "curves" not in self.config.weights:
            return rows
        order = _frames(self.cases, rows["case_id"].tolist())
        rows = rows.join(order, on="case_id").sort_values(["acquisition_id", "frame_index"], ignore_index=True)
        acquisitions = [
            Acquisition(
                acquisition_id=str(name),
                subject_id=self._subjects[own["case_id"].iloc[0]],
                pixels={key: np.stack([pixels[key] for pixels in own["_pixels"]]) for key in own["_pixels"].iloc[0]},
                spacing=own["_spacing"].iloc[0],
                scheme=self._scheme,
            )
            for name, own in rows.groupby("acquisition_id")
        ]
        said = self._classifier.predict_proba(acquisitions)
        known = {own.acquisition_id: float(p) for own, p in zip(acquisitions, said, strict=True)}
        rows[COLUMNS["curves"]] = rows["acquisition_id"].map(known)
        return rows.drop(columns=["_pixels", "_spacing", "acquisition_id", "frame_index"])

    def ranked(self, rows: pd.DataFrame, *, number: int) -> pd.DataFrame:
        """All cases, the best first, with `rank`, `score` and `chosen`.

        Predictions without any foreground are never chosen: a network that finds nothing agrees with itself.

        Args:
            rows: one row a case, of `of_acquisitions`.
            number: how many cases, or acquisitions, to choose at most.
        """
        config = self.config
        rows = rows.assign(subject_id=[self._subjects.get(case, case) for case in rows["case_id"]])
        weights: dict[str, float] = {str(name): weight for name, weight in config.weights.items()}
        given = {name: rows.set_index("case_id")[COLUMNS[name]] for name in weights}
        scores = score_table(given, weights).set_index("case_id")
        rows = rows.join(scores[["score", FIRST]], on="case_id")
        filled = self._not_empty(rows)
        chosen: set[str] = set()
        if filled.any():
            try:
                best = best_in_class(
                    rows.loc[filled, ["case_id", "score", FIRST]],
                    number=min(number, len(self.units(rows.loc[filled, "case_id"]))),
                    per_subject=config.per_subject,
                    floor=config.floor,
                    unit=config.unit,
                    cases=self.cases,
                )
                chosen = set(best["case_id"])
            except FloorError as error:  # nothing reaches the floor; the training goes on without
                self.trainer.print_to_log_file(f"injection: {error}")
        rows = rows.drop(columns=FIRST).assign(**{CHOSEN: rows["case_id"].isin(chosen)})
        rows = rows.sort_values(["score", "case_id"], ascending=[False, True], ignore_index=True)
        rows.insert(0, "rank", range(1, len(rows) + 1))
        return rows

    def units(self, cases: Iterable[str]) -> set[str]:
        """What is ranked: the given cases, or their acquisitions."""
        if self.config.unit is Unit.CASE:
            return set(cases)
        return set(_frames(self.cases, list(cases))["acquisition_id"])

    def _not_empty(self, rows: pd.DataFrame) -> pd.Series:
        """Which cases hold foreground; of an acquisition, all frames or none."""
        filled = rows["foreground"] > 0
        if self.config.unit is Unit.CASE:
            return filled
        assert self.cases is not None
        return filled.groupby(rows["case_id"].map(self.cases.acquisitions())).transform("all")

    def _code(self, case: str, image: np.ndarray, labels: np.ndarray) -> float:
        trainer = self.trainer
        assert trainer.renderer is not None
        assert trainer.discriminator is not None
        renderer = CaseRenderer(
            plans=trainer.plans_manager.plans,
            configuration=trainer.configuration_name,
            dataset_json=trainer.dataset_json,
            renderer=trainer.renderer,
            slices=trainer._pool_batch_size if trainer.renderer.stacked else None,
        )
        subject = self._subjects.get(case, case)
        patches = renderer.patches_of(image, np.maximum(labels, 0), case_id=case, subject=subject)
        with torch.no_grad():
            return float(trainer.discriminator.predict(renderer.drawn(patches)).mean())

    def _pixels(
        self, case: str, logits: torch.Tensor, properties: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], tuple[float, ...]]:
        """Labelled pixels of each slice of a frame in the grid of its image, and the spacing (z, y, x)."""
        trainer = self.trainer
        labels = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, trainer.plans_manager, trainer.configuration_manager, trainer.label_manager, properties
        )
        counts = count_pixels(labels[None], self._scheme, name=case)
        return {structure: pixels[0] for structure, pixels in counts.items()}, tuple(map(float, properties["spacing"]))


def _frames(cases: CaseTable | None, wanted: Sequence[str]) -> pd.DataFrame:
    """Acquisition and frame of cases, by case.

    Raises:
        CaseTableError: there is no table.
    """
    if cases is None:
        raise CaseTableError(
            "injection of acquisitions needs cases.csv with stack_id and frame_index in the raw dataset folder"
        )
    known = cases.acquisitions()
    wanted = list(wanted)
    frames = cases.frame.set_index("case_id")["frame_index"]
    return pd.DataFrame(
        {"acquisition_id": [known[case] for case in wanted], "frame_index": frames.loc[wanted].to_numpy()},
        index=wanted,
    )
