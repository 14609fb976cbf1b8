"""Predict a folder and write `quality.csv`: resumable, in parts, with constant memory.

nnU-Net's export processes write files in place, so they write into `.partial/`; a file that can be read there is moved
to its place, also by the next run after a kill. The scores of each case lie in `.quality/<case>.json`; when all cases
of the input folder have theirs, they are merged.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_qa import __version__
from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable
from nnunet_qa.data.nifti import check_nifti
from nnunet_qa.data.paths import read_json
from nnunet_qa.data.pool import case_files
from nnunet_qa.errors import DatasetError, ImageError, ModelError, NnunetQAError, StorageError
from nnunet_qa.files import make_folder, remove_leftovers, storage_error, write_json
from nnunet_qa.inference.predictor import CaseQuality, QAPredictor, active_dropout, unwrapped
from nnunet_qa.quality.table import FILE_NAME as QUALITY
from nnunet_qa.quality.table import write_quality

logger = logging.getLogger(__name__)

PARTIAL, ROWS, SECOND, RECORD = ".partial", ".quality", "second_output", "qa_score.json"


@dataclass(frozen=True)
class ScoreOptions:
    """How to predict; the names are those of `nnUNetv2_predict`.

    Attributes:
        folds: folds whose logits are averaged; empty for all that are there.
        checkpoint: name of the checkpoint file in each fold.
        step_size: step of the sliding window as a part of the patch, in (0, 1].
        mirroring: test-time mirroring.
        save_probabilities: also write `.npz` with the class probabilities.
        save_second: also write the second output's segmentation into `second_output/`.
        num_parts: how many runs share the folder.
        part_id: which of them this is, from 0.
        processes: background processes for preprocessing and as many for export.
        previous_stage: folder of the previous stage's predictions, for the cascade.
        entropy: also measure the mean predictive entropy of each case and slice.
        mc_dropout: leave dropout on while predicting; then the segmentations are samples too, see `QAPredictor`.
        seed: seed of that dropout.
    """

    folds: tuple[str, ...] = ()
    checkpoint: str = "checkpoint_final.pth"
    step_size: float = 0.5
    mirroring: bool = True
    save_probabilities: bool = False
    save_second: bool = False
    num_parts: int = 1
    part_id: int = 0
    processes: int = field(default=2)
    previous_stage: str | None = None
    entropy: bool = False
    mc_dropout: bool = False
    seed: int = 0


def score_folder(
    model_folder: Path,
    images: Path,
    output: Path,
    options: ScoreOptions,
    *,
    device: torch.device,
    overwrite: bool = False,
    role: str = "",
    cases: CaseTable | None = None,
    show_progress: bool = True,
) -> Path | None:
    """Predict every case of a folder and score it.

    Args:
        model_folder: `nnUNet_results/DatasetXXX/<trainer>__<plans>__<configuration>`.
        images: folder of images named as nnU-Net wants them.
        output: segmentations, `quality.csv` and what nnU-Net's own commands need beside predictions.
        options: how to predict.
        device: where to compute.
        overwrite: predict everything again; otherwise go on where an earlier run stopped.
        role: role written into the table where `cases` does not know better.
        cases: case table that gives each case its role.
        show_progress: show nnU-Net's progress bars.

    Returns:
        `quality.csv`, or None while other parts still have cases to score.

    Raises:
        ModelError: the model or a fold is missing, has one output only, or no dropout though it is to be sampled.
        DatasetError: no case in the folder, or another model's predictions in `output`.
        ImageError: an image cannot be read or holds NaN; all cases done so far are kept.
        StorageError: the disk is full or read-only.
    """
    dataset_json, folds = _check_model(model_folder, options)
    found = case_files(images, dataset_json["file_ending"], len(dataset_json["channel_names"]))
    if not found:
        raise DatasetError(f"{images}: no image named like case_0000{dataset_json['file_ending']} in this folder")
    if not 0 <= options.part_id < options.num_parts:
        raise DatasetError(f"part {options.part_id} of {options.num_parts} does not exist; parts count from 0")
    roles = dict(zip(cases.frame["case_id"], cases.frame["role"], strict=True)) if cases is not None else {}
    if overwrite and options.num_parts > 1:
        raise DatasetError("--overwrite would undo what other parts have done; choose another -o instead")
    predictor = _predictor(model_folder, folds, options, device, show_progress=show_progress)
    share = sorted(found)[options.part_id :: options.num_parts]
    _check_previous_stage(predictor, options.previous_stage, share, dataset_json["file_ending"])
    reader = predictor.plans_manager.image_reader_writer_class()
    run = _Run(output, dataset_json["file_ending"], options, roles, role, reader)
    run.begin(model_folder, images, folds, overwrite=overwrite)
    todo = [case for case in share if not run.is_done(case)]
    if todo:
        run.forget(todo)
        run.predict(predictor, {case: found[case] for case in todo})
        lost = [case for case in todo if not run.is_done(case)]
        if lost:
            raise StorageError(
                f"{output}: {len(lost)} predictions were not written whole ({lost[0]}, …); free space and run again"
            )
    return run.merge(sorted(found), model_folder)


@dataclass(frozen=True)
class _Run:
    """The files of one scoring run."""

    output: Path
    ending: str
    options: ScoreOptions
    roles: dict[str, str]
    default_role: str
    reader: Any

    @property
    def partial(self) -> Path:
        return self.output / PARTIAL / str(self.options.part_id)

    def begin(self, model_folder: Path, images: Path, folds: tuple[str, ...], *, overwrite: bool) -> None:
        shares = ("folds", "num_parts", "part_id", "processes")  # these may differ from run to run
        settings = {key: value for key, value in asdict(self.options).items() if key not in shares}
        settings["seed"] = self.options.seed if self.options.mc_dropout else None
        weights = [(model_folder / f"fold_{fold}" / self.options.checkpoint).stat() for fold in folds]
        record = {
            "nnunet_qa": __version__,
            "model": os.fspath(model_folder),
            "folds": list(folds),
            "weights": [[one.st_size, one.st_mtime_ns] for one in weights],
            "images": os.fspath(images.resolve()),
            **settings,
        }
        path = self.output / RECORD
        if overwrite and path.is_file():
            for name in (PARTIAL, ROWS, SECOND):
                shutil.rmtree(self.output / name, ignore_errors=True)
            path.unlink()
        if path.is_file() and (old := read_json(path)) != record:
            changed = sorted(key for key in {*old, *record} if old.get(key) != record.get(key))
            raise DatasetError(
                f"{self.output}: holds other predictions ({', '.join(changed)}); choose another -o or --overwrite"
            )
        for folder in (self.output / ROWS, self.partial):
            make_folder(folder)
            remove_leftovers(folder)
        if not path.is_file():
            write_json(path, record)
        self.rescue()

    def files(self, folder: Path, case: str) -> list[Path]:
        """All files of a predicted case, the one that nnU-Net writes last at the end."""
        names = [f"{case}.npz", f"{case}.pkl"] if self.options.save_probabilities else []
        return [folder / name for name in (*names, f"{case}{self.ending}")]

    def is_done(self, case: str) -> bool:
        second = [self.output / SECOND / f"{case}{self.ending}"] if self.options.save_second else []
        needed = [self.output / ROWS / f"{case}.json", *self.files(self.output, case), *second]
        return all(path.is_file() for path in needed)

    def _is_readable(self, path: Path) -> bool:
        """Whether nnU-Net's own reader takes a file that it wrote, so that it is whole."""
        try:
            check_nifti(path)
            return bool(np.size(self.reader.read_seg(os.fspath(path))[0]))
        except Exception:  # each reader has errors of its own
            return False

    def forget(self, cases: list[str]) -> None:
        """Remove what earlier runs left of cases that are predicted now, so that no old file passes for a new one."""
        (self.output / QUALITY).unlink(missing_ok=True)
        for case in cases:
            second = self.output / SECOND / f"{case}{self.ending}"
            for path in (self.output / ROWS / f"{case}.json", *self.files(self.output, case), second):
                path.unlink(missing_ok=True)

    def rescue(self) -> None:
        """Move what is complete from `.partial` to its place; drop the rest."""
        for folder, target in ((self.partial, self.output), (self.partial / SECOND, self.output / SECOND)):
            for path in sorted(folder.glob(f"*{self.ending}")) if folder.is_dir() else []:
                case = path.name[: -len(self.ending)]
                if self._is_readable(path):
                    make_folder(target)
                    # nnU-Net's writer of 3D TIFF puts the spacing beside it
                    sources = [
                        folder / f"{case}.json",
                        *([path] if target.name == SECOND else self.files(folder, case)),
                    ]
                    for source in sources:
                        if source.is_file():
                            os.replace(source, target / source.name)
        shutil.rmtree(self.partial)
        make_folder(self.partial)

    def predict(self, predictor: QAPredictor, found: dict[str, list[Path]]) -> None:
        if self.options.save_second:
            make_folder(self.partial / SECOND)
            predictor.second_output_name = lambda name: os.path.join(self.partial, SECOND, os.path.basename(name))
        predictor.before_case = lambda case: _check_files(found[case])
        predictor.on_case = self._write_rows
        previous = self.options.previous_stage
        try:
            predictor.predict_from_files(
                [[os.fspath(path) for path in paths] for paths in found.values()],
                [os.fspath(self.partial / case) for case in found],
                save_probabilities=self.options.save_probabilities,
                overwrite=True,
                num_processes_preprocessing=self.options.processes,
                num_processes_segmentation_export=self.options.processes,
                folder_with_segs_from_prev_stage=previous,
            )
        except NnunetQAError:
            raise
        except Exception as error:
            _name_culprit(predictor, found)
            if isinstance(error, OSError) and error.errno is not None:
                raise storage_error(self.output, error) from error
            raise
        finally:
            self.rescue()

    def _write_rows(self, quality: CaseQuality) -> None:
        role = self.roles.get(quality.case_id, self.default_role)
        write_json(self.output / ROWS / f"{quality.case_id}.json", quality.rows(role))

    def merge(self, cases: list[str], model_folder: Path) -> Path | None:
        missing = [case for case in cases if not self.is_done(case)]
        if missing:
            logger.warning("%d of %d cases are still to be scored by other parts", len(missing), len(cases))
            return None
        rows: list[dict[str, Any]] = []
        for case in cases:
            rows += json.loads((self.output / ROWS / f"{case}.json").read_text(encoding="utf-8"))
        for name in ("dataset.json", "plans.json"):
            write_json(self.output / name, read_json(model_folder / name))
        write_quality(self.output / QUALITY, pd.DataFrame(rows))
        shutil.rmtree(self.partial, ignore_errors=True)
        with_parts = self.output / PARTIAL
        if with_parts.is_dir() and not any(with_parts.iterdir()):
            with_parts.rmdir()
        return self.output / QUALITY


