"""How backbones are drawn: settings that were chosen by measuring samples, in one place for every command.

The network was trained with noise of 10 A and sees every time alike. Sampling may differ: less noise makes rounder shapes, late
times want small steps, and what a first pass made becomes more protein-like when it is noised half-way and denoised once more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf

TRAINED = (50, 128)
"""Residues of the chains that the embedded checkpoints were trained on."""


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler.

    Args:
        steps: of the first pass, at times u^power with u even from 0 to 1.
        noise: standard deviation of the source positions in angstrom; None: the flow's own.
        power: below 1 puts more of the steps to late times.
        again: time to which the first pass is noised again and from which it is denoised once more; 1 = not at all.
        again_steps: of that second pass.
        again_noise: its noise in angstrom; None: the flow's own.
    """

    steps: int = 40
    noise: float | None = 9.5
    power: float = 0.5
    again: float = 0.6
    again_steps: int = 20
    again_noise: float | None = 8.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("again_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.power > 0:
            raise ValueError(f"power must be above 0, got {self.power}")
        if not 0 <= self.again <= 1:
            raise ValueError(f"again is a time from 0 to 1, got {self.again}")
        for name in ("noise", "again_noise"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0 angstrom, got {value}")

    @property
    def calls(self) -> int:
        """Steps of both passes."""
        return self.steps + (self.again_steps if self.again < 1 else 0)

    @classmethod
    def of(cls, steps: int, **settings: Any) -> "Sampling":
        """Settings with ``steps`` steps in all: a third of them for the second pass, if there is one (none below 6 steps)."""
        if steps < 1:
            raise ValueError(f"--steps must be at least 1, got {steps}")
        twice = steps >= 6 and settings.get("again", cls.again) < 1
        second = steps // 3 if twice else 0
        return cls(
            **{**settings, "steps": steps - second, "again_steps": max(second, 1)} | ({} if twice else {"again": 1.0})
        )


DEFAULT_STEPS = Sampling().calls


def sample_frames(
    flow: mf.Flow,
    lengths: Sequence[int],
    settings: Sampling = Sampling(),
    *,
    method: Any = "euler",
    cond: Any = None,
    known: dict[str, Tensor] | None = None,
    known_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    callback: Callable[[int, Any], None] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Backbones of a protein flow, not relaxed: frames (quaternions, if the flow has them) and mask ``(B, N)``.

    Args:
        flow: made by :func:`manifoldflow.tasks.proteins.build`.
        lengths: residues of each.
        settings: of the sampler.
        method: integrator, see :meth:`manifoldflow.Flow.sample`.
        cond, known, known_mask: condition and motif, see there.
        generator: of every random draw.
        trajectory: all states of both passes along a new first axis.
        callback: called after every step with its number, from 1 to ``settings.calls``, and the state.
    """
    device = next(flow.parameters()).device
    length = torch.tensor(list(lengths), device=device)
    mask = torch.arange(int(length.max()), device=device) < length.unsqueeze(-1)
    options: dict[str, Any] = {
        "lengths": list(lengths),
        "method": method,
        "cond": cond,
        "known": known,
        "known_mask": known_mask,
        "generator": generator,
        "trajectory": trajectory,
    }
    x0 = _source(flow, mask, settings.noise, generator)
    times = torch.linspace(0, 1, settings.steps + 1, dtype=torch.float64) ** settings.power
    x, _ = flow.sample(times=times.float(), x0=x0, callback=callback, **options)
    if settings.again == 1:
        return x, mask
    made = {k: v[-1] for k, v in x.items()} if trajectory else x
    start = _noised(flow, _source(flow, mask, settings.again_noise, generator), made, settings.again)
    times = torch.linspace(settings.again, 1, settings.again_steps + 1)

    def counted(step: int, state: Any) -> None:
        if callback is not None:
            callback(settings.steps + step, state)

    again, _ = flow.sample(times=times, x0=start, callback=counted, **options)
    return ({k: torch.cat([x[k], again[k]]) for k in x} if trajectory else again), mask


def _source(flow: mf.Flow, mask: Tensor, noise: float | None, generator: torch.Generator | None) -> dict[str, Tensor]:
    x0: Any = flow.draw_source(tuple(mask.shape), mask=mask, generator=generator, device=mask.device)
    if noise is not None:
        trained: Any = flow.source["trans"]
        x0 = {**x0, "trans": x0["trans"] * (noise / trained.scale)}
    return x0


def _noised(flow: mf.Flow, x0: dict[str, Tensor], x1: dict[str, Tensor], t: float) -> dict[str, Tensor]:
    """The point at time ``t`` of the way from source to sample that the sampler takes, field by field."""
    out = {}
    paths: dict[str, Any] = flow.path
    for name, path in paths.items():
        schedule = path.sample_schedule or path.schedule
        k = schedule.k(torch.tensor(t, device=x1[name].device))
        out[name] = path.space.exp(x0[name], k * path.space.log(x0[name], x1[name]))
    return out
