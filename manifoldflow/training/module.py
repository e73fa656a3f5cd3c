"""What Lightning asks for: a module, its averaged weights, and steps that depend on nothing before them."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from manifoldflow.state import batch_shared_by
from manifoldflow.training.batches import Batches, Carried, Endless, Repeatable, look, seed_of
from manifoldflow.training.config import TrainConfig
from manifoldflow.training.trainable import (
    Batch,
    arguments_of,
    draw_of,
    keys_of,
    loss_of,
    parameter_groups,
    size_of,
    tensors,
)

TRUE_DTYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Precisions in which the weights themselves are of another dtype, and so are the batches."""


class TrainingModule(pl.LightningModule):
    """A module in training, its average, and what Lightning asks for.

    Args:
        flow: what is trained.
        batches, validation: see :func:`manifoldflow.training.fit`.
        config: how to train.
        facts: for the checkpoint.
    """

    def __init__(
        self,
        flow: nn.Module,
        batches: Batches,
        validation: Iterable[Batch] | None,
        config: TrainConfig,
        facts: dict[str, Any],
    ) -> None:
        super().__init__()
        self.flow = flow
        self.average = AveragedModel(flow, multi_avg_fn=self._approach)
        self.average.module.requires_grad_(False)
        self.average.n_averaged += 1  # the average begins at the first weights, not at those after the first step
        self._ddp_params_and_buffers_to_ignore = ["average.n_averaged"]
        self.config, self.facts = config, facts
        self.keys = keys_of(flow)
        self._batches, self._validation = batches, validation
        self.parts: dict[str, Tensor] = {}
        self.minutes_before = self.rate_minutes = 0.0
        self.began = time.monotonic()
        self.changed: list[dict[str, Any]] = []

    @property
    def averaged(self) -> nn.Module:
        """The module with averaged weights."""
        return self.average.module

    @property
    def minutes(self) -> float:
        """Wall time of the run so far, continued runs included."""
        return self.minutes_before + (time.monotonic() - self.began) / 60

    def train_dataloader(self) -> Iterable[Carried]:
        c = self.config
        start = self.global_step * c.accumulate
        return Endless(self._batches, start, c.seed, c.workers, self._check, partial(look, self.flow))

    def val_dataloader(self) -> Iterable[Carried]:
        return [] if self._validation is None else Repeatable(self._validation, self._check)

    def _check(self, batch: Batch) -> None:
        arguments_of(batch, self.keys)

    def transfer_batch_to_device(self, batch: Carried, device: torch.device, dataloader_idx: int) -> Batch:
        return _moved(batch.batch, device, TRUE_DTYPES.get(str(self.trainer.precision)))

    def on_fit_start(self) -> None:
        # Counted on the host: the average asks for the count at every step, and must not wait for the device.
        self.average.n_averaged = self.average.n_averaged.cpu()

    def on_train_start(self) -> None:
        self.began = time.monotonic()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Processes must agree on the learning rate; each has a clock of its own.
        if self.trainer.world_size == 1 or self.config.max_minutes <= 0:
            self.rate_minutes = self.minutes
        elif batch_idx % 10 == 0:
            self.rate_minutes = self.trainer.strategy.broadcast(self.minutes)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # The draws of a step depend on nothing before it, so a continued run repeats an uninterrupted one; and they are
        # made for the whole batch, so several processes repeat one.
        many = self.config.accumulate
        seed = seed_of(self.config.seed, self.global_step * many + batch_idx % many)
        torch.manual_seed(seed)
        drawn = draw_of(self.flow, arguments_of(batch, self.keys), None, self.keys)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if world > 1:
            torch.manual_seed(seed + 1 + rank)  # dropout differs between the shares
            drawn = share(drawn, rank, world)
        with batch_shared_by(self._mean if world > 1 else None):
            self.parts = loss_of(self.flow, drawn)
        return torch.stack(list(self.parts.values())).sum()

    def _mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        return torch.as_tensor(self.trainer.strategy.reduce(value, reduce_op="mean"))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.flow)

    def _approach(self, averaged: Any, now: Any, count: Any) -> None:
        """Averaged weights, moved towards those of now; buffers are copied by the caller."""
        n = self.global_step
        decay = min(self.config.ema, (1 + n) / (10 + n))
        torch._foreach_lerp_(averaged, now, 1 - decay)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        arguments = arguments_of(batch, self.keys)
        size = max(size_of(arguments), 1)
        if self.keys.generator:
            device = next((t.device for t in tensors(arguments)), self.device)
            generator = torch.Generator(device).manual_seed(batch_idx)
            parts = loss_of(self.averaged, draw_of(self.averaged, arguments, generator, self.keys))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(batch_idx)
                parts = loss_of(self.averaged, draw_of(self.averaged, arguments, None, self.keys))
        self.log("val_loss", torch.stack(list(parts.values())).sum(), batch_size=size, sync_dist=True)
        more = {f"val_{k}": v for k, v in parts.items() if k != "loss"}
        self.log_dict(more, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        c = self.config
        groups = parameter_groups(self.flow, c.learning_rate, c.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=c.learning_rate, betas=c.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        return self.config.rate(step, self.rate_minutes)

    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        state["minutes"] = self.minutes
        state["config"], state["changed"] = asdict(self.config), self.changed
        state["facts"], state["model"] = self.facts, getattr(self.flow, "config", None)
        own = getattr(self.flow, "training_state", None)
        if callable(own):
            state["own"] = own()

    def on_load_checkpoint(self, state: dict[str, Any]) -> None:
        self.minutes_before = self.rate_minutes = state.get("minutes", 0.0)
        if "own" in state:
            self.flow.load_training_state(state["own"])  # type: ignore[operator]
        weights = state["state_dict"]
        if "average.n_averaged" not in weights:  # of version 0.1, which averaged by hand
            for name in [n for n in weights if n.startswith("averaged.")]:
                weights["average.module." + name.removeprefix("averaged.")] = weights.pop(name)
            weights["average.n_averaged"] = torch.tensor(state["global_step"] + 1)
        self._apply_changes(state)

    def _apply_changes(self, state: dict[str, Any]) -> None:
        """Settings that changed since a resume file was written count from here on, and are kept on record.

        The optimiser's own come with its state, so they are put there; all else is asked of the configuration anyway.
        """
        step, before = state["global_step"], state.get("config")
        self.changed = list(state.get("changed", []))
        changes = self.config.changes(before) if before is not None else {}
        # The model is built and the data are read by who calls; what changed of them is recorded here.
        told = changes | _differences(state.get("model"), getattr(self.flow, "config", None), "model.")
        told |= _differences(state.get("facts"), self.facts, "")
        if told:
            self.changed.append({"step": step, "changed": {k: [then, now] for k, (then, now) in told.items()}})
            if self.trainer.is_global_zero:
                text = ", ".join(f"{k} {then!r} -> {now!r}" for k, (then, now) in told.items())
                print(f"continuing at step {step} with {text}", flush=True)
        fresh = self.configure_optimizers()["optimizer"].state_dict()["param_groups"]
        saved = state["optimizer_states"][0]["param_groups"]
        for old, new in zip(saved, fresh, strict=False):
            old.update({k: v for k, v in new.items() if k not in ("lr", "initial_lr", "params")})
            if changes or old["initial_lr"] != new["initial_lr"]:
                old["initial_lr"], old["lr"] = new["initial_lr"], new["initial_lr"] * self._rate(step)
        state["lr_schedulers"][0]["base_lrs"] = [group["initial_lr"] for group in saved]
        many = self.config.accumulate
        if many > 1 or "accumulate" in changes:  # the number of a batch is that of its step, times the batches of one
            for kind in ("current", "total"):
                progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"][kind]
                progress.update(dict.fromkeys(("ready", "started", "processed", "completed"), step * many))


def _differences(then: Any, now: Any, prefix: str) -> dict[str, tuple[Any, Any]]:
    """Where two tables differ: ``{prefix + key: (then, now)}``; nothing if one of them is none."""
    if not isinstance(then, Mapping) or not isinstance(now, Mapping):
        return {}
    pairs = {key: (then.get(key), now.get(key)) for key in [*then, *(k for k in now if k not in then)]}
    return {prefix + key: pair for key, pair in pairs.items() if key != "command" and pair[0] != pair[1]}


def share(drawn: Any, rank: int, world: int) -> Any:
    """Every world-th sample. A batch smaller than the world goes to everyone whole. What was drawn may know how to divide itself
    (``share(rank, world)``): of trajectories the first axis is time."""
    own = getattr(drawn, "share", None)
    if callable(own):
        return own(rank, world)
    size = size_of(drawn)

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cut(v) for key, v in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return type(value)._make(cut(v) for v in value)  # type: ignore[attr-defined]
        if isinstance(value, tuple | list):
            return type(value)(cut(v) for v in value)
        has_batch = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
        return value[rank::world] if has_batch else value

    return cut(drawn) if size >= world else drawn


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A batch on another device: the tensors of mappings, sequences and dataclasses, frozen ones too.

    Floating point numbers become ``dtype`` where one is given.
    """
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _moved(v, device, dtype) for key, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return type(value)._make(_moved(v, device, dtype) for v in value)  # type: ignore[attr-defined]
    if isinstance(value, tuple | list):
        return type(value)(_moved(v, device, dtype) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _moved(getattr(value, f.name), device, dtype) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **inner)
    return value
