"""Checkpoints: safetensors weights, the whole configuration and the library version in one file; never a pickle."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from manifoldflow.files import atomic
from manifoldflow.registry import find_builder
from manifoldflow.version import __version__

FORMAT = "manifoldflow-checkpoint-1"
MODEL_FILE = "model.safetensors"
"""The model of a run folder."""

Module = TypeVar("Module", bound=nn.Module)


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


def save(flow: nn.Module, path: str | Path, training: dict[str, Any] | None = None) -> Path:
    """Write a flow, or any other module, to one ``.safetensors`` file, atomically.

    A flow made by a task's ``build`` carries the name of that function and its configuration (attributes ``builder`` and
    ``config``), so :func:`load` can rebuild it. Of any other the weights are kept, to be read with ``load(path, into=flow)``.
    Weights that a module uses in several places are written once.

    Args:
        flow: the flow.
        path: file to write; an existing one is replaced only when the new one is complete.
        training: JSON-able facts about the run (command, seed, steps, wall time, hardware).
    """
    path = Path(path)
    weights, shared = _distinct(flow.state_dict())
    metadata = {
        "format": FORMAT,
        "version": __version__,
        "builder": getattr(flow, "builder", None) or "",
        "config": json.dumps(getattr(flow, "config", None)),
        "training": json.dumps(training or {}),
    }
    if shared:
        metadata["shared"] = json.dumps(shared)
    with atomic(path) as fresh:
        save_file(weights, fresh, metadata=metadata)
    return path


def _distinct(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights that share no memory, and the names under which the same tensor stands again, ``{name: name of the first}``."""
    kept: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[Any, str] = {}
    stores: set[int] = set()
    for name, value in weights.items():
        value = value.detach()
        same = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() and same in first:
            shared[name] = first[same]
            continue
        first[same] = name
        host = value.cpu().contiguous()
        # Views of one storage, such as a slice of another weight, are written as tensors of their own.
        kept[name] = host.clone() if host.untyped_storage().data_ptr() in stores else host
        stores.add(kept[name].untyped_storage().data_ptr())
    return kept, shared


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The configuration and training facts of a checkpoint, without its weights."""
    path = find_checkpoint(path)
    with _open(path) as file:
        metadata = file.metadata() or {}
    written = metadata.get("format", "")
    if written != FORMAT and written.startswith(FORMAT.rstrip("0123456789")):
        version = _printable(metadata.get("version", "?"), 40)
        raise ValueError(
            f"{path}: written by manifoldflow {version} in the format {written[:80]!r}, which version {__version__} cannot "
            "read; pip install -U manifoldflow"
        )
    if written != FORMAT:
        raise ValueError(f"{path}: not a manifoldflow checkpoint (it has no format entry {FORMAT!r})")
    try:
        parsed = {key: json.loads(metadata[key]) for key in ("config", "training")}
        parsed["shared"] = json.loads(metadata.get("shared", "{}"))
    except (KeyError, ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError, too
        what = "nested too deeply" if isinstance(error, RecursionError) else _short(error)
        raise ValueError(f"{path}: the checkpoint's metadata is damaged ({what}); copy or train it again") from None
    named = parsed["shared"].values() if isinstance(parsed["shared"], dict) else [None]
    if not isinstance(parsed["training"], dict) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"{path}: the checkpoint's metadata is damaged (no table of facts); copy or train it again")
    return {"builder": "", **metadata, **parsed, "version": _printable(metadata.get("version", "?"), 40)}


@overload
def load(path: str | Path, *, device: torch.device | str | None = None, into: Module) -> Module: ...
@overload
def load(path: str | Path, *, device: torch.device | str | None = None, into: None = None) -> Any: ...


def load(path: str | Path, *, device: torch.device | str | None = None, into: nn.Module | None = None) -> Any:
    """Rebuild a flow from a checkpoint, in evaluation mode.

    Safe for files from anywhere: the file chooses among the builders that installed tasks declare
    (:mod:`manifoldflow.registry`), gives them settings, and cannot make them larger than itself.

    Args:
        path: a file, or the name of an embedded checkpoint such as ``"proteins"``.
        device: where to put it; the CPU if absent.
        into: a flow of the same architecture to fill instead of building one.

    Raises:
        FileNotFoundError: no such file or name.
        ValueError: the file is damaged, of another format, or does not match the flow.
    """
    path = find_checkpoint(path)
    metadata = read_metadata(path)
    version = metadata["version"]
    flow = _built(metadata, path) if into is None else into
    try:
        with _open(path) as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: the checkpoint is damaged ({_short(error)}); copy or train it again") from None
    for name, first in metadata["shared"].items():
        if first in weights:
            weights[name] = weights[first]
    learned = dict(flow.named_parameters())
    for name, value in weights.items():  # a buffer may hold infinities, say the logits of what is forbidden
        if value.is_floating_point() and not bool((value.isfinite() if name in learned else ~value.isnan()).all()):
            raise ValueError(
                f"{path}: the weight {name[:80]!r} holds NaN or infinity; the training diverged, or it is damaged"
            )
    try:
        flow.load_state_dict(weights)
    except Exception as error:  # a RuntimeError, or what a layer with tables of its own makes of a wrong shape
        raise ValueError(
            f"{path}: the weights (saved by version {version}) do not fit the flow: {_short(error)}"
        ) from None
    return flow.to(device or "cpu").eval()


def _built(metadata: Mapping[str, Any], path: Path) -> nn.Module:
    """The untrained module that a checkpoint's builder makes of its configuration."""
    build, config = _builder(metadata["builder"], path), metadata["config"]
    where = f"{path}: its configuration (saved by version {metadata['version']})"
    if not isinstance(config, dict):
        raise ValueError(f"{where} is not valid here: expected a table of settings, got {_short(config, 40)}")
    elements, tensors = _measure(path)
    for name, value in _numbers(config):
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{where} is not valid here: {name} is NaN")
        # Sizes become lists and tables before they become weights.
        if isinstance(value, int) and abs(value) > elements + 2**20 and not name.endswith("seed"):
            raise ValueError(
                f"{where} is not valid here: {name} is {_short(value, 40)}, more than the file has weights"
            )
    try:
        with _Bounded(8 * elements + 2**24, 200 * tensors + 20_000):
            made = build(config)
    except Exception as error:  # a wrong configuration shows in as many ways as there are builders
        raise ValueError(f"{where} is not valid here: {_short(error)}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"{path}: its builder {metadata['builder']!r} made a {type(made).__name__}, which is no module"
        )
    return made


