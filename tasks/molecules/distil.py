"""Few steps: a flow of molecules learns from what it makes in many, where that is sound (reflow with a filter)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.paths import Schedule
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.molecules.stability import stability
from manifoldflow.tasks.molecules.three_d import Made, draw_sizes


@dataclass(frozen=True)
class Pairs:
    """Noise and what the flow made of it, molecules of about one size together.

    Attributes:
        groups: source, sample and mask of each group.
        asked: molecules that were made; those that were not sound are left out.
    """

    groups: list[tuple[dict[str, Tensor], dict[str, Tensor], Tensor]]
    asked: int

    def __len__(self) -> int:
        return sum(len(mask) for _, _, mask in self.groups)


def make_pairs(
    flow: mf.Flow,
    count: int,
    *,
    steps: int = 100,
    temperature: float = 0.5,
    corrector: float = 4.0,
    batch: int = 64,
    generator: torch.Generator | None = None,
    callback: Callable[[int], None] | None = None,
) -> Pairs:
    """Samples in many steps with their source points; kept where all valences are right and the molecule is in one piece.

    Args:
        flow: the teacher, from :func:`three_d.build`.
        count: molecules to make.
        steps, temperature, corrector: of its sampler.
        batch: molecules at once.
        generator: of every random draw.
        callback: called with the number of molecules after every batch.

    Raises:
        ValueError: not one was sound.
    """
    sizes = sorted(draw_sizes(flow, count, generator))
    how, groups = mf.Jumps(temperature=temperature, corrector=corrector), []
    for at in range(0, count, batch):
        some = torch.tensor(sizes[at : at + batch])
        mask = torch.arange(int(some.max())) < some.unsqueeze(-1)
        x0: Any = flow.draw_source(tuple(mask.shape), mask=mask, generator=generator)
        x1: Any = flow.sample(x0=x0, mask=mask, steps=steps, method=how, generator=generator)
        judged = stability(Made(x1, mask))
        good = (judged.molecule & judged.connected & judged.neutral).nonzero().squeeze(1)
        if len(good):
            groups.append(({n: v[good] for n, v in x0.items()}, {n: v[good] for n, v in x1.items()}, mask[good]))
        if callback is not None:
            callback(at + len(some))
    if not groups:
        raise ValueError(f"none of {count} molecules is sound: train the flow longer before it teaches")
    return Pairs(groups, count)


def pair_batches(
    pairs: Pairs, size: int, steps: int, seed: int, warp: Schedule | None = None
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Batches for :func:`manifoldflow.training.fit`: stored pairs, at the times that a sampler of ``steps`` steps visits.

    The draws of a step depend on the seed and the step alone.

    Args:
        pairs: from :func:`make_pairs`.
        size: of a batch.
        steps: of the sampler that is to become good.
        seed: of the draws.
        warp: ``time_warp`` of the flow, if it has one: its steps are not even.
    """
    grid = mf.linear_grid(steps) if warp is None else warp.k(mf.linear_grid(steps, dtype=torch.float64)).float()
    weight = torch.tensor([float(len(mask)) for _, _, mask in pairs.groups])

    def after(step: int) -> Iterator[dict[str, Any]]:
        while True:
            generator = generator_of(seed, step)
            x0, x1, mask = pairs.groups[int(torch.multinomial(weight, 1, generator=generator))]
            rows = torch.randint(len(mask), (size,), generator=generator)
            t = grid[torch.randint(steps, (size,), generator=generator)]
            yield {
                "x": {n: v[rows] for n, v in x1.items()},
                "x0": {n: v[rows] for n, v in x0.items()},
                "mask": mask[rows],
                "t": t,
            }
            step += 1

    return after
