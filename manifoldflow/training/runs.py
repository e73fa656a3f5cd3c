"""The folder of a run: one training at a time, and where a continued one starts."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process trains into ``folder``, which is made if it is not there.

    The system holds the lock for the process and lets go when it ends, however it ends. The folder itself is locked, so nothing
    is left behind. Of a distributed run the first process holds it.

    Raises:
        RuntimeError: another process holds it.
        NotADirectoryError: something else than a folder has this name.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected the folder of a run")
    folder.mkdir(parents=True, exist_ok=True)
    is_first = all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "RANK"))
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        if is_first:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"{folder}: another training is writing into this folder; wait for it or choose another folder"
                ) from None
            except OSError:  # a file system without locks
                pass
        yield
    finally:
        os.close(handle)


def start_of(folder: Path, resume: bool, flow: nn.Module) -> Path | None:
    """The resume file that a run starts from, None for the beginning.

    Raises:
        FileExistsError: the folder holds a run, and ``resume`` is off.
        ValueError: no resume file can be read, or the run is one of another model.
    """
    found = [p for p in (folder / "last.ckpt", folder / "previous.ckpt") if p.exists()]
    if found and not resume:
        raise FileExistsError(
            f"{folder} already holds a run; continue it with resume=True (--resume) or choose another folder"
        )
    for path in found:
        try:
            # Written by this library into the user's own run folder; model files for sharing are safetensors.
            state = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
        except Exception as error:  # any damage shows as a different exception of the zip and pickle layers
            warnings.warn(f"{path} is damaged ({type(error).__name__}); trying an older one", stacklevel=4)
            continue
        _fits(folder, {k.removeprefix("flow."): v for k, v in state["state_dict"].items() if k[:5] == "flow."}, flow)
        return path
    if found:
        raise ValueError(
            f"{folder}: no resume file can be read ({', '.join(p.name for p in found)}); delete them to start again"
        )
    return None


def _fits(folder: Path, saved: dict[str, torch.Tensor], flow: nn.Module) -> None:
    """Raise ``ValueError`` where weights of a run have other names or shapes than those of ``flow``."""
    own = {name: tuple(value.shape) for name, value in flow.state_dict().items()}
    there = {name: tuple(value.shape) for name, value in saved.items()}
    for name in [*own, *there]:
        if own.get(name) != there.get(name):
            raise ValueError(
                f"{folder} holds the run of another model: {name} has the shape {there.get(name, 'none')} there and "
                f"{own.get(name, 'none')} here; give the model's settings of that run, or choose another folder"
            )


def how_to_continue(folder: Path, step: int) -> str:
    """What to tell people whose run was stopped."""
    if (folder / "last.ckpt").exists():
        return f"stopped at step {step}; continue with resume=True (--resume) in {folder}"
    return f"stopped at step {step}, before the first checkpoint"
