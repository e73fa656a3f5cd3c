"""Structures of given compositions from a trained flow, many at once: what judging it needs."""

from collections.abc import Sequence
from pathlib import Path

import torch

from manifoldflow.checkpoint import known_checkpoints
from manifoldflow.tasks.common.runs import load_model
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.crystals.batches import crystals_of
from manifoldflow.tasks.crystals.structure import Crystal

BUILDER = "manifoldflow.tasks.crystals.flow:build"
PAIRS = 100_000
"""Pairs of atoms in a batch, what memory and time grow with."""


def predict(
    checkpoint: str | Path | None,
    cells: Sequence[Sequence[int]],
    num: int = 1,
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> list[list[Crystal]]:
    """Structures of cells whose species are given.

    Args:
        checkpoint: embedded name, model file or run folder; None for the embedded one.
        cells: species of all atoms of each cell.
        num: structures for each.
        steps: of sampling; 100 if absent.
        seed: of the draws: the same seed and cells give the same structures.
        progress: show a bar.

    Returns:
        One list a cell. A structure whose lattice came out as no cell is left out, so a list may be shorter.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is no crystal flow, or steps is below 1.
    """
    from rich.progress import Progress

    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    flow, _ = load_model(default_checkpoint() if checkpoint is None else checkpoint, BUILDER, "crystal flow")
    flow.eval()
    rows = sorted((i for i in range(len(cells)) for _ in range(num)), key=lambda i: len(cells[i]))
    result: list[list[Crystal]] = [[] for _ in cells]
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("sampling", total=len(rows))
        start = number = 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and (end + 1 - start) * len(cells[rows[end]]) ** 2 <= PAIRS and end - start < 512:
                end += 1
            batch = [list(cells[i]) for i in rows[start:end]]
            count = torch.tensor([len(cell) for cell in batch])
            mask = torch.arange(int(count.max())) < count[:, None]
            species = torch.zeros(mask.shape, dtype=torch.int64)
            species[mask] = torch.tensor([s for cell in batch for s in cell])
            with torch.no_grad():
                x = flow.sample(
                    tuple(mask.shape),
                    mask=mask,
                    known={"species": species},
                    steps=steps or 100,
                    generator=generator_of(seed, number),
                )
            made = crystals_of(x, mask)
            for k, i in enumerate(rows[start:end]):
                try:
                    crystal = made.crystal(k, f"{i}_{len(result[i])}", {"number": i}).reduced()
                except ValueError:  # a lattice that is no cell
                    continue
                result[i].append(crystal)
            bar.advance(task, end - start)
            start, number = end, number + 1
    return result


def default_checkpoint() -> str:
    """The embedded crystal flow: that of the Materials Project set before that of perovskites.

    Raises:
        FileNotFoundError: none is embedded.
    """
    names = [name for name in known_checkpoints() if name.startswith("crystals")]
    if not names:
        raise FileNotFoundError("no crystal checkpoint is embedded; name one with --checkpoint, or a rule with --rule")
    return sorted(names, key=lambda name: ("mp" not in name, name))[0]
