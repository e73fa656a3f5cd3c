"""What a flow thinks of a crystal: how well it tells the crystal from noise. For choosing among candidates."""

from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.tasks.crystals.batches import state_of
from manifoldflow.tasks.crystals.structure import Crystals

TIMES = (0.35, 0.5, 0.65, 0.8, 0.9)


@torch.no_grad()
def doubt(
    flow: mf.Flow, crystals: Crystals, *, times: Any = TIMES, draws: int = 2, seed: int = 0, cond: Any = None
) -> Tensor:
    """The denoising loss of coordinates and cell of every crystal, species given, ``(B,)``: small for what the flow would make.

    Every crystal is noised and aligned with the noise as in training, at the same times; the mean of its losses bounds, up to
    constants, how improbable it is. Candidates of one composition compare, others do not.

    Args:
        flow: the flow.
        crystals: candidates.
        times: at which they are noised; late ones see details, early ones the arrangement.
        draws: of the noise at each time.
        seed: of the noise.
        cond: what they are asked to be, a dict of ``(B,)``; None for nothing.
    """
    state = state_of(crystals)
    batch, mask = len(crystals.mask), crystals.mask
    generator = torch.Generator(mask.device).manual_seed(seed)
    total = torch.zeros(batch, dtype=state["frac"].dtype, device=mask.device)
    given = flow.pin
    try:
        flow.pin = _all_species
        for t in times:
            for _ in range(draws):
                when = torch.full((batch,), float(t), dtype=total.dtype, device=mask.device)
                drawn = flow.draw(state, mask=mask, cond=cond, t=dict.fromkeys(flow.path, when), generator=generator)
                made: Any = flow.predict(drawn.xt, drawn.t, mask=mask, cond=drawn.cond)
                for name in ("frac", "lattice"):
                    loss = flow.weights.get(name, 1.0) * flow.path[name].loss(made[name], drawn.points[name])
                    total = total + (_per_crystal(loss, mask) if name == "frac" else loss)
    finally:
        flow.pin = given
    return total / (len(times) * draws)


def _all_species(mask: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
    return {"species": mask}


def _per_crystal(loss: Tensor, mask: Tensor) -> Tensor:
    return (loss * mask).sum(-1) / mask.sum(-1).clamp_min(1)
