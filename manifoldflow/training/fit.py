"""Train with Lightning: many devices, mixed precision, averaged weights, curves, and runs that can be continued."""

import logging
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from manifoldflow import checkpoint
from manifoldflow.training.batches import Batches
from manifoldflow.training.config import TrainConfig
from manifoldflow.training.runs import how_to_continue, locked, start_of
from manifoldflow.training.trainable import Batch

if TYPE_CHECKING:
    import lightning.pytorch as pl

Module = TypeVar("Module", bound=nn.Module)


def fit(
    flow: Module,
    batches: Batches,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None,
    validation: Iterable[Batch] | None = None,
    score: Callable[[Module], float] | None = None,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> Module:
    """Train ``flow`` and leave everything about the run in the folder ``out``.

    Written there: ``metrics.csv`` and ``loss.png`` (the curves), ``last.ckpt`` and ``previous.ckpt`` (to continue), and
    ``model.safetensors`` (averaged weights, for :func:`manifoldflow.load`). Weights appear complete or not at all. Ctrl-C
    ends the run after saving; so does the time limit.

    Args:
        flow: the model; its weights are changed. A flow, or anything :class:`manifoldflow.training.Trainable`: a module with
            ``draw`` and ``loss_of``, with ``loss_of`` alone, or whose ``forward`` is the loss.
        batches: batches ``{"x": state, "mask": ..., "cond": ..., "x0": ..., "t": ...}`` (only ``"x"`` is needed) of a flow, of
            other modules dicts of what ``draw`` takes; unknown keys raise. They are repeated for ever. Or a function from the
            number of a batch (that of the step, times ``accumulate``) to an endless iterator, which lets a run continue in
            mid-epoch. With several processes, every process gets the same batches, draws the same noise and takes its share.
        config: how to train.
        out: folder of the run; None for a short one that leaves no files and cannot be continued.
        validation: batches for the validation loss, with noise that is the same every time.
        score: what the flow is chosen by, the smaller the better (a validation NLL, say). It is taken of the averaged
            weights every ``validate_every`` steps and at the end; ``model.safetensors`` is then the best, not the last.
        resume: continue the run in ``out`` (start it if there is none).
        facts: kept in the checkpoint beside the configuration (command, data set).
        callback: called with every row of the curve, ``{"step": 50, "minutes": ..., "loss": ..., ...}``.

    A continued run takes the settings given now, whichever changed; the changes are printed and kept in the checkpoint.

    Returns:
        The flow with averaged weights (the best of them if there is a ``score``), in evaluation mode.

    Raises:
        FileExistsError: ``out`` holds a run and ``resume`` is off.
        RuntimeError: another process is training into ``out``.
        ValueError: a batch that the model cannot take, a device that is not there, or a run of another model.
        FloatingPointError: the loss became NaN or infinite; the last checkpoint is kept.
        KeyboardInterrupt: Ctrl-C was pressed; the run is saved.
        SystemExit: with 143, the process was asked to end (SIGTERM, as schedulers do); the run is saved.
    """
    # Lightning takes seconds to import; tasks name their settings without it.
    from manifoldflow.training.console import Bar
    from manifoldflow.training.keeper import Keeper, compile_network
    from manifoldflow.training.module import TrainingModule

    config, folder = config or TrainConfig(), Path(out) if out is not None else None
    if folder is None and resume:
        raise ValueError("resume needs out=, the folder of the run")
    with locked(folder) if folder is not None else nullcontext(), _quiet():
        start = start_of(folder, resume, flow) if folder is not None else None
        if not flow.training:  # as mf.load leaves it; a part that was put in evaluation mode by hand stays
            flow.train()
        module = TrainingModule(flow, batches, validation, config, dict(facts or {}))
        if config.compile:  # the averaged copy, which is what is saved, stays as written
            compile_network(flow)
        keeper = Keeper(folder, config, score, callback)
        trainer = _trainer(config, folder, [keeper, *([Bar(keeper, config)] if config.progress else [])], validation)
        torch.manual_seed(config.seed)
        with keeper.interrupts_between_steps():
            try:
                trainer.fit(module, ckpt_path=str(start) if start else None, weights_only=False)
            except SystemExit:  # what Lightning makes of Ctrl-C and of SIGTERM
                if not (keeper.interrupted or keeper.terminated):
                    raise
        if keeper.interrupted or keeper.terminated:
            if trainer.is_global_zero and folder is not None:
                print(how_to_continue(folder, trainer.global_step), flush=True)
            if keeper.terminated:
                raise SystemExit(128 + signal.SIGTERM)
            raise KeyboardInterrupt
        averaged = cast(Module, module.averaged)
        for mine, given in zip(averaged.parameters(), flow.parameters(), strict=True):
            mine.requires_grad_(given.requires_grad)  # ready to be trained on, by reflow or by another fit
        if keeper.best_weights:
            averaged.load_state_dict(keeper.best_weights)
        elif score is not None and folder is not None:
            return checkpoint.load(folder / "model.safetensors", into=averaged)
        return averaged.eval()


def _trainer(config: TrainConfig, folder: Path | None, callbacks: list[Any], validation: Any) -> "pl.Trainer":
    """Lightning's trainer for a run.

    Raises:
        ValueError: the devices or the precision that were asked for are not there.
    """
    import lightning.pytorch as pl
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return pl.Trainer(
            max_steps=config.max_steps,
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=_strategy(config),
            precision=_precision(config.precision),  # type: ignore[arg-type]
            gradient_clip_val=config.gradient_clip,
            accumulate_grad_batches=config.accumulate,
            val_check_interval=config.validate_every * config.accumulate if validation is not None else None,
            check_val_every_n_epoch=None,
            limit_val_batches=1.0 if validation is not None else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=config.log_every,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        asked = f"accelerator={config.accelerator!r}, devices={config.devices!r}, strategy={config.strategy!r}"
        raise ValueError(
            f"cannot train with {asked}, precision={config.precision!r}: {' '.join(str(error).split())}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, Lightning neither advertises nor warns of what is meant; its loggers are as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*weights_only.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _strategy(config: TrainConfig) -> str:
    """With several processes, parameters that a step leaves out (self-conditioning half of the time) must be expected."""
    several = config.devices not in (1, "1") or config.num_nodes > 1
    return "ddp_find_unused_parameters_true" if several and config.strategy in ("auto", "ddp") else config.strategy


def _precision(name: str) -> str:
    if name != "auto":
        return name
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"
