"""How probable a structure is when its composition is given: log p(coordinates, cell | species)."""

from typing import Any

import torch
from torch import Tensor, nn

import manifoldflow as mf


class _Given(nn.Module):
    """The network of a crystal flow with the species as its condition."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x: dict[str, Tensor], t: Tensor, *, mask: Tensor | None = None, cond: Any = None
    ) -> dict[str, Tensor]:
        when = {"frac": t, "lattice": t, "species": torch.ones_like(t)}
        made = self.network({**x, "species": cond["species"]}, when, mask=mask, cond=cond)
        return {name: made[name] for name in x}


def structure_flow(flow: mf.Flow) -> mf.Flow:
    """The flow of coordinates and cells alone, whose condition is ``{"species": (B, N)}``; it shares the weights."""
    names = ("frac", "lattice")
    part = mf.Flow(
        {n: flow.fields[n] for n in names},
        _Given(flow.model),
        source={n: flow.source[n] for n in names},
        path={n: flow.path[n] for n in names},
        time_warp=flow.time_warp,
    )
    return part.train(flow.training)


def structure_log_prob(flow: mf.Flow, state: dict[str, Tensor], mask: Tensor, **options: Any) -> Tensor:
    r"""Log-density ``(B,)`` in nats of coordinates and cells, given the species.

    With respect to the volume of the tori and of the space of cells (of cells per atom, see
    :func:`manifoldflow.tasks.crystals.batches.per_atom`). Shifts of the whole crystal are uniform and count as such: they
    have probability 1 in all.

    Args:
        flow: of the method "geodesic", without annealing.
        state: of the flow.
        mask: bool ``(B, N)``.
        options: of :meth:`manifoldflow.Flow.log_prob`.
    """
    rest = {n: state[n] for n in ("frac", "lattice")}
    return structure_flow(flow).log_prob(rest, mask=mask, cond={"species": state["species"]}, **options)
