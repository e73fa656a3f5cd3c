"""Train a flow with Lightning: many devices, mixed precision, averaged weights, curves, and runs that can be continued."""

import copy
import csv
import math
import os
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from manifoldflow import checkpoint
from manifoldflow.curves import plot_losses, read_rows, write_rows
from manifoldflow.flow import Draw, Flow
from manifoldflow.state import batch_shared_by, first_tensor

Batch = Mapping[str, Any]
Batches = Iterable[Batch] | Callable[[int], Iterator[Batch]]


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
        ema: decay of the averaged weights, which are the ones validated and saved; it warms up as (1 + n) / (10 + n).
        precision: a Lightning precision, or "auto": bf16-mixed on GPUs that have it, else float32.
        compile: train the network through ``torch.compile``: about a minute more to start, then quicker steps (with
            bf16-mixed twice as quick for the sequence networks, also on recent CPUs).
        validate_every, log_every, checkpoint_every: in steps.
        patience: stop after this many scores in a row without a better one; 0 for never. Only with ``score=``.
        seed: of everything; the draws of a step depend on the seed and the step alone, not on the number of processes.
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
    ema: float = 0.999
    precision: str = "auto"
    compile: bool = False
    validate_every: int = 1000
    log_every: int = 50
    checkpoint_every: int = 500
    patience: int = 0
    seed: int = 0
    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        least = dict.fromkeys(("max_steps", "validate_every", "log_every", "checkpoint_every", "num_nodes"), 1)
        least |= dict.fromkeys(("max_minutes", "warmup_steps", "weight_decay", "gradient_clip", "patience"), 0)
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


