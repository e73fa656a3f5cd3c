"""Densities on manifolds: the tables of Riemannian flow matching, and any table of points on a named manifold."""

from collections.abc import Callable
from typing import Any

from manifoldflow.tasks.densities.commands import evaluate, plot, sample, train
from manifoldflow.tasks.densities.data import DataSet, load_data
from manifoldflow.tasks.densities.flow import DensityConfig, build
from manifoldflow.tasks.densities.kde import KernelDensity, fit_kde
from manifoldflow.tasks.densities.splits import split

COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "plot": plot,
}

BUILDERS = ("manifoldflow.tasks.densities.flow:build",)
"""What checkpoints of this task may be built by."""

EXAMPLES = {
    "train": "manifoldflow train densities --data quakes.csv --manifold sphere --out runs/quakes",
    "evaluate": "manifoldflow evaluate densities --checkpoint runs/quakes --steps 200",
    "sample": "manifoldflow sample densities --checkpoint runs/quakes --num 5000 --out quakes_made.csv",
    "plot": "manifoldflow plot densities --checkpoint runs/quakes --out map.png",
}

__all__ = [
    "BUILDERS",
    "COMMANDS",
    "EXAMPLES",
    "DataSet",
    "DensityConfig",
    "KernelDensity",
    "build",
    "evaluate",
    "fit_kde",
    "load_data",
    "plot",
    "sample",
    "split",
    "train",
]
