"""What a crystal is asked to be besides its composition: its space group, its energy above the hull, its band gap.

Every condition may be unknown (NaN). Training hides each of them at random, so that one model answers to any subset, and to none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manifoldflow.tasks.crystals.metrics import CRYSTAL_SYSTEMS, crystal_system, space_groups
from manifoldflow.tasks.crystals.store import CrystalDataset

__all__ = ["NUMBERS", "SPACE_GROUP", "ConditionFeatures", "hide", "read_conditions", "values_of"]

SPACE_GROUP = "space_group"
NUMBERS = ("energy_above_hull", "band_gap")
GROUPS = 230
COLUMNS = {SPACE_GROUP: "space_group_number"}
"""Labels under which sets usually hold a condition, where that is not its name."""


def read_conditions(words: Sequence[str]) -> dict[str, str]:
    """Conditions and the labels that hold them: ``["space_group", "energy_above_hull=heat_all"]``.

    Raises:
        ValueError: an unknown condition, or one that is named twice.
    """
    found: dict[str, str] = {}
    able = (SPACE_GROUP, *NUMBERS)
    for word in words:
        name, has_column, column = word.partition("=")
        if name not in able or (has_column and not column):
            raise ValueError(
                f"--conditions: {word!r} is none of {', '.join(able)}, each with =LABEL where the label has another name"
            )
        if name in found:
            raise ValueError(f"--conditions: {name} is named twice")
        found[name] = column or COLUMNS.get(name, name)
    return found


def values_of(dataset: CrystalDataset, rows: Sequence[int], conditions: Mapping[str, str]) -> dict[str, Tensor]:
    """The values of the conditions of some crystals, ``(M,)`` each, NaN where unknown.

    A space group that the set does not tell is determined within 0.1 angstrom (spglib).

    Raises:
        ValueError: the set has no such label; says which there are.
    """
    made: dict[str, Tensor] = {}
    chosen = np.asarray(rows, np.int64)
    for name, column in conditions.items():
        if name == SPACE_GROUP:
            told = [dataset.labels[int(i)].get(column) for i in chosen]
            if all(isinstance(v, (int, float)) for v in told):
                values = np.array(told, float)
            else:
                values = np.array([float(number) for number, _ in space_groups([dataset[int(i)] for i in chosen])])
            values[(values < 1) | (values > GROUPS)] = np.nan
        else:
            values = dataset.label(column)[chosen]
        made[name] = torch.as_tensor(values, dtype=torch.float32)
    return made


def hide(values: Mapping[str, Tensor], share: float, generator: torch.Generator | None) -> dict[str, Tensor]:
    """Each condition of each crystal unknown with probability ``share``."""
    made = {}
    for name, value in values.items():
        is_hidden = torch.rand(value.shape, generator=generator, device=value.device) < share
        made[name] = torch.where(is_hidden, torch.nan, value)
    return made


class ConditionFeatures(nn.Module):
    """Conditions as one vector for each crystal, zero for all that is unknown.

    Args:
        names: of the conditions.
        mean, scale: of the numbers among them in the training set, in the order of ``names``; unused for the space group.
        width: of the vector.
    """

    systems: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, names: Sequence[str], mean: Sequence[float], scale: Sequence[float], width: int) -> None:
        super().__init__()
        if not len(names) == len(mean) == len(scale):
            raise ValueError(f"{len(names)} conditions need as many means and scales, got {len(mean)} and {len(scale)}")
        self.names, self.width = tuple(names), width
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32), persistent=False)
        self.register_buffer("scale", torch.tensor(list(scale), dtype=torch.float32), persistent=False)
        system = [0] + [1 + CRYSTAL_SYSTEMS.index(crystal_system(number)) for number in range(1, GROUPS + 1)]
        self.register_buffer("systems", torch.tensor(system), persistent=False)
        self.numbers = nn.ModuleDict({n: nn.Linear(6, width) for n in names if n != SPACE_GROUP})
        if SPACE_GROUP in names:
            self.group = nn.Embedding(GROUPS + 1, width, padding_idx=0)
            self.system = nn.Embedding(len(CRYSTAL_SYSTEMS) + 1, width, padding_idx=0)

    def forward(self, cond: Any, like: Tensor) -> Tensor:
        """``(B, width)`` from ``cond``, a dict with some of the names, ``(B,)`` each, or None; ``like`` is ``(B, ...)``."""
        total = like.new_zeros(like.shape[0], self.width)
        for k, name in enumerate(self.names):
            value = cond.get(name) if isinstance(cond, dict) else None
            if value is None:
                continue
            value = value.to(device=like.device, dtype=like.dtype)
            is_known = value.isfinite()
            if name == SPACE_GROUP:
                number = torch.where(is_known, value, 0.0).round().long().clamp(0, GROUPS)
                total = total + self.group(number) + self.system(self.systems[number])
                continue
            v = ((torch.where(is_known, value, 0.0) - self.mean[k]) / self.scale[k]).clamp(-4, 4)
            waves = [torch.ones_like(v), v, (1.5 * v).sin(), (1.5 * v).cos(), (3 * v).sin(), (3 * v).cos()]
            made = self.numbers[name](torch.stack(waves, -1).to(like.dtype))
            total = total + torch.where(is_known.unsqueeze(-1), made, 0.0)
        return total
