"""Crystals: structure prediction, de novo generation and refinement of a prototype by one flow."""

from typing import Any

COMMANDS: dict[str, Any] = {}
EXAMPLES: dict[str, str] = {}
BUILDERS: tuple[str, ...] = ()
