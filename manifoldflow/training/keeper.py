"""Curves, checkpoints, scores and the clock of a run."""

import csv
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from manifoldflow import checkpoint
from manifoldflow.files import atomic
from manifoldflow.training.config import TrainConfig
from manifoldflow.training.curves import plot_losses, read_rows, write_rows
from manifoldflow.training.trainable import Batch, size_of


class Keeper(pl.Callback):
    """Curves and checkpoints.

    Args:
        folder: of the run; None keeps nothing but the best weights, in memory.
        config: how to train.
        score: what the weights are chosen by.
        callback: called with every row of the curve.

    Attributes:
        shown: latest numbers by name, for the console.
        best_weights: of a run without a folder.
    """

    def __init__(
        self,
        folder: Path | None,
        config: TrainConfig,
        score: Callable[[Any], float] | None,
        callback: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.folder, self.config, self.score, self.callback = folder, config, score, callback
        self.best_weights: dict[str, Tensor] = {}
        self.best, self.since_best, self.scored = math.inf, 0, -1
        self.sums: dict[str, Tensor] = {}
        self.count, self.elements, self.clock, self.paused = 0, 0, time.monotonic(), 0.0
        self.interrupted = self.terminated = self.updating = self.pending = False
        self.shown: dict[str, float] = {}

    @property
    def state_key(self) -> str:
        """The name of this state in resume files, since version 0.1."""
        return "_Keeper"

    @contextmanager
    def interrupts_between_steps(self) -> Iterator[None]:
        """Within, Ctrl-C waits while the weights are being updated: half an update must not be saved."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: Any) -> None:
            if self.updating and not self.pending:
                self.pending = True
            else:  # a second one does not wait
                raise KeyboardInterrupt

        # A process that was started to ignore Ctrl-C (nohup, a background job) goes on ignoring it.
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def state_dict(self) -> dict[str, Any]:
        """What the next row of the curve is made of."""
        best = {"best": self.best, "since_best": self.since_best, "scored": self.scored}
        return {"sums": self.sums, "count": self.count, **best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.count = dict(state["sums"]), state["count"]
        self.best, self.since_best, self.scored = (
            state.get(name, start) for name, start in (("best", math.inf), ("since_best", 0), ("scored", -1))
        )

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.updating = True

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.folder is not None:
            self._trim(self.folder / "metrics.csv", trainer.global_step)
        self.clock = time.monotonic()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        # A step of several batches is stopped at its end, or begun again: its gradients are not saved.
        self.updating = self.updating or self.config.accumulate > 1

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        for name, value in module.parts.items():
            self.sums[name] = self.sums[name].to(value.device) + value.detach() if name in self.sums else value.detach()
        self.count += 1
        mask = batch.get("mask")
        # Shapes only, so that counting never waits for the device.
        self.elements += mask.shape[:2].numel() if isinstance(mask, Tensor) else size_of(batch)
        if (batch_idx + 1) % self.config.accumulate:
            return
        step = trainer.global_step
        if step % self.config.log_every == 0:
            self._log(trainer, module, step)
            self.sums, self.count, self.elements, self.clock = {}, 0, 0, time.monotonic()
        if self.score is not None and step % self.config.validate_every == 0:
            self._take_score(trainer, module)
        if step % self.config.checkpoint_every == 0:
            self._keep(trainer, module)
        # Not Lightning's timer, which may stop in the middle of a step. The clock is one that all processes share.
        if 0 < self.config.max_minutes <= (module.minutes if trainer.world_size == 1 else module.rate_minutes):
            trainer.should_stop = True
        self.updating = False
        if self.pending:
            raise KeyboardInterrupt

    def _log(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        # Over all processes: the curve is that of the whole batch, and all of them see a NaN.
        means = {
            name: float(trainer.strategy.reduce(total / self.count, reduce_op="mean"))
            for name, total in self.sums.items()
        }
        loss = sum(means.values())
        if not math.isfinite(loss):
            self._stop(f"the loss is {loss} at step {step}")
        speed = self.elements / max(time.monotonic() - self.clock, 1e-9)
        row = {
            "step": step,
            "minutes": round(module.minutes, 3),
            "loss": loss,
            **means,
            "rate": trainer.optimizers[0].param_groups[0]["lr"],
            "elements_per_s": speed,
        }
        self._write(trainer, row)
        self.shown |= {"loss": loss, "per_s": speed}

    def _stop(self, what: str) -> None:
        last = self.folder / "last.ckpt" if self.folder is not None else Path()
        kept = f"the last good checkpoint is {last}" if last.is_file() else "there is no checkpoint yet"
        raise FloatingPointError(f"{what}; {kept}. Lower learning_rate or check the data")

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.paused = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        self._write(trainer, {"step": trainer.global_step, "minutes": round(module.minutes, 3), **values})
        self.shown |= {"val": values["val_loss"]} if "val_loss" in values else {}
        self.clock += time.monotonic() - self.paused  # speed is that of training

    def _take_score(self, trainer: pl.Trainer, module: Any) -> None:
        assert self.score is not None
        if self.scored == trainer.global_step:
            return
        self.scored = trainer.global_step
        began = time.monotonic()
        value = 0.0
        if trainer.is_global_zero:
            value = float(self.score(module.averaged.eval()))
        value = trainer.strategy.broadcast(value)
        self._write(trainer, {"step": self.scored, "minutes": round(module.minutes, 3), "val_score": value})
        self.shown["score"] = value
        # A score of NaN is no better than any.
        if value < self.best:
            self.best, self.since_best = value, 0
            if trainer.is_global_zero:
                self._save_model(trainer, module, {"score": value})
        else:
            self.since_best += 1
            trainer.should_stop = trainer.should_stop or 0 < self.config.patience <= self.since_best
        self.clock += time.monotonic() - began

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self.count and trainer.global_step > 0:  # steps since the last row; they count again if the run goes on
            self._log(trainer, module, trainer.global_step)
        if self.score is not None:
            self._take_score(trainer, module)
        self._keep(trainer, module)

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        self.terminated = isinstance(exception, SIGTERMException)  # between steps, by a scheduler or `kill`
        # Saving needs all processes, which are interrupted at different places: the last regular checkpoint stays. So it does
        # after a second Ctrl-C, in the middle of an update.
        stays = self.interrupted or self.terminated or bool(getattr(exception, "keeps_run", False))
        if stays and trainer.global_step > 0 and trainer.world_size == 1 and not self.updating:
            self._keep(trainer, module)

    def _write(self, trainer: pl.Trainer, row: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        if self.callback is not None:
            self.callback(dict(row))
        if self.folder is None:
            return
        path = self.folder / "metrics.csv"
        rows = read_rows(path)
        names = list(rows[0]) if rows else []
        if all(name in names for name in row):
            with path.open("a", newline="") as file:
                csv.DictWriter(file, names).writerow(row)
        else:
            write_rows(path, [*rows, {k: str(v) for k, v in row.items()}])

    def _trim(self, path: Path, step: int) -> None:
        """Drop rows beyond the step that a continued run starts from: they will be made again. So is a row of steps that the
        next row counts, too."""
        rows = read_rows(path)

        def stays(row: dict[str, str]) -> bool:
            return int(row["step"]) <= step and not (self.count and int(row["step"]) == step and row.get("loss"))

        kept = [row for row in rows if stays(row)]
        if len(kept) < len(rows):
            write_rows(path, kept)

    def _keep(self, trainer: pl.Trainer, module: Any) -> None:
        began = time.monotonic()
        if trainer.world_size > 1:  # only the first process writes, so its sums must stand for all
            self.sums = {k: trainer.strategy.reduce(v.clone(), reduce_op="mean") for k, v in self.sums.items()}
        numbers = [*self.sums.values(), *module.flow.parameters()]
        if not bool(torch.stack([v.detach().sum().isfinite().to("cpu") for v in numbers]).all()):
            self._stop(f"the loss or a weight is NaN or infinite at step {trainer.global_step}")
        if self.folder is None:
            return
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero:
            with atomic(last) as fresh:
                trainer.save_checkpoint(fresh)
                if last.exists():
                    os.replace(last, self.folder / "previous.ckpt")
        else:
            trainer.save_checkpoint(last)  # takes part, and writes nothing
            return
        if self.score is None or not math.isfinite(
            self.best
        ):  # no score was a number yet: better these weights than none
            self._save_model(trainer, module, {})
        plot_losses(self.folder)
        self.clock += time.monotonic() - began

    def _save_model(self, trainer: pl.Trainer, module: Any, more: dict[str, Any]) -> None:
        if self.folder is None:
            self.best_weights = {name: value.clone() for name, value in module.averaged.state_dict().items()}
            return
        facts = {
            **module.facts,
            **more,
            "step": trainer.global_step,
            "minutes": round(module.minutes, 2),
            "train": asdict(self.config),
            "hardware": _hardware(trainer),
            "torch": torch.__version__,
            "parameters": sum(p.numel() for p in module.flow.parameters()),
        }
        if module.changed:
            facts["continued"] = module.changed
        checkpoint.save(module.averaged, self.folder / "model.safetensors", facts)


def _hardware(trainer: pl.Trainer) -> str:
    if torch.cuda.is_available():
        return f"{trainer.world_size} x {torch.cuda.get_device_name()}"
    machine = platform.processor() or platform.machine()
    return f"{trainer.world_size} process(es) x {torch.get_num_threads()} thread(s) of {machine}"


def compile_network(module: nn.Module) -> None:
    """Run a module's network through ``torch.compile``, in place: names of weights stay as they are."""
    inner = getattr(module, "model", None)
    (inner if isinstance(inner, nn.Module) else module).compile()