def find_case_table(images: Path) -> CaseTable | None:
    """The `cases.csv` beside a folder of images, if there is one."""
    path = images.resolve().parent / CASES
    return CaseTable.read(path) if path.is_file() else None


def _check_model(model_folder: Path, options: ScoreOptions) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not (model_folder / "dataset.json").is_file() or not (model_folder / "plans.json").is_file():
        raise ModelError(f"{model_folder}: no trained model there; train one first with `nnUNetv2_train`")
    folds = options.folds or tuple(
        sorted(
            path.name.removeprefix("fold_")
            for path in model_folder.glob("fold_*")
            if path.name.removeprefix("fold_").isdecimal() and (path / options.checkpoint).is_file()
        )
    )
    if not folds:
        raise ModelError(
            f"{model_folder}: no fold with {options.checkpoint}; finish a training, or choose others with -f or -chk"
        )
    for fold in folds:
        path = model_folder / f"fold_{fold}" / options.checkpoint
        if not path.is_file():
            raise ModelError(f"{path}: not found; finish this fold's training or choose other folds with -f")
    return read_json(model_folder / "dataset.json"), folds


def _predictor(
    model_folder: Path, folds: tuple[str, ...], options: ScoreOptions, device: torch.device, *, show_progress: bool
) -> QAPredictor:
    predictor = QAPredictor(
        tile_step_size=options.step_size,
        use_mirroring=options.mirroring,
        perform_everything_on_device=device.type == "cuda",
        device=device,
        allow_tqdm=show_progress,
    )
    predictor.entropy, predictor.mc_dropout, predictor.seed = options.entropy, options.mc_dropout, options.seed
    chosen = tuple(fold if fold == "all" else int(fold) for fold in folds)
    try:
        predictor.initialize_from_trained_model_folder(os.fspath(model_folder), chosen, options.checkpoint)
    except Exception as error:  # a damaged checkpoint, a trainer that nnU-Net does not find, other plans
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{model_folder}: the model cannot be loaded: {lines[0]}") from error
    _check_trained_outputs(predictor, model_folder)
    if options.mc_dropout:
        active_dropout(predictor.network)  # refuses a network without, before anything is written
    return predictor


