"""Structures of given compositions from a trained flow, many at once, the best by its own judgement first."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import manifoldflow as mf
from manifoldflow.checkpoint import known_checkpoints
from manifoldflow.tasks.common.runs import load_model
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.crystals.batches import crystals_of
from manifoldflow.tasks.crystals.picking import doubt
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
        choose: samples for each structure, of which the one is kept that the flow doubts least; 1 keeps all.
        progress: show a bar.

    Returns:
        One list a cell, the least doubted first. A structure whose lattice came out as no cell is left out, so a list may be
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
        task = bar.add_task("sampling", total=len(cells) * num)

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
    callback: Callable[[int], None] | None = None,
) -> list[list[Crystal]]:
    """:func:`predict` with a flow; ``callback`` gets the number of structures of each batch."""
    rows = sorted((i for i in range(len(cells)) for _ in range(num)), key=lambda i: len(cells[i]))
    result: list[list[tuple[float, Crystal]]] = [[] for _ in cells]
    start = number = 0
    while start < len(rows):
        end = start + 1
        while (
            end < len(rows) and (end + 1 - start) * choose * len(cells[rows[end]]) ** 2 <= PAIRS and end - start < 512
        ):
            end += 1
        batch = [list(cells[i]) for i in rows[start:end]]
        for i, found in zip(
            rows[start:end], _drawn(flow, batch, steps, generator_of(seed, number), choose), strict=True
        ):
            if found is not None:
                result[i].append(found)
        if callback is not None:
            callback(end - start)
        start, number = end, number + 1
    ranked = [sorted(some, key=lambda pair: pair[0]) for some in result]
    return [[_named(crystal, i, k, value) for k, (value, crystal) in enumerate(some)] for i, some in enumerate(ranked)]


def _drawn(
    flow: mf.Flow, cells: list[list[int]], steps: int, generator: torch.Generator, choose: int
) -> list[tuple[float, Crystal] | None]:
    """The least doubted of so many samples of each cell, and the doubt; None for what is no cell."""
    count = torch.tensor([len(cell) for cell in cells])
    mask = torch.arange(int(count.max())) < count[:, None]
    species = torch.zeros(mask.shape, dtype=torch.int64)
    species[mask] = torch.tensor([s for cell in cells for s in cell])
    mask, species = mask.repeat(choose, 1), species.repeat(choose, 1)
    with torch.no_grad():
        x = flow.sample(tuple(mask.shape), mask=mask, known={"species": species}, steps=steps, generator=generator)
    made = crystals_of(x, mask)
    doubts = doubt(flow, made).nan_to_num(torch.inf).unflatten(0, (choose, len(cells)))
    best = made.rows(doubts.argmin(0) * len(cells) + torch.arange(len(cells)))
    found: list[tuple[float, Crystal] | None] = []
    for k, value in enumerate(doubts.amin(0).tolist()):
        try:
            found.append((value, best.crystal(k).reduced()))
        except ValueError:  # a lattice that is no cell
            found.append(None)
    return found


def _named(crystal: Crystal, i: int, k: int, value: float) -> Crystal:
    return Crystal(crystal.species, crystal.frac, crystal.cell, f"{i}_{k}", {"number": i, "doubt": value})


def default_checkpoint() -> str:
    """The embedded crystal flow: that of the Materials Project set before that of perovskites.

    Raises:
        FileNotFoundError: none is embedded.
    """
    names = [name for name in known_checkpoints() if name.startswith("crystals")]
    if not names:
        raise FileNotFoundError("no crystal checkpoint is embedded; name one with --checkpoint, or a rule with --rule")
    return sorted(names, key=lambda name: ("mp" not in name, name))[0]
