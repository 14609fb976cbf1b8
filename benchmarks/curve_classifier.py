"""What the curve classifiers find of simulated errors in unseen subjects, and what a fit of 200 acquisitions costs.

`python -m benchmarks.curve_classifier`; over two minutes on one core.
"""

from __future__ import annotations

from time import process_time

import numpy as np
import torch

from nnunet_qa.quality.curve_classifier import CurveLSTM
from nnunet_qa.quality.curve_logistic import CurveLogistic
from nnunet_qa.quality.curve_rules import CurveRules
from nnunet_qa.quality.curves import Acquisition
from tests.quality.easy_curves import ERRORS, acquisition, hearts

FITTED, UNSEEN, SHARE = 200, 400, 0.3


def drawn(number: int, *, seed: int, small: bool) -> tuple[list[Acquisition], np.ndarray]:
    """Hearts of which every third erroneous one is too small in all frames alike, if wanted, instead of its error."""
    some, erroneous = hearts(number, seed=seed, share=SHARE)
    if not small:
        return some, erroneous
    rng = np.random.default_rng(seed)
    good, _ = hearts(number, seed=seed + 1000, share=0)
    for place in np.flatnonzero(erroneous)[::3]:
        pixels = dict(good[place].pixels)
        structure = str(rng.choice(list(pixels)))
        pixels[structure] = np.rint(pixels[structure] * rng.uniform(0.4, 0.75)).astype(np.int64)
        some[place] = acquisition(pixels, name=some[place].acquisition_id)
    return some, erroneous


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("errors; classifier; AUROC; sensitivity (95 %); specificity (95 %); fit, s of processor")
    for small, errors in ((False, ", ".join(ERRORS)), (True, "these, and a third too small")):
        fitted, unseen = (drawn(number, seed=seed, small=small) for number, seed in ((FITTED, 0), (UNSEEN, 1)))
        for name, classifier in {
            "LSTM": CurveLSTM(),
            "LSTM --sizes": CurveLSTM(sizes=True),
            "logistic": CurveLogistic(),
            "rules": CurveRules(),
        }.items():
            start = process_time()
            classifier.fit(*fitted)
            seconds = process_time() - start
            found = classifier.judge(*unseen)
            both = [
                f"{found[rate]:.3f} ({found[f'{rate}_95'][0]:.3f} to {found[f'{rate}_95'][1]:.3f})"
                for rate in ("sensitivity", "specificity")
            ]
            print("; ".join((errors, name, f"{found['auroc']:.3f}", *both, f"{seconds:.1f}")), flush=True)


if __name__ == "__main__":
    main()