def _check_trained_outputs(predictor: QAPredictor, model_folder: Path) -> None:
    """Q compares the two finest outputs; nnU-Net leaves the coarsest one untrained, our trainers none.

    Raises:
        ModelError: fewer than two outputs were trained.
    """
    outputs = len(getattr(getattr(unwrapped(predictor.network), "decoder", None), "seg_layers", ()))
    trainer = str(predictor.trainer_name)
    # by name, for trainers are above inference; subclasses train what their parents train
    parents = [kind.__name__ for kind in recursive_find_trainer_class_by_name(trainer).__mro__]
    untrained = any("NoDeepSupervision" in name for name in parents)
    untrained |= outputs == 2 and "PoolTrainer" not in parents
    if outputs < 2 or untrained:
        raise ModelError(
            f"{model_folder}: {trainer} trained fewer than two outputs of this network, and Q compares two; use plans "
            "with at least four stages, or train with QAsemiTrainer"
        )


def _check_previous_stage(predictor: QAPredictor, folder: str | None, cases: Iterable[str], ending: str) -> None:
    """A cascaded model needs the previous stage's segmentation of every case.

    Raises:
        ModelError: the folder was not given.
        DatasetError: a case is not in it.
    """
    stage = predictor.configuration_manager.previous_stage_name
    if stage is None and folder is not None:
        raise ModelError("this model continues from no previous stage; leave out -prev_stage_predictions")
    if stage is None:
        return
    if folder is None:
        raise ModelError(
            f"this model continues from {stage}; give the folder of its predictions: -prev_stage_predictions"
        )
    for case in cases:
        if not (Path(folder) / f"{case}{ending}").is_file():
            raise DatasetError(f"{Path(folder) / f'{case}{ending}'}: not found; predict the case with {stage} first")


def _name_culprit(predictor: QAPredictor, found: dict[str, list[Path]]) -> None:
    """nnU-Net's background workers do not say which image they failed on; find it by reading them again.

    Raises:
        ImageError: for the first image that cannot be read.
    """
    for case, paths in found.items():
        try:
            _check_files(paths)
            PlansManager(predictor.plans_manager.plans).image_reader_writer_class().read_images(
                [os.fspath(p) for p in paths]
            )
        except ImageError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or ["channels of different shape or spacing"]
            raise ImageError(f"{paths[0]}: the case {case} cannot be read: {lines[-1]}") from error


def _check_files(paths: list[Path]) -> None:
    for path in paths:
        check_nifti(path)
