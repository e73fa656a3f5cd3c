"""Structures of given compositions from a trained flow, many at once, the best single guess first."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
DRAWS = 20
"""Of each composition where nobody says otherwise: their distances to each other are what the choice among them takes."""


def predict(
    checkpoint: str | Path | None,
    cells: Sequence[Sequence[int]],
    num: int = 1,
    *,
    steps: int | None = None,
    seed: int = 0,
    choose: int | None = None,
    progress: bool = True,
) -> list[list[Crystal]]:
    """Structures of cells whose species are given.

    Args:
        checkpoint: embedded name, model file or run folder; None for the embedded one that fits each cell, see :func:`fitting`.
        cells: species of all atoms of each cell.
        num: structures for each.
        steps: of sampling; 50 if absent.
        seed: of the draws: the same seed and cells give the same structures.
        choose: samples for each structure that is kept: of ``num * choose`` those are put forward whose expected error is least,
            see :mod:`manifoldflow.tasks.crystals.consensus`; 1 keeps all, in that order. If absent as many as make 20 samples of
            each cell, at least 1.
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
    if choose is None:
        choose = max(1, DRAWS // num)
    if checkpoint is None:
        default_checkpoint()  # there must be one
        embedded = [name for name in known_checkpoints() if name.startswith("crystals")]
        names: list[str | Path] = [fitting(embedded, _counted(cell)) for cell in cells]
    else:
        names = [checkpoint] * len(cells)
    result: list[list[Crystal]] = [[] for _ in cells]
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("sampling", total=len(cells) * num * choose)

        def made(count: int) -> None:
            bar.advance(task, count)

        for name in dict.fromkeys(names):
            flow, _ = load_model(name, BUILDER, "crystal flow")
            flow.eval()
            rows = [i for i, one in enumerate(names) if one == name]
            some = candidates(
                flow, [cells[i] for i in rows], num, steps=steps or STEPS, seed=seed, choose=choose, callback=made
            )
            for i, found in zip(rows, some, strict=True):
                result[i] = [replace(c, name=f"{i}_{k}", labels={"number": i}) for k, c in enumerate(found)]
    return result


def fitting(embedded: Sequence[str], counts: Sequence[tuple[int, int]] | None) -> str:
    """The embedded checkpoint for one cell: that of perovskites for one unit ABX3 of its elements (X3 being three of N, O, F and
    S, alike or not), else that of all.

    Args:
        embedded: names.
        counts: ``(species, count)`` of the cell, None where they are open.
    """
    general = "crystals_mp" if "crystals_mp" in embedded else embedded[0]
    if counts is None or "crystals_perov" not in embedded:
        return general
    from manifoldflow.tasks.crystals.nearest import embedded_known

    known = embedded_known("perov_5")
    has_elements = known is not None and all((known.elements[:, number] > 0).any() for number, _ in counts)
    anions = sum(count for number, count in counts if number in _ANIONS)
    return "crystals_perov" if has_elements and anions == 3 and sum(count for _, count in counts) == 5 else general


_ANIONS = (6, 7, 8, 15)
"""Species numbers of N, O, F and S."""


def _counted(cell: Sequence[int]) -> list[tuple[int, int]]:
    return sorted(Counter(int(s) for s in cell).items())


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
