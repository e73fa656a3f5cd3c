"""Checkpoints: safetensors weights, the whole configuration and the library version in one file; never a pickle."""

import importlib
import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from manifoldflow.flow import Flow

FORMAT = "manifoldflow-checkpoint-1"


def data_path(name: str) -> Path:
    """Where an embedded file of ``data/`` lies: inside the installed package, or in the checkout.

    Args:
        name: path below ``data/``, such as ``"checkpoints/proteins.safetensors"``. The file need not exist.
    """
    package = Path(__file__).resolve().parent
    inside = package / "data" / name
    return inside if inside.exists() else package.parent / "data" / name


def known_checkpoints() -> list[str]:
    """Names that :func:`load` accepts besides paths."""
    folder = data_path("checkpoints")
    return sorted(p.stem for p in folder.glob("*.safetensors")) if folder.is_dir() else []


def save(flow: Flow, path: str | Path, training: dict[str, Any] | None = None) -> Path:
    """Write a flow to one ``.safetensors`` file, atomically.

    A flow made by a task's ``build`` carries the name of that function and its configuration, so :func:`load` can rebuild
    it. Of any other flow the weights are kept, to be read with ``load(path, into=flow)``.

    Args:
        flow: the flow.
        path: file to write; an existing one is replaced only when the new one is complete.
        training: JSON-able facts about the run (command, seed, steps, wall time, hardware).
    """
    from manifoldflow import __version__

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": FORMAT,
        "version": __version__,
        "builder": flow.builder or "",
        "config": json.dumps(flow.config),
        "training": json.dumps(training or {}),
    }
    weights = {k: v.detach().cpu().contiguous() for k, v in flow.state_dict().items()}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        save_file(weights, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The configuration and training facts of a checkpoint, without its weights."""
    path = _locate(path)
    with _open(path) as file:
        metadata = file.metadata() or {}
    written = metadata.get("format", "")
    if written != FORMAT and written.startswith(FORMAT.rstrip("0123456789")):
        from manifoldflow import __version__

        raise ValueError(
            f"{path}: written by manifoldflow {metadata.get('version', '?')} in the format {written!r}, which version "
            f"{__version__} cannot read; pip install -U manifoldflow"
        )
    if written != FORMAT:
        raise ValueError(f"{path}: not a manifoldflow checkpoint (it has no format entry {FORMAT!r})")
    try:
        parsed = {key: json.loads(metadata[key]) for key in ("config", "training")}
        return {"builder": "", "version": "?", **metadata, **parsed}
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: the checkpoint's metadata is damaged ({error}); copy or train it again") from None


def load(path: str | Path, *, device: torch.device | str | None = None, into: Flow | None = None) -> Flow:
    """Rebuild a flow from a checkpoint, in evaluation mode.

    Args:
        path: a file, or the name of an embedded checkpoint such as ``"proteins"``.
        device: where to put it; the CPU if absent.
        into: a flow of the same architecture to fill instead of building one.

    Raises:
        FileNotFoundError: no such file or name.
        ValueError: the file is damaged, of another format, or does not match the flow.
    """
    path = _locate(path)
    metadata = read_metadata(path)
    flow = into
    if flow is None:
        build = _builder(metadata["builder"], path)
        try:
            flow = build(metadata["config"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}: its configuration (saved by version {metadata['version']}) is not valid here: {error}"
            ) from error
    try:
        with _open(path) as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: the checkpoint is damaged ({error}); copy or train it again") from None
    try:
        flow.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: the weights (saved by version {metadata['version']}) do not fit the flow: {detail}"
        ) from None
    return flow.to(device or "cpu").eval()


def _locate(path: str | Path) -> Path:
    given = Path(path)
    if given.is_file():
        return given
    named = data_path(f"checkpoints/{path}.safetensors")
    if given.name == str(path) and named.is_file():
        return named
    raise FileNotFoundError(
        f"no checkpoint {str(path)!r}: not a file, and the embedded ones are {', '.join(known_checkpoints()) or 'none'}"
    )


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as a checkpoint, it is damaged or cut off ({error}); copy or train it again"
        ) from None


def _builder(name: str, path: Path) -> Callable[[dict[str, Any]], Flow]:
    """The function a checkpoint names, but only inside registered tasks: a file must not choose what code runs."""
    if not name:
        raise ValueError(
            f"{path}: this checkpoint holds weights only; load them with manifoldflow.load(path, into=flow)"
        )
    module, _, function = name.partition(":")
    if module.startswith("tasks."):  # the name that the tasks had before version 0.2
        module = f"manifoldflow.{module}"
    tasks = {entry.value.partition(":")[0] for entry in entry_points(group="manifoldflow.tasks")} | {
        "manifoldflow.tasks"
    }
    if not any(module == task or module.startswith(task + ".") for task in tasks):
        raise ValueError(
            f"{path}: names the builder {name!r}, which is in no installed task ({', '.join(sorted(tasks))})"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path}: cannot import its builder {name!r} ({error})") from None
