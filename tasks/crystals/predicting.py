"""Structures of given compositions from a trained flow, many at once, the best single guess first."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

import manifoldflow as mf
from manifoldflow.checkpoint import known_checkpoints
from manifoldflow.tasks.common.runs import load_model
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.crystals.batches import crystals_of
from manifoldflow.tasks.crystals.consensus import chosen
from manifoldflow.tasks.crystals.structure import Crystal

BUILDER = "manifoldflow.tasks.crystals.flow:build"
PAIRS = 8_000
"""Pairs of atoms in a batch: what a core keeps in its cache; ten times as many take 2.5 times as long for each crystal."""
STEPS = 50
CHOOSE = 8


def predict(
    checkpoint: str | Path | None,
    cells: Sequence[Sequence[int]],
    num: int = 1,
    *,
    steps: int | None = None,
    seed: int = 0,
    choose: int = CHOOSE,
    progress: bool = True,
) -> list[list[Crystal]]:
    """Structures of cells whose species are given.

    Args:
        checkpoint: embedded name, model file or run folder; None for the embedded one.
        cells: species of all atoms of each cell.
        num: structures for each.
        steps: of sampling; 50 if absent.
        seed: of the draws: the same seed and cells give the same structures.
        choose: samples for each structure that is kept: of ``num * choose`` those are put forward whose expected error is least,
            see :mod:`manifoldflow.tasks.crystals.consensus`; 1 keeps all, in that order.
        progress: show a bar.

    Returns:
        One list a cell, the best single guess first. A structure whose lattice came out as no cell is left out, so a list may be
        shorter.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is no crystal flow, or steps is below 1.
    """
    from rich.progress import Progress

    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    flow, _ = load_model(default_checkpoint() if checkpoint is None else checkpoint, BUILDER, "crystal flow")
    flow.eval()
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("sampling", total=len(cells) * num * choose)

        def made(count: int) -> None:
            bar.advance(task, count)

        return candidates(flow, cells, num, steps=steps or STEPS, seed=seed, choose=choose, callback=made)


def candidates(
    flow: mf.Flow,
    cells: Sequence[Sequence[int]],
    num: int = 1,
    *,
    steps: int = STEPS,
    seed: int = 0,
    choose: int = 1,
    conditions: Mapping[str, Sequence[float]] | None = None,
    callback: Callable[[int], None] | None = None,
) -> list[list[Crystal]]:
    """:func:`predict` with a flow; ``conditions`` are the values for each cell, and ``callback`` gets the number of structures of
    each batch."""
    rows = sorted((i for i in range(len(cells)) for _ in range(num * choose)), key=lambda i: len(cells[i]))
    draws: list[list[Crystal]] = [[] for _ in cells]
    start = number = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and (end + 1 - start) * len(cells[rows[end]]) ** 2 <= PAIRS and end - start < 512:
            end += 1
        some = rows[start:end]
        cond = {name: torch.tensor([float(values[i]) for i in some]) for name, values in (conditions or {}).items()}
        made = _drawn(flow, [list(cells[i]) for i in some], steps, generator_of(seed, number), cond)
        for i, crystal in zip(some, made, strict=True):
            if crystal is not None:
                draws[i].append(crystal)
        if callback is not None:
            callback(end - start)
        start, number = end, number + 1
    return [
        [Crystal(c.species, c.frac, c.cell, f"{i}_{k}", {"number": i}) for k, c in enumerate(some)]
        for i, some in enumerate(chosen(draws, num))
    ]


def _drawn(
    flow: mf.Flow, cells: list[list[int]], steps: int, generator: torch.Generator, cond: dict[str, torch.Tensor]
) -> list[Crystal | None]:
    """A sample of each cell; None for what is no cell."""
    count = torch.tensor([len(cell) for cell in cells])
    mask = torch.arange(int(count.max())) < count[:, None]
    species = torch.zeros(mask.shape, dtype=torch.int64)
    species[mask] = torch.tensor([s for cell in cells for s in cell])
    with torch.no_grad():
        x = flow.sample(
            tuple(mask.shape),
            mask=mask,
            known={"species": species},
            steps=steps,
            cond=cond or None,
            generator=generator,
        )
    made = crystals_of(x, mask)
    found: list[Crystal | None] = []
    for k in range(len(cells)):
        try:
            found.append(made.crystal(k).reduced())
        except ValueError:  # a lattice that is no cell
            found.append(None)
    return found


def default_checkpoint() -> str:
    """The embedded crystal flow: that of the Materials Project set before that of perovskites.

    Raises:
        FileNotFoundError: none is embedded.
    """
    names = [name for name in known_checkpoints() if name.startswith("crystals")]
    if not names:
        raise FileNotFoundError("no crystal checkpoint is embedded; name one with --checkpoint, or a rule with --rule")
    return sorted(names, key=lambda name: ("mp" not in name, name))[0]
