"""Landmarks for many thousands of points: a sample of them at all scales, and the nearest ones of each point."""

from typing import Literal

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold
from manifoldflow.nn.features import LandmarkFeatures


class NearestLandmarks(LandmarkFeatures):
    r"""What :class:`LandmarkFeatures` shows, at a cost that hardly grows with the number of landmarks.

    Its sums are taken twice: over a seeded sample of the landmarks (times how many each stands for), which is all that the
    coarse scales need, and over the nearest ones of every point, which hold all that the fine scales see. The nearest are
    weighted with the window

    .. math:: (1 - |c(x) - c_j|^2 / r^2)^2, \qquad r \text{ the distance of the one that comes after them},

    so that a landmark enters and leaves with weight 0: the features, and so the divergence of a field made of them, have no
    jumps where the neighbours change.

    Args:
        manifold, landmarks, finest, octaves, hide, waves, wave_length, seed: as for :class:`LandmarkFeatures`.
        nearest: number of neighbours.
        sample: size of the sample.
    """

    _stored = ("places", "rows", "counts", "order")

    def __init__(
        self,
        manifold: Manifold,
        landmarks: Tensor,
        finest: float = 1e-3,
        *,
        nearest: int = 32,
        sample: int = 4000,
        octaves: tuple[int, int] = (-3, 4),
        hide: Literal["own", "batch"] = "own",
        waves: int = 128,
        wave_length: float = 32.0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            manifold, landmarks, finest, octaves=octaves, hide=hide, waves=waves, wave_length=wave_length, seed=seed
        )
        if nearest < 1 or sample < 1:
            raise ValueError(f"nearest and sample must be at least 1, got {nearest} and {sample}")
        self.nearest, self.sample = nearest, sample
        # The sample is the first of a mixed order. Places come sorted, on which the search for the nearest is ten times slower.
        self.order: Tensor
        self.register_buffer("order", torch.randperm(len(self.places), generator=torch.Generator().manual_seed(seed)))
        self.size += (2 + self.base.size) * (1 + octaves[1] - octaves[0])

    def _see(
        self,
        point: Tensor,
        left: Tensor,
        own: Tensor | None,
        places: Tensor,
        count: Tensor,
        worth: Tensor | float = 1.0,
    ) -> Tensor:
        places, count = places[self.order], count[self.order]
        if own is not None:
            numbers = torch.arange(len(places) + 1, device=own.device)
            own = numbers.index_copy(0, self.order, numbers[:-1])[own]
        size = min(self.sample, len(places))
        some, worth = count[:size], worth * count.sum() / count[:size].sum().clamp_min(1)
        slot = None if own is None else own.clamp_max(size)  # one too many: not in the sample
        coarse = super()._see(point, left, slot, places[:size], some * worth, worth)
        return torch.cat([coarse, self._tiled(self._near, point, left, own, places, count, most=2**20)], -1)

    def _near(self, point: Tensor, left: Tensor, own: Tensor | None, places: Tensor, count: Tensor) -> Tensor:
        # Which are the nearest has no derivative. One product in double precision is exact to 1e-8 of a distance. A last
        # column stands for no place.
        there, here = torch.nn.functional.pad(places.double(), (0, 0, 0, 1), value=1e3), point.detach().double()
        table = there.square().sum(-1) - 2 * (here @ there.mT)
        number = torch.nn.functional.pad(count, (0, 1))
        if own is not None:  # a place that no other row shares is out of sight
            table = table.scatter(-1, own, torch.where(number[own] > 1, table.gather(-1, own), torch.inf))
        index = table.topk(min(self.nearest + 1, len(places) + 1), largest=False).indices
        number = number[index] if own is None else number[index] - (index == own).to(count.dtype)
        step = there.to(places.dtype)[index] - point.unsqueeze(1)
        half = 0.5 * step.square().sum(-1)
        weight = number.clamp_min(0) * (1 - half / half[:, -1:]).square()
        scaled, out = half / left.square(), []
        for i in range(self.octaves[1], self.octaves[0] - 1, -1):
            near = torch.exp(scaled * -(4.0**-i)) * weight
            total = near.sum(-1, keepdim=True)
            shift = (near.unsqueeze(-1) * step).sum(1) / (left * 2.0**i * (total + 1e-3))
            out += [torch.log1p(total), total / (1 + total), shift]
        return torch.cat(out, -1)
