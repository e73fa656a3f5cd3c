"""Runs and their models: the command that made one, its folder, and how the commands of all tasks find it again."""

import shlex
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import manifoldflow as mf
from manifoldflow.checkpoint import find_checkpoint, read_metadata
from manifoldflow.tasks.common.files import safe_name
from manifoldflow.training.config import TrainConfig

Config = TypeVar("Config")


def command_line() -> str:
    """The words of this process, to be kept with what it makes; they can be pasted into a shell."""
    return shlex.join(["manifoldflow", *sys.argv[1:]])


def run_folder(task: str, name: str) -> Path:
    """Where a run goes unless it is told: ``runs/TASK/NAME``."""
    return Path("runs", task, safe_name(name))


def load_model(checkpoint: str | Path, builder: str, what: str, device: Any = None) -> tuple[Any, Path]:
    """A trained model of one task, and its file.

    Args:
        checkpoint: an embedded one by name, a model file, or a run folder.
        builder: the function that made it, ``"package.module:function"``.
        what: that function makes, in words, such as "sequence flow".
        device: where it goes; the CPU if absent.

    Raises:
        FileNotFoundError: no such checkpoint; says which names there are.
        ValueError: the checkpoint is of another task, or damaged.
    """
    path = find_checkpoint(checkpoint)
    model = mf.load(path, device=device)
    if model.builder != builder:
        raise ValueError(f"{path} is no {what} (it was built by {model.builder})")
    return model, path


def source_of(path: str | Path, verb: str) -> dict[str, Any]:
    """Which data a model was trained on, as its run noted it.

    Args:
        path: model file.
        verb: command that notes it, for the message, such as "train densities".

    Raises:
        ValueError: it was not noted.
    """
    source = read_metadata(path)["training"].get("source")
    if not source:
        raise ValueError(f"{path}: does not say which data it was trained on; was it made by `{verb}`?")
    return dict(source)


def configured(kind: type[Config], config: Config | dict[str, Any] | None, what: str) -> Config:
    """A task's configuration from the dict that a checkpoint holds, or as it is.

    Args:
        kind: its dataclass.
        config: what was given; None for all defaults.
        what: it configures, for messages, such as "density flow".

    Raises:
        ValueError: settings that this version does not know, or does not allow.
    """
    assert is_dataclass(kind)
    if config is not None and not isinstance(config, dict):
        return config
    try:
        return kind(**(config or {}))
    except TypeError as error:
        raise ValueError(f"{what} configuration: {str(error).split('__init__() ')[-1]}") from None


def toy_training(steps: int, **settings: Any) -> TrainConfig:
    """How the toys of the tasks are trained, on one core in minutes: Adam without decay or warm-up, in single precision, quietly.

    Args:
        steps: optimiser steps.
        settings: of :class:`manifoldflow.training.TrainConfig` that differ.
    """
    fixed: dict[str, Any] = {
        "max_steps": steps,
        "weight_decay": 0.0,
        "betas": (0.9, 0.999),
        "warmup_steps": 0,
        "schedule": "cosine",
        "gradient_clip": 0.0,
        "precision": "32-true",
        "validate_every": steps,
        "checkpoint_every": steps,
        "log_every": min(100, steps),
        "progress": False,
    }
    return TrainConfig(**(fixed | settings))