def fit(
    flow: Flow,
    batches: Batches,
    config: TrainConfig | None = None,
    *,
    out: str | Path,
    validation: Iterable[Batch] | None = None,
    score: Callable[[Flow], float] | None = None,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Flow:
    """Train ``flow`` and leave everything about the run in the folder ``out``.

    Written there: ``metrics.csv`` and ``loss.png`` (the curves), ``last.ckpt`` and ``previous.ckpt`` (to continue), and
    ``model.safetensors`` (averaged weights, for :func:`manifoldflow.load`). Weights appear complete or not at all. Ctrl-C
    ends the run after saving; so does the time limit.

    Args:
        flow: the model; its weights are changed.
        batches: batches ``{"x": state, "mask": ..., "cond": ..., "x0": ...}`` (only ``"x"`` is needed), repeated for ever; or
            a function from the first step number to an endless iterator, which lets a run continue in mid-epoch. With
            several processes, every process gets the same batches, draws the same noise and takes its share of each.
        config: how to train.
        out: folder of the run.
        validation: batches for the validation loss, with noise that is the same every time.
        score: what the flow is chosen by, the smaller the better (a validation NLL, say). It is taken of the averaged
            weights every ``validate_every`` steps and at the end; ``model.safetensors`` is then the best, not the last.
        resume: continue the run in ``out`` (start it if there is none).
        facts: kept in the checkpoint beside the configuration (command, data set).

    Returns:
        The flow with averaged weights (the best of them if there is a ``score``), in evaluation mode.

    Raises:
        FileExistsError: ``out`` holds a run and ``resume`` is off.
        FloatingPointError: the loss became NaN or infinite; the last checkpoint is kept.
        KeyboardInterrupt: Ctrl-C was pressed; the run is saved.
    """
    config = config or TrainConfig()
    folder = Path(out)
    last = folder / "last.ckpt"
    if not resume and (last.exists() or (folder / "previous.ckpt").exists()):
        raise FileExistsError(
            f"{folder} already holds a run; continue it with resume=True (--resume) or choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    start_from = _usable(folder) if resume else None
    module = _FlowModule(flow, batches, validation, config, dict(facts or {}))
    if (
        config.compile
    ):  # in place, so names of weights stay; the averaged copy, which is what is saved, stays as written
        flow.model.compile()
    keeper = _Keeper(folder, config, score)
    limit = timedelta(minutes=config.max_minutes) if config.max_minutes > 0 else None
    trainer = pl.Trainer(
        max_steps=config.max_steps,
        max_time=limit,
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=_strategy(config),
        precision=_precision(config.precision),  # type: ignore[arg-type]
        gradient_clip_val=config.gradient_clip,
        val_check_interval=config.validate_every if validation is not None else None,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if validation is not None else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=config.progress,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    torch.manual_seed(config.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*weights_only.*")
        with keeper.interrupts_between_steps():
            try:
                trainer.fit(module, ckpt_path=str(start_from) if start_from else None, weights_only=False)
            except SystemExit:  # what Lightning makes of Ctrl-C
                if not keeper.interrupted:
                    raise
    if keeper.interrupted:
        if trainer.is_global_zero:
            print(_how_to_continue(folder, trainer.global_step), flush=True)
        raise KeyboardInterrupt
    if score is not None:
        return checkpoint.load(folder / "model.safetensors", into=module.averaged)
    return module.averaged.eval()


def _how_to_continue(folder: Path, step: int) -> str:
    if (folder / "last.ckpt").exists():
        return f"stopped at step {step}; continue with resume=True (--resume) in {folder}"
    return f"stopped at step {step}, before the first checkpoint"


def _strategy(config: TrainConfig) -> str:
    """With several processes, parameters that a step leaves out (self-conditioning half of the time) must be expected."""
    several = config.devices not in (1, "1") or config.num_nodes > 1
    return "ddp_find_unused_parameters_true" if several and config.strategy in ("auto", "ddp") else config.strategy


def _precision(name: str) -> str:
    if name != "auto":
        return name
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def _usable(folder: Path) -> Path | None:
    """The newest resume file that can be read: a crash of the machine may have cut off the last one."""
    found = [p for p in (folder / "last.ckpt", folder / "previous.ckpt") if p.exists()]
    for path in found:
        try:
            # Written by this library into the user's own run folder; model files for sharing are safetensors.
            torch.load(path, map_location="cpu", weights_only=False, mmap=True)
        except Exception as error:  # any damage shows as a different exception of the zip and pickle layers
            warnings.warn(f"{path} is damaged ({type(error).__name__}); trying an older one", stacklevel=3)
            continue
        return path
    if found:
        raise ValueError(
            f"{folder}: no resume file can be read ({', '.join(p.name for p in found)}); delete them to start again"
        )
    return None


class _FlowModule(pl.LightningModule):
    """The flow, its average, and what Lightning asks for."""

    def __init__(
        self,
        flow: Flow,
        batches: Batches,
        validation: Iterable[Batch] | None,
        config: TrainConfig,
        facts: dict[str, Any],
    ) -> None:
        super().__init__()
        self.flow = flow
        self.averaged = copy.deepcopy(flow).requires_grad_(False)
        self.config, self.facts = config, facts
        self._batches, self._validation = batches, validation
        self.parts: dict[str, Tensor] = {}
        self.minutes_before = self.rate_minutes = 0.0
        self.began = time.monotonic()

    @property
    def minutes(self) -> float:
        """Wall time of the run so far, continued runs included."""
        return self.minutes_before + (time.monotonic() - self.began) / 60

    def train_dataloader(self) -> Iterable[Batch]:
        return _Endless(self._batches, self.global_step)

    def val_dataloader(self) -> Iterable[Batch]:
        return [] if self._validation is None else _Repeatable(self._validation)

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
        seed = (self.config.seed * 1_000_003 + self.global_step) * 4099
        torch.manual_seed(seed)
        draw = self.flow.draw(**_arguments(batch))
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if world > 1:
            torch.manual_seed(seed + 1 + rank)  # dropout differs between the shares
            draw = _share(draw, rank, world)
        with batch_shared_by(self._average if world > 1 else None):
            self.parts = self.flow.loss_of(draw)
        return torch.stack(list(self.parts.values())).sum()

    def _average(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        return torch.as_tensor(self.trainer.strategy.reduce(value, reduce_op="mean"))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        n = self.global_step
        decay = min(self.config.ema, (1 + n) / (10 + n))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()), [p.detach() for p in self.flow.parameters()], 1 - decay
            )
            for kept, buffer in zip(self.averaged.buffers(), self.flow.buffers(), strict=True):
                kept.copy_(buffer)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        arguments = _arguments(batch)
        generator = torch.Generator(first_tensor(arguments["x1"]).device).manual_seed(batch_idx)
        parts = self.averaged.loss_parts(**arguments, generator=generator)
        size = first_tensor(arguments["x1"]).shape[0]
        self.log("val_loss", torch.stack(list(parts.values())).sum(), batch_size=size, sync_dist=True, prog_bar=True)
        self.log_dict({f"val_{k}": v for k, v in parts.items()}, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        c = self.config
        matrices = [p for p in self.flow.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.flow.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=c.learning_rate, betas=c.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        c = self.config
        done = step / c.max_steps
        if c.max_minutes > 0:
            done = max(done, self.rate_minutes / c.max_minutes)
        done = min(done, 1.0)
        warm = min(1.0, (step + 1) / max(c.warmup_steps, 1))
        if c.schedule == "cosine":
            return warm * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done)).item())
        if c.schedule == "wsd":
            return warm * min(1.0, (1 - done) / max(c.decay, 1e-9))
        return warm

    def on_save_checkpoint(self, state: dict[str, Any]) -> None:
        state["minutes"] = self.minutes

    def on_load_checkpoint(self, state: dict[str, Any]) -> None:
        self.minutes_before = self.rate_minutes = state.get("minutes", 0.0)


def _arguments(batch: Batch) -> dict[str, Any]:
    known = {"x": "x1", "mask": "mask", "cond": "cond", "x0": "x0"}
    if "x" not in batch:
        raise ValueError(f"a batch needs the key 'x' with the data, it has {', '.join(map(str, batch))}")
    return {known[key]: value for key, value in batch.items() if key in known}


class _Endless:
    """Batches from a given step on, for ever."""

    def __init__(self, batches: Batches, start: int) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[Batch]:
        if callable(self.batches):
            step = self.start
            for batch in self.batches(self.start):
                step += 1
                yield batch
            if step == self.start:
                raise ValueError("no training batches: the function of the step gave none")
            raise ValueError(f"the function of the step must give batches for ever, it ended before step {step + 1}")
        skip = self.start
        while True:
            seen = 0
            for batch in self.batches:
                seen += 1
                if skip > 0:
                    skip -= 1
                    continue
                yield batch
            if seen == 0:
                raise ValueError("no training batches: the data set or loader is empty")


class _Repeatable:
    """The validation batches; not a list, which Lightning would take for several loaders."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for batch in self.batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("no validation batches: give a list or a loader, which can be read again and again")


def _share(draw: Draw, rank: int, world: int) -> Draw:
    """Every world-th sample. A batch smaller than the world goes to everyone whole."""
    size = first_tensor(draw.x1).shape[0]

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cut(v) for key, v in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_make"):
            return type(value)._make(cut(v) for v in value)  # type: ignore[attr-defined]
        has_batch = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
        return value[rank::world] if has_batch else value

    return cut(draw) if size >= world else draw


class _Keeper(pl.Callback):
    """Curves and checkpoints."""

    def __init__(self, folder: Path, config: TrainConfig, score: Callable[[Flow], float] | None) -> None:
        self.folder, self.config, self.score = folder, config, score
        self.best, self.since_best, self.scored = math.inf, 0, -1
        self.sums: dict[str, Tensor] = {}
        self.count, self.elements, self.clock = 0, 0, time.monotonic()
        self.interrupted = self.updating = self.pending = False

    @contextmanager
    def interrupts_between_steps(self) -> Iterator[None]:
        """Within, Ctrl-C waits while the weights are being updated: half an update must not be saved."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: Any) -> None:
            if self.updating:
                self.pending = True
            else:
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
        self._trim(trainer.global_step)
        self.clock = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        for name, value in module.parts.items():
            self.sums[name] = self.sums[name].to(value.device) + value.detach() if name in self.sums else value.detach()
        self.count += 1
        mask = batch.get("mask")
        # Shapes only, so that counting never waits for the device.
        self.elements += (
            (mask if mask is not None else first_tensor(batch["x"])).shape[:2].numel()
            if mask is not None
            else len(first_tensor(batch["x"]))
        )
        step = trainer.global_step
        if step % self.config.log_every == 0:
            self._log(trainer, module, step)
        if self.score is not None and step % self.config.validate_every == 0:
            self._take_score(trainer, module)
        if step % self.config.checkpoint_every == 0:
            self._keep(trainer, module)
        self.updating = False
        if self.pending:
            raise KeyboardInterrupt

    def _log(self, trainer: pl.Trainer, module: Any, step: int) -> None:
        now = time.monotonic()
        # Over all processes: the curve is that of the whole batch, and all of them see a NaN.
        means = {
            name: float(trainer.strategy.reduce(total / self.count, reduce_op="mean"))
            for name, total in self.sums.items()
        }
        loss = sum(means.values())
        if not math.isfinite(loss):
            self._stop(f"the loss is {loss} at step {step}")
        speed = self.elements / max(now - self.clock, 1e-9)
        row = {
            "step": step,
            "minutes": round(module.minutes, 3),
            "loss": loss,
            **means,
            "rate": trainer.optimizers[0].param_groups[0]["lr"],
            "elements_per_s": speed,
        }
        self._write(trainer, row)
        module.log_dict({"loss": loss, "elements/s": speed}, prog_bar=True, logger=False, batch_size=1)
        self.sums, self.count, self.elements, self.clock = {}, 0, 0, now

    def _stop(self, what: str) -> None:
        last = self.folder / "last.ckpt"
        kept = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
        raise FloatingPointError(f"{what}; {kept}. Lower learning_rate or check the data")

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_")}
        self._write(trainer, {"step": trainer.global_step, "minutes": round(module.minutes, 3), **values})
        self.clock = time.monotonic()

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
        module.log("score", value, prog_bar=True, logger=False, batch_size=1)
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
        if self.score is not None:
            self._take_score(trainer, module)
            if not math.isfinite(self.best):  # no score was a number: better the last weights than none
                self._save_model(trainer, module, {})
        self._keep(trainer, module)

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)
        # Saving needs all processes, which are interrupted at different places: the last regular checkpoint stays.
        if self.interrupted and trainer.global_step > 0 and trainer.world_size == 1:
            self._keep(trainer, module)

    def _write(self, trainer: pl.Trainer, row: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        path = self.folder / "metrics.csv"
        rows = read_rows(path)
        names = list(rows[0]) if rows else []
        if all(name in names for name in row):
            with path.open("a", newline="") as file:
                csv.DictWriter(file, names).writerow(row)
        else:
            write_rows(path, [*rows, {k: str(v) for k, v in row.items()}])

    def _trim(self, step: int) -> None:
        """Drop rows beyond the step that a continued run starts from: they will be made again."""
        path = self.folder / "metrics.csv"
        rows = read_rows(path)
        kept = [row for row in rows if int(row["step"]) <= step]
        if len(kept) < len(rows):
            write_rows(path, kept)

    def _keep(self, trainer: pl.Trainer, module: Any) -> None:
        last, fresh = self.folder / "last.ckpt", self.folder / ".last.ckpt.new"
        if trainer.world_size > 1:  # only the first process writes, so its sums must stand for all
            self.sums = {k: trainer.strategy.reduce(v.clone(), reduce_op="mean") for k, v in self.sums.items()}
        numbers = [*self.sums.values(), *module.flow.parameters()]
        if not bool(torch.stack([v.detach().sum().isfinite().to("cpu") for v in numbers]).all()):
            self._stop(f"the loss or a weight is NaN or infinite at step {trainer.global_step}")
        trainer.save_checkpoint(fresh)
        if not trainer.is_global_zero:
            return
        if last.exists():
            os.replace(last, self.folder / "previous.ckpt")
        os.replace(fresh, last)
        if self.score is None:
            self._save_model(trainer, module, {})
        plot_losses(self.folder)

    def _save_model(self, trainer: pl.Trainer, module: Any, more: dict[str, Any]) -> None:
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
        checkpoint.save(module.averaged, self.folder / "model.safetensors", facts)


def _hardware(trainer: pl.Trainer) -> str:
    if torch.cuda.is_available():
        return f"{trainer.world_size} x {torch.cuda.get_device_name()}"
    machine = platform.processor() or platform.machine()
    return f"{trainer.world_size} process(es) x {torch.get_num_threads()} thread(s) of {machine}"
