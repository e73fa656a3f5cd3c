"""How to train: the one place for every default."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

LARGEST_SEED = 2**40
"""Data sets multiply a seed by a million and add the step; that still fits the 64 bits of torch's generators."""


@dataclass
class TrainConfig:
    """How to train.

    Args:
        max_steps: optimiser steps.
        max_minutes: stop after this much wall time, over all continued runs; 0 for no limit.
        learning_rate: peak of the schedule.
        weight_decay: on matrices only.
        betas: of AdamW.
        warmup_steps: linear rise of the learning rate.
        schedule: "constant", "cosine" (to zero), or "wsd" (constant, then linear to zero over the last ``decay``).
        decay: share of the run that "wsd" spends decaying.
        gradient_clip: bound on the norm of the gradient.
        accumulate: batches whose gradients are averaged to one optimiser step, where a larger batch does not fit the memory.
        ema: decay of the averaged weights, which are the ones validated and saved; it warms up as (1 + n) / (10 + n).
        precision: a Lightning precision, or "auto": bf16-mixed on GPUs that have it, else float32.
        compile: train the network through ``torch.compile``: about a minute more to start, then quicker steps (with
            bf16-mixed twice as quick for the sequence networks, also on recent CPUs).
        validate_every, log_every, checkpoint_every: in steps.
        patience: stop after this many scores in a row without a better one; 0 for never. Only with ``score=``.
        seed: of everything; the draws of a step depend on the seed and the step alone, not on the number of processes.
        workers: processes that make the batches, 0 for none; the batches are the same.
        accelerator, devices, num_nodes, strategy: as in Lightning's Trainer. A batch is split between the processes, and
            the run is the same as that of one process with the whole batch.
        progress: show a progress bar.
    """

    max_steps: int = 100_000
    max_minutes: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 200
    schedule: Literal["constant", "cosine", "wsd"] = "wsd"
    decay: float = 0.25
    gradient_clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.999
    precision: str = "auto"
    compile: bool = False
    validate_every: int = 1000
    log_every: int = 50
    checkpoint_every: int = 500
    patience: int = 0
    seed: int = 0
    workers: int = 0
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        least = dict.fromkeys(("max_steps", "validate_every", "log_every", "checkpoint_every", "num_nodes"), 1)
        least |= dict.fromkeys(("max_minutes", "warmup_steps", "weight_decay", "gradient_clip", "patience"), 0)
        least |= {"accumulate": 1, "workers": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {self.decay}")
        if self.schedule not in ("constant", "cosine", "wsd"):
            raise ValueError(f"schedule must be 'constant', 'cosine' or 'wsd', got {self.schedule!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if abs(self.seed) > LARGEST_SEED:
            raise ValueError(f"seed must lie within 2^40 of zero, got {self.seed}")

    def rate(self, step: int, minutes: float) -> float:
        """The learning rate after ``step`` steps and that much wall time, as a share of its peak."""
        done = step / self.max_steps
        if self.max_minutes > 0:
            done = max(done, minutes / self.max_minutes)
        done = min(done, 1.0)
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if self.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "wsd":
            return warm * min(1.0, (1 - done) / max(self.decay, 1e-9))
        return warm

    def changes(self, before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """The settings in which a run differs from one made with ``before`` (a dict of settings): ``{name: (then, now)}``."""
        now = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: (before[name], value)
            for name, value in now.items()
            if name in before and _plain(before[name]) != _plain(value) and name not in ("progress", "workers")
        }


def _plain(value: Any) -> Any:
    """Tuples are lists once they have been in a JSON file."""
    return list(value) if isinstance(value, tuple) else value
