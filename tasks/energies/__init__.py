"""Samplers of energies: diffusion samplers, Boltzmann generators, and the Monte Carlo that they are measured against."""

from importlib import import_module
from typing import Any

VERBS = ("train", "sample", "evaluate", "plot")
"""Functions of :mod:`manifoldflow.tasks.energies.commands`, which is imported when one of them is asked for."""

EXAMPLES = {
    "train": "manifoldflow train energies --target mixture9 --out runs/mixture9",
    "sample": "manifoldflow sample energies --target funnel --method smc --calls 1000000 --out funnel.npz",
    "evaluate": "manifoldflow evaluate energies --checkpoint runs/mixture9 --seeds 0-2",
    "plot": "manifoldflow plot energies --checkpoint runs/mixture9 --out mixture9.png",
}

BUILDERS: tuple[str, ...] = (
    "manifoldflow.tasks.energies.sampler:build",
    "manifoldflow.tasks.energies.alanine:build",
    "manifoldflow.tasks.energies.rotations:build",
)


def __getattr__(name: str) -> Any:
    if name != "COMMANDS" and name not in VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    commands = import_module(f"{__name__}.commands")  # training, and so Lightning: not for those who only want a target
    made = {verb: getattr(commands, verb) for verb in VERBS}
    return made if name == "COMMANDS" else made[name]
