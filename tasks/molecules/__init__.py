"""Molecules: built action by action, as graphs, and in three dimensions."""

from typing import Any

COMMANDS: dict[str, Any] = {}
EXAMPLES: dict[str, str] = {}
BUILDERS: tuple[str, ...] = ()
