"""The grid on which GFlowNets are measured: modes near the corners, a desert between them (Bengio et al. 2021)."""

import math

import torch
from torch import Tensor

from manifoldflow.gflownet.env import Env
from manifoldflow.state import State, fields


class Hypergrid(Env):
    r"""Points of a grid of ``height``\ :sup:`dim` places; an action moves one coordinate up by one, or stops.

    .. math:: R(x) = R_0 + R_1 \prod_i 1[|a_i| > 0.25] + R_2 \prod_i 1[0.3 < |a_i| < 0.4], \quad a_i = x_i / (H - 1) - 1/2

    The bounds are compared in whole numbers: in floating point :math:`|x / 15 - 0.5| > 0.3` is true on one side of the grid only.

    Args:
        dim: number of coordinates.
        height: places of a coordinate, at least 2.
        r0, r1, r2: :math:`R_0, R_1, R_2`.

    Raises:
        ValueError: a grid of no size, or a reward that is not positive.
    """

    def __init__(self, dim: int = 2, height: int = 8, *, r0: float = 0.1, r1: float = 0.5, r2: float = 2.0) -> None:
        if dim < 1 or height < 2:
            raise ValueError(f"Hypergrid: dim must be at least 1 and height at least 2, got {dim} and {height}")
        if not r0 > 0:
            raise ValueError(f"Hypergrid: r0 must be positive, got {r0}")
        self.dim, self.height, self.rewards = dim, height, (r0, r1, r2)
        self.horizon, self.actions, self.observed = dim * (height - 1) + 1, dim + 1, dim * height

    def initial(self, n: int, *, device: torch.device | str | None = None) -> State:
        place = torch.zeros(n, self.dim, dtype=torch.int64, device=device)
        return {"place": place, "done": torch.zeros(n, dtype=torch.bool, device=device)}

    def forward_mask(self, x: State) -> Tensor:
        view = fields(x)
        free = ~view["done"].unsqueeze(-1)
        return torch.cat([(view["place"] < self.height - 1) & free, free], -1)

    def backward_mask(self, x: State) -> Tensor:
        view = fields(x)
        done = view["done"].unsqueeze(-1)
        return torch.cat([(view["place"] > 0) & ~done, done], -1)

    def step(self, x: State, action: Tensor) -> State:
        view = fields(x)
        return {"place": view["place"] + self._one(action), "done": view["done"] | (action == self.dim)}

    def undo(self, x: State, action: Tensor) -> State:
        view = fields(x)
        return {"place": view["place"] - self._one(action).long(), "done": view["done"] & (action != self.dim)}

    def _one(self, action: Tensor) -> Tensor:
        return torch.arange(self.dim, device=action.device) == action.unsqueeze(-1)

    def is_done(self, x: State) -> Tensor:
        return fields(x)["done"]

    def action(self, x: State, y: State) -> Tensor:
        gone = fields(y)["place"] - fields(x)["place"]
        return torch.where(gone.any(-1), gone.argmax(-1), self.dim)

    def log_reward(self, x: State) -> Tensor:
        # |a| > 1/4 as |2 x - (H - 1)| * 2 > H - 1, and likewise with tenths: exact.
        edge, twice = self.height - 1, (2 * fields(x)["place"] - (self.height - 1)).abs()
        outer = (2 * twice > edge).all(-1)
        ring = ((10 * twice > 6 * edge) & (10 * twice < 8 * edge)).all(-1)
        r0, r1, r2 = self.rewards
        return (r0 + r1 * outer.double() + r2 * ring.double()).log().to(torch.get_default_dtype())

    def log_partial_reward(self, x: State) -> Tensor:
        return self.log_reward(x)  # what stopping here would earn

    def observe(self, x: State) -> Tensor:
        place = fields(x)["place"].unsqueeze(-1)  # done or not is in the masks
        hot = place == torch.arange(self.height, device=place.device)
        return hot.flatten(1).to(torch.get_default_dtype())

    def log_paths(self, x: State) -> Tensor:
        place = fields(x)["place"].double()  # a multinomial coefficient: the orders of the moves
        return torch.lgamma(place.sum(-1) + 1) - torch.lgamma(place + 1).sum(-1)

    def key(self, x: State) -> Tensor:
        """A number of every state, for :func:`manifoldflow.gflownet.enumerate_env`."""
        view = fields(x)
        size = torch.tensor([self.height**i for i in range(self.dim)], device=view["place"].device)
        return 2 * (view["place"] * size).sum(-1) + view["done"]

    @property
    def log_z(self) -> float:
        """The exact logarithm of the sum of all rewards."""
        axis = torch.arange(self.height)
        place = torch.cartesian_prod(*[axis] * self.dim).reshape(-1, self.dim)
        return math.log(float(self.log_reward({"place": place}).double().exp().sum()))
