"""Densities on manifolds: the tables of Riemannian flow matching, and any table of points on a named manifold."""

from importlib import import_module
from typing import Any

from manifoldflow.tasks.densities.data import DataSet, load_data
from manifoldflow.tasks.densities.flow import DensityConfig, build
from manifoldflow.tasks.densities.kde import KernelDensity, fit_kde
from manifoldflow.tasks.densities.splits import split

VERBS = ("train", "evaluate", "sample", "plot")
"""Functions of :mod:`manifoldflow.tasks.densities.commands`, which is imported when one of them is asked for."""

EXAMPLES = {
    "train": "manifoldflow train densities --data quakes.csv --manifold sphere --out runs/quakes",
    "evaluate": "manifoldflow evaluate densities --checkpoint runs/quakes --steps 200",
    "sample": "manifoldflow sample densities --checkpoint runs/quakes --num 5000 --out quakes_made.csv",
    "plot": "manifoldflow plot densities --checkpoint runs/quakes --out map.png",
}

BUILDERS = ("manifoldflow.tasks.densities.flow:build",)

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


def __getattr__(name: str) -> Any:
    if name != "COMMANDS" and name not in VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    commands = import_module(f"{__name__}.commands")  # training, and so Lightning: not for those who only want a law
    made = {verb: getattr(commands, verb) for verb in VERBS}
    return made if name == "COMMANDS" else made[name]
