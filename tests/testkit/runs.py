"""Small training runs whose every step is known."""

import csv
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import manifoldflow as mf
from manifoldflow.training import TrainConfig

TESTS = Path(__file__).resolve().parents[1]
SPHERE = mf.Sphere(3)
CURVE = ("step", "loss", "flow", "rate", "val_loss")


def config(**changes: Any) -> TrainConfig:
    quick = dict(log_every=1, checkpoint_every=5, warmup_steps=3, progress=False, accelerator="cpu", max_steps=20)
    return TrainConfig(**(quick | changes))


def sphere_flow() -> mf.Flow:
    torch.manual_seed(0)
    return mf.Flow(SPHERE, mf.nn.TangentMLP(SPHERE, width=16, depth=2))


def batch(step: int) -> dict[str, Tensor]:
    return {"x": SPHERE.sample_uniform((8,), generator=torch.Generator().manual_seed(step))}


def batches(start: int) -> Iterator[dict[str, Tensor]]:
    """Endless, each step's batch from its number alone."""
    step = start
    while True:
        yield batch(step)
        step += 1


def interrupted_at(step: int, act: Callable[[], None]) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """The same batches, and something happens when that of ``step`` is asked for."""

    def make(start: int) -> Iterator[dict[str, Tensor]]:
        for number, item in enumerate(batches(start), start):
            if number == step:
                act()
            yield item

    return make


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def curve(folder: Path) -> list[list[float]]:
    """The rows without clocks."""
    return [[float(row[k]) for k in CURVE if row.get(k)] for row in rows(folder)]


def weights(folder: Path) -> Tensor:
    return torch.cat([v.flatten() for _, v in sorted(load_file(folder / "model.safetensors").items())])


def script(path: Path, body: str) -> list[str]:
    """A program that imports the definitions of this file."""
    path.write_text(f"import sys\nsys.path[:0] = [{str(TESTS.parent)!r}, {str(TESTS)!r}]\n{body}\n")
    return [sys.executable, str(path)]


def environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK")}
    return inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