def _measure(path: Path) -> tuple[int, int]:
    """How many elements and how many tensors a file holds, from its header."""
    with _open(path) as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]
    return sum(math.prod(shape) for shape in shapes), len(shapes)


def _numbers(value: Any, name: str = "it") -> Iterator[tuple[str, int | float]]:
    """All numbers of a configuration, however deep (not recursive, as a file may choose the depth), with their keys."""
    waiting = [(name, value)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(key)[:40], v) for key, v in value.items()]
        elif isinstance(value, list):
            waiting += [(name, v) for v in value]
        elif isinstance(value, int | float):
            yield name, value


class _Bounded(TorchDispatchMode):
    """Within, tensors are made up to a number of elements in all, and up to a number of calls: what a small file may ask for.

    Args:
        elements: bound on those made by size (``empty``, ``randn``, ``arange`` ...), before their memory is taken.
        calls: bound on operations, as a million layers of nothing take for ever, too.
    """

    def __init__(self, elements: int, calls: int) -> None:
        super().__init__()
        self.elements, self.calls = elements, calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls -= 1
        named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | (kwargs or {})
        if "size" in named or "repeats" in named:
            sizes = named.get("size", named.get("repeats"))
            wanted = math.prod(s for s in sizes if isinstance(s, int)) if isinstance(sizes, list | tuple) else 0
            is_view = func._schema.name.split("::")[1] in ("expand", "view", "_unsafe_view", "as_strided", "reshape")
            self.elements -= 0 if is_view else abs(wanted)
        elif not any(isinstance(v, Tensor) for v in args):  # arange, linspace, eye
            self.elements -= int(max([abs(v) for v in named.values() if isinstance(v, int | float)] or [0]))
        if self.elements < 0 or self.calls < 0:
            raise ValueError("it asks for a larger model than the weights in the file are of")
        return func(*args, **(kwargs or {}))


def _short(value: Any, most: int = 300) -> str:
    """One line about an error or a value, of a length that a message can carry."""
    text = str(value) if isinstance(value, BaseException) else json.dumps(value)[: 10 * most]
    return _printable(text or type(value).__name__, most)


def _printable(text: str, most: int) -> str:
    """Text that a file holds, for a message: one line, no codes that a terminal acts on, not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 10 * most].split()))
    return shown if len(shown) <= most else shown[:most] + " ..."


def find_checkpoint(path: str | Path) -> Path:
    """The file that is meant: a file, the model of a run folder, or an embedded one by its name, with its task or without.

    Raises:
        FileNotFoundError: none of them; says which names there are.
    """
    given = Path(path)
    if given.is_file():
        return given
    if (given / MODEL_FILE).is_file():
        return given / MODEL_FILE
    if given.name == str(path):
        names = known_checkpoints()
        found = [name for name in names if name == path] or [n for n in names if n.partition("_")[2] == path]
        if len(found) == 1:
            return data_path(f"checkpoints/{found[0]}.safetensors")
    if given.is_dir():
        raise FileNotFoundError(f"{given} is a folder without {MODEL_FILE}: no run, or one that has saved no model yet")
    raise FileNotFoundError(
        f"no checkpoint {str(path)!r}: not a file or a run folder, and the embedded ones are "
        f"{', '.join(known_checkpoints()) or 'none'}"
    )


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as a checkpoint, it is damaged or cut off ({_short(error)}); copy or train it again"
        ) from None


def _builder(name: str, path: Path) -> Callable[[dict[str, Any]], Any]:
    """The function a checkpoint names, if a registered task declares it: a file must not choose what code runs."""
    if not name:
        raise ValueError(
            f"{path}: this checkpoint holds weights only; load them with manifoldflow.load(path, into=flow)"
        )
    try:
        return find_builder(name)
    except LookupError as error:
        raise ValueError(f"{path}: names the builder {name[:80]!r}, but {_short(error)}") from None
    except ImportError as error:
        raise ValueError(f"{path}: cannot import its builder {name[:80]!r} ({_short(error)})") from None
