"""The discriminator that a training fits for itself, from the annotated cases of its fold (paper 002, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnunet_qa.cases import FILE_NAME as CASES
from nnunet_qa.cases import CaseTable
from nnunet_qa.errors import SelectionError
from nnunet_qa.inference.predictor import class_names, unwrapped
from nnunet_qa.inference.qa_montage import Renderer, class_values
from nnunet_qa.quality.coded_montages import CodedMontages, CodedPatch, simulated_montages
from nnunet_qa.quality.codes import CodeSource, CodeThresholds
from nnunet_qa.quality.discriminator import Discriminator
from nnunet_qa.quality.discriminator_file import FILE_NAME, load, save
from nnunet_qa.quality.predicted_montages import predicted_montages

if TYPE_CHECKING:
    from .qa_semi_trainer import QAsemiTrainer

FOREGROUND = 0.5
"""Part of the patches that must hold foreground; the others are drawn like those of the pool."""


def wanted_file(trainer: QAsemiTrainer) -> Path | None:
    """The file of a discriminator that the user has made, or None where there is none."""
    named = trainer.config.qa_loss.discriminator
    if named is not None:
        return named
    shared = Path(trainer.output_folder_base).parent / "qa" / FILE_NAME
    return shared if shared.is_file() else None


def load_fitting(trainer: QAsemiTrainer, path: Path, renderer: Renderer | None) -> Discriminator:
    """Read a discriminator and refuse one that was made for something else.

    Raises:
        ModelError: with every difference.
    """
    return load(
        path,
        device=trainer.device,
        dataset=trainer.plans_manager.dataset_name,
        classes=class_names(trainer.dataset_json, trainer.label_manager),
        spec=renderer.specs[0] if renderer is not None else None,
    )


def fit_discriminator(trainer: QAsemiTrainer, renderer: Renderer, path: Path, *, on_predictions: bool) -> Discriminator:
    """Fit a discriminator on simulated errors of the annotated training cases, and write it to `path`.

    Args:
        trainer: whose training cases, patches and settings are used.
        renderer: draws the montages.
        path: where the discriminator goes.
        on_predictions: also show it what the network predicts for these cases as it is now.

    Raises:
        SelectionError: there are fewer than two subjects, the cases give no montage of some code, or none of them is
            annotated as a whole.
    """
    settings = trainer.config.qa_loss
    simulation = settings.simulation
    thresholds = CodeThresholds(settings.codes.success, settings.codes.failure)
    classes = class_values(trainer.dataset_json, trainer.label_manager)
    patches: list[CodedPatch] = []
    predicted: list[tuple[CodedPatch, np.ndarray]] = []
    for patch, images in _patches(trainer, renderer, simulation.patches):
        patches.append(patch)
        if on_predictions:
            predicted.append((patch, _predict(trainer, renderer, images)))
    rng = np.random.default_rng(trainer.current_epoch)
    parts: list[CodedMontages] = []
    for spec in renderer.specs:
        how: dict[str, Any] = {"spec": spec, "classes": classes, "thresholds": thresholds}
        parts.append(simulated_montages(patches, rng=rng, per_code=simulation.per_code, **how))
        if predicted:
            regions = trainer.label_manager.has_regions
            parts.append(predicted_montages(predicted, regions=regions, source=CodeSource.DICE, **how))
    montages = CodedMontages.joined(parts)
    discriminator = Discriminator(
        renderer.specs[0],
        list(classes),
        learning_rate=simulation.learning_rate,
        epochs=simulation.epochs,
        patience=simulation.patience,
        noise=settings.noise,
        weights=simulation.weights,
        device=trainer.device,
    ).fit(montages, test=False)  # annotated cases are few here
    about = {"codes": {source: montages.sources.count(source) for source in sorted(set(montages.sources))}}
    save(discriminator, path, dataset=trainer.plans_manager.dataset_name, about={**about, "fold": trainer.fold})
    return discriminator


def _patches(trainer: QAsemiTrainer, renderer: Renderer, number: int) -> Iterator[tuple[CodedPatch, torch.Tensor]]:
    """Patches of annotated training cases as the pool gives them, with the images that the network would see."""
    dataset = trainer.annotated_training_cases()
    dataset.identifiers = _fully_annotated(trainer, dataset.identifiers)
    table = trainer.raw_dataset_folder / CASES if trainer.raw_dataset_folder is not None else None
    subjects = CaseTable.read(table).subjects() if table is not None and table.is_file() else {}
    size = trainer._pool_batch_size if renderer.stacked else min(8, number)
    # slices of one case must stay in line; other patches are augmented every second time, for annotated cases are few
    augmented = (False,) if renderer.stacked else (False, True)
    loaders = [
        trainer._plain_loader(dataset, size, stacked=renderer.stacked, foreground=FOREGROUND, augmented=one)
        for one in augmented
    ]
    wanted = min(2, len({subjects.get(case, case) for case in dataset.identifiers}))
    made, seen = 0, set[str]()
    while made < number or len(seen) < wanted:  # few patches may all be of one subject, and a fit needs two
        for patch, images in _of_batch(loaders[0].generate_train_batch(), renderer, subjects):
            yield patch, images
            made += 1
            seen.add(patch.subject)
        loaders = [*loaders[1:], loaders[0]]


def _fully_annotated(trainer: QAsemiTrainer, cases: Sequence[str]) -> list[str]:
    """Cases in which what has no label is background: others would teach that a missing organ is right."""
    if trainer.label_manager.has_ignore_label:
        raise SelectionError(
            "qa_loss: parts of the annotated cases are to be ignored, so no discriminator can be fitted on them; name "
            "one in qa_loss.discriminator, or set qa_loss.enabled to false in qa.yaml"
        )
    declared = trainer._declared_classes() or {}
    complete = [case for case in cases if all(declared.get(case, (True,)))]
    if not complete:
        raise SelectionError(
            "qa_loss: every training case labels only some of the classes, so no discriminator can be fitted on them; "
            "name one in qa_loss.discriminator, or set qa_loss.enabled to false in qa.yaml"
        )
    return complete


def _of_batch(
    batch: dict[str, Any], renderer: Renderer, subjects: dict[str, str]
) -> Iterator[tuple[CodedPatch, torch.Tensor]]:
    """Patches of a batch, each with its images; all slices of a stack are one patch."""
    labels = batch["target"][:, 0].numpy().astype(np.int16)
    shades = renderer.shades(batch["data"])
    for place in range(len(shades)):
        case = str(batch["keys"][place])
        here = slice(None) if renderer.stacked else slice(place, place + 1)
        own = labels if renderer.stacked else labels[place]
        yield (
            CodedPatch(case_id=case, subject=subjects.get(case, case), image=shades[place], labels=own),
            batch["data"][here],
        )


@torch.no_grad()
def _predict(trainer: QAsemiTrainer, renderer: Renderer, images: torch.Tensor) -> np.ndarray:
    """Probabilities of the foreground classes `(classes, *spatial)` of a patch, or of a stack of slices."""
    network = unwrapped(trainer.network)  # under DDP only one rank is here
    network.eval()
    probabilities = trainer.foreground(network(images.to(trainer.device))[0]).cpu()
    network.train()
    return (probabilities.transpose(0, 1) if renderer.stacked else probabilities[0]).numpy()
