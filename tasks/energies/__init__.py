"""Samplers of energies: diffusion samplers, Boltzmann generators, and the Monte Carlo that they are measured against."""

from typing import Any

COMMANDS: dict[str, Any] = {}
EXAMPLES: dict[str, str] = {}
BUILDERS: tuple[str, ...] = (
    "manifoldflow.tasks.energies.alanine:build",
    "manifoldflow.tasks.energies.rotations:build",
)
