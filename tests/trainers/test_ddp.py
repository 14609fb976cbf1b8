from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

from nnunet_qa.trainers.pool_trainer import gathered


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    values = gathered([float(rank), 10.0 + rank], 2)
    Path(folder, f"{rank}.txt").write_text(repr(values))
    dist.destroy_process_group()


def test_every_rank_gets_the_values_of_all(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(os.fspath(tmp_path),), nprocs=2)
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text() == "[0.0, 10.0, 1.0, 11.0]"
