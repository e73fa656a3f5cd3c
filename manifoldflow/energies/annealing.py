"""Batches for :func:`manifoldflow.training.fit` that lead a Boltzmann generator from high temperatures to its own."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from manifoldflow.energies.boltzmann import BoltzmannGenerator, Weighted
from manifoldflow.state import map_state

Batches = Callable[[int], Iterator[dict[str, Any]]]


def cooling(size: int, hot: float, steps: int) -> Batches:
    """Reverse KL that begins at a high temperature, where all modes are one, and cools geometrically to that of the potential.

    Args:
        size: of a batch.
        hot: first temperature, in units of the potential's own.
        steps: until the potential's own temperature is reached.

    Returns:
        what :func:`manifoldflow.training.fit` takes as ``batches``: a continued run continues to cool.
    """
    _check(hot, steps)

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for step in itertools.count(start):
            yield {"size": size, "temperature": temperature_at(step, hot, steps)}

    return batches


def reweighting(
    model: BoltzmannGenerator,
    size: int,
    *,
    hot: float = 1.0,
    steps: int = 1,
    buffer: int = 4096,
    every: int = 25,
    keep: int = 4,
    own: int = 0,
    seed: int = 0,
) -> Batches:
    r"""Forward KL on samples of the flow itself, weighted to the next temperature (Schopmans and Friederich 2025).

    Every so many steps the flow is sampled and the samples are weighted; batches are drawn by weight from the last few such
    sets. So data never run out, and what the flow makes too rarely gets a large weight: modes are not dropped as by reverse KL.
    Weights are cut at :math:`\sqrt n` times their mean (Ionides 2008), in training only.

    Args:
        model: the generator that is being trained, with an energy.
        size: of a batch.
        hot: first temperature, in units of the potential's own; 1 for no annealing.
        steps: until the potential's own temperature is reached, geometrically.
        buffer: samples of a set; each costs one call of the energy.
        every: steps between sets.
        keep: sets that are drawn from.
        own: samples of reverse KL beside them, at the same temperature; 0 for none.
        seed: of the draws.
    """
    _check(hot, steps)
    if min(size, buffer, every, keep) < 1 or own < 0:
        raise ValueError(f"size, buffer, every and keep must be at least 1, got {size}, {buffer}, {every}, {keep}")

    def batches(start: int) -> Iterator[dict[str, Any]]:
        sets: list[tuple[float, Weighted]] = []
        x: Any = None
        weight = torch.ones(1)
        for step in itertools.count(start):
            temperature = temperature_at(step, hot, steps)
            generator = torch.Generator().manual_seed(seed + step)
            if x is None or step % every == 0:
                fresh = model.weighted(buffer, temperature=temperature, generator=generator)
                sets = [*sets, (temperature, fresh)][-keep:]
                now = [made.at(temperature, before=t) for t, made in sets]
                x = map_state(lambda *v: torch.cat(v), *(made.x for made in now))
                weight = torch.cat([truncated(made.log_weight) for made in now])
            rows = torch.multinomial(weight, size, replacement=True, generator=generator)
            batch = {"x": map_state(lambda v, r=rows: v[r], x), "temperature": temperature}
            yield {**batch, "size": own} if own else batch

    return batches


def temperature_at(step: int, hot: float, steps: int) -> float:
    """Geometric from ``hot`` to 1 in so many steps, then 1."""
    return max(1.0, hot ** (1 - step / steps))


def truncated(log_weight: Tensor) -> Tensor:
    r"""Normalised weights ``(n,)``, in float64, none larger before it than :math:`\sqrt n` times the mean."""
    share = log_weight.double().softmax(0)
    cut = share.clamp_max(len(share) ** -0.5)
    return cut / cut.sum()


def _check(hot: float, steps: int) -> None:
    if not (math.isfinite(hot) and hot >= 1) or steps < 1:
        raise ValueError(f"annealing needs hot >= 1 and steps >= 1, got {hot} and {steps}")
