"""Spins on a square lattice, set one by one in any order."""

import math
from typing import Any

import torch
from torch import Tensor

from manifoldflow.gflownet.env import Env
from manifoldflow.state import State


class Ising(Env):
    r"""Configurations of ``side`` x ``side`` spins, :math:`\log R(s) = J \sum_{<ij>} s_i s_j + h \sum_i s_i`.

    A state is int8 ``(B, N)``: 0 where nothing is set yet, else the spin. Action i sets spin i up, N + i sets it down. Unfinished
    configurations have earned the bonds between what is set.

    Args:
        side: of the lattice.
        coupling: J, in units of temperature.
        field: h.
        periodic: whether opposite edges meet.
    """

    def __init__(self, side: int, coupling: float = 0.3, *, field: float = 0.0, periodic: bool = True) -> None:
        if side < 2:
            raise ValueError(f"Ising: side must be at least 2, got {side}")
        self.side, self.coupling, self.field, self.periodic = side, coupling, field, periodic
        self.sites = self.horizon = side * side
        self.actions = self.observed = 2 * self.sites

    def initial(self, n: int, *, device: torch.device | str | None = None) -> State:
        return torch.zeros(n, self.sites, dtype=torch.int8, device=device)

    def is_done(self, x: Any) -> Tensor:
        return (x != 0).all(-1)

    def forward_mask(self, x: Any) -> Tensor:
        return (x == 0).repeat(1, 2)

    def backward_mask(self, x: Any) -> Tensor:
        return torch.cat([x == 1, x == -1], -1)

    def step(self, x: Any, action: Tensor) -> State:
        return x + self._one(action) * (1 - 2 * (action >= self.sites)).to(torch.int8).unsqueeze(-1)

    def undo(self, x: Any, action: Tensor) -> State:
        return x * ~self._one(action)

    def _one(self, action: Tensor) -> Tensor:
        return torch.arange(self.sites, device=action.device) == (action % self.sites).unsqueeze(-1)

    def action(self, x: Any, y: Any) -> Tensor:
        changed = (x != y).to(torch.uint8).argmax(-1)
        spin = y.gather(1, changed.unsqueeze(1)).squeeze(1)
        return changed + self.sites * (spin < 0)

    def log_reward(self, x: Any) -> Tensor:
        s = x.reshape(-1, self.side, self.side).to(torch.get_default_dtype())
        if self.periodic:
            bonds = s * s.roll(1, 1) + s * s.roll(1, 2)
            total = bonds.sum((1, 2))
        else:
            total = (s[:, 1:] * s[:, :-1]).sum((1, 2)) + (s[:, :, 1:] * s[:, :, :-1]).sum((1, 2))
        return self.coupling * total + self.field * s.sum((1, 2))

    log_partial_reward = log_reward

    def log_paths(self, x: Any) -> Tensor:
        return torch.lgamma((x != 0).sum(-1) + 1.0)

    def observe(self, x: Any) -> Tensor:
        return torch.cat([x == 1, x == -1], -1).to(torch.get_default_dtype())

    def key(self, x: Any) -> Tensor:
        """A number of every state, in base 3; sides up to 6."""
        weight = torch.tensor([3**i for i in range(self.sites)], device=x.device)
        return ((x + 1) * weight).sum(-1)

    @property
    def log_z(self) -> float:
        """The exact logarithm of the sum of all rewards, by transfer matrices between rows (sides up to 10)."""
        n, bit = self.side, torch.arange(self.side)
        rows = 1.0 - 2.0 * ((torch.arange(2**n).unsqueeze(1) >> bit) & 1).double()
        inside = (rows[:, 1:] * rows[:, :-1]).sum(-1) + (rows[:, 0] * rows[:, -1] if self.periodic else 0.0)
        own = self.coupling * inside + self.field * rows.sum(-1)
        step = (self.coupling * rows @ rows.T + own).exp()  # to a row, with that row's own energy
        if self.periodic:
            values = torch.linalg.matrix_power(step / step.max(), n).trace()
            return float(values.log()) + n * math.log(float(step.max()))
        weight = own.exp()
        for _ in range(n - 1):
            weight = weight @ step
        return float(weight.sum().log())
