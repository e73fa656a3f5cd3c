"""Crystals from a trained flow: a composition given, none, a sublattice held, or a guessed prototype to be refined."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.state import fields
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.crystals.batches import crystals_of, state_of
from manifoldflow.tasks.crystals.structure import Crystal, collate

__all__ = ["STEPS", "Wanted", "batches_of", "draw"]

STEPS = 50
"""Of sampling, where nobody says otherwise."""
PAIRS = 8_000
"""Pairs of atoms in a batch: what a core keeps in its cache."""
BLUR = 0.02
"""Of a guess before a flow that was trained on guesses, as in its training."""
JUMPS = mf.Jumps(temperature=0.7)
"""How species are drawn where nobody says otherwise: at temperature 1 crystals get twice as many elements as real ones have."""
REFINE_FROM = 0.6
"""Time at which a guess is noised and handed to a flow that never saw guesses; 0 forgets it, 1 keeps it as it is."""


@dataclass(frozen=True)
class Wanted:
    """What to make, one crystal each time.

    Args:
        atoms: in the cell.
        species: of all atoms; None leaves them to the flow.
        guess: a crystal to begin from, of these atoms in this order.
        fixed: bool ``(atoms,)``, atoms of the guess that stay where they are; its cell then stays, too.
        label: what it is called in file names.
    """

    atoms: int
    species: tuple[int, ...] | None = None
    guess: Crystal | None = None
    fixed: tuple[bool, ...] | None = None
    label: str = ""


def batches_of(wanted: Sequence[Wanted], most: int = 64) -> Iterator[list[int]]:
    """Row numbers in batches that fit into memory, in order; what has guesses, sublattices or species never shares one with
    what has none."""
    batch: list[int] = []
    for i, one in enumerate(wanted):
        first = wanted[batch[0]] if batch else one
        longest = max(wanted[k].atoms for k in [*batch, i])
        alike = [
            (a is None) == (b is None)
            for a, b in ((one.species, first.species), (one.guess, first.guess), (one.fixed, first.fixed))
        ]
        if batch and (len(batch) == most or (len(batch) + 1) * longest**2 > PAIRS or not all(alike)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def draw(
    flow: mf.Flow,
    wanted: Sequence[Wanted],
    *,
    steps: int = STEPS,
    seed: int = 0,
    number: int = 0,
    from_prototypes: bool = False,
    blur: float = BLUR,
    conditions: Mapping[str, float] | None = None,
    jumps: mf.Jumps | None = None,
    callback: Callable[[], Any] | None = None,
) -> list[Crystal]:
    """Crystals of one batch, atoms in the order wanted.

    Args:
        flow: a crystal flow.
        wanted: what to make; of one kind, see :func:`batches_of`.
        steps: of sampling.
        seed, number: of the run and of the batch: the same two give the same crystals.
        from_prototypes: the flow was trained to start from guesses; otherwise a guess is noised to a middle time.
        blur: of a guess before such a flow: what makes its crystals differ.
        conditions: what all are asked to be, of those that the flow was trained with.
        jumps: how species that are not given are drawn; :data:`JUMPS` if absent.
        callback: called after every step.
    """
    generator = generator_of(seed, number)
    device = next(flow.parameters()).device
    longest = max(one.atoms for one in wanted)
    mask = torch.arange(longest) < torch.tensor([one.atoms for one in wanted])[:, None]
    known: dict[str, Tensor] = {}
    where: dict[str, Tensor] = {}
    options: dict[str, Any] = {}
    cond = {name: torch.full((len(mask),), float(value)) for name, value in (conditions or {}).items()}
    if wanted[0].species is not None:
        species = torch.zeros(mask.shape, dtype=torch.int64)
        species[mask] = torch.tensor([s for one in wanted for s in one.species or ()])
        known["species"], where["species"] = species, mask
    times = flow.time_grid(steps).float()
    if wanted[0].guess is not None:
        guesses = collate([one.guess for one in wanted if one.guess is not None], longest)
        guess = state_of(guesses)
        if wanted[0].fixed is not None:
            fixed = torch.zeros_like(mask)
            fixed[mask] = torch.tensor([f for one in wanted for f in one.fixed or ()])
            known |= {"frac": guess["frac"], "lattice": guess["lattice"]}
            where |= {"frac": fixed, "lattice": torch.ones(len(mask), dtype=torch.bool)}
            known["species"], where["species"] = guess["species"], mask
        elif from_prototypes:
            from manifoldflow.tasks.crystals.batches import start_from

            options["x0"] = start_from(guesses, blur, generator)
            cond["prototype"] = torch.ones(len(mask))
        else:
            start = REFINE_FROM
            times = torch.cat([torch.tensor([start]), times[times > start]])
            if len(times) < 2:
                times = torch.tensor([start, 1.0])
            noise = fields(flow.draw_source(tuple(mask.shape), mask=mask, generator=generator))
            x0 = {}
            for name in ("frac", "lattice"):
                shape = (len(mask), longest) if name == "frac" else (len(mask),)
                t = torch.full(shape, start)
                x0[name] = flow.path[name].sample(noise[name], guess[name], t, generator=generator).x
            options["x0"] = {**noise, **x0, "species": flow.path["species"].state_of(guess["species"])}
        options["times"] = times
    if "times" not in options:
        options["steps"] = steps
    moved = {k: v.to(device) for k, v in known.items()}
    masks = {k: v.to(device) for k, v in where.items()}
    if cond:
        options["cond"] = {name: value.to(device) for name, value in cond.items()}
    if "species" not in known and (jumps is not None or flow.path["species"].jumps):
        options["method"] = jumps or JUMPS
    with torch.no_grad(), _slope(flow, "prototype" not in cond):
        x = flow.sample(
            tuple(mask.shape),
            mask=mask.to(device),
            known=moved or None,
            known_mask=masks or None,
            generator=generator
            if device.type == "cpu"
            else torch.Generator(device).manual_seed(generator.initial_seed()),
            callback=None if callback is None else lambda *_: callback(),
            **options,
        )
    made = crystals_of({k: v.cpu() for k, v in x.items()}, mask)
    crystals: list[Crystal] = []
    for row in range(len(mask)):
        try:
            crystal = made.crystal(row)
        except (ValueError, RuntimeError):
            crystal = Crystal(np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((3, 3)))
        crystals.append(crystal)
    return crystals


@contextmanager
def _slope(flow: mf.Flow, kept: bool) -> Iterator[None]:
    """Within, velocities are as learned unless ``kept``: annealed ones overshoot where the start is near already."""
    from manifoldflow.tasks.crystals.flow import annealed

    before = dict(flow.path)
    try:
        if not kept:
            annealed(flow, 0.0)
        yield
    finally:
        for name, path in before.items():
            flow.path[name] = path
