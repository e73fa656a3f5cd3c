"""Sequences of regulatory DNA: five representations of one flow, and a toy with a known law."""

from collections.abc import Callable
from typing import Any

from tasks.dna.flow import DnaConfig, build
from tasks.dna.model import ConvNet, Transformer

COMMANDS: dict[str, Callable[..., Any]] = {}

EXAMPLES: dict[str, str] = {}

__all__ = ["COMMANDS", "EXAMPLES", "ConvNet", "DnaConfig", "Transformer", "build"]
