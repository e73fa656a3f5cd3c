"""What can be trained: anything that turns a batch into a loss."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any]

_OTHER_NAMES = {"x": "x1"}
"""What a batch calls the data, and a flow's ``draw`` the state at time 1."""


@runtime_checkable
class Trainable(Protocol):
    """What :func:`manifoldflow.training.fit` trains: flows, GFlowNets, classifiers, regressors.

    Only ``loss_of`` is needed, or a ``forward`` that returns the loss; the rest has defaults.

    What training remembers besides weights (a replay buffer) goes with the files to continue from, if there are
    ``training_state() -> dict`` and ``load_training_state(dict)``. An exception with a true attribute ``keeps_run`` ends a run
    after saving it, as Ctrl-C does: nothing is wrong with the weights.

    Attributes:
        builder, config: the function that a checkpoint names, and the dict that it takes; None for weights alone.
    """

    builder: str | None
    config: dict[str, Any] | None

    def draw(self, **batch: Any) -> Any:
        """Everything random about a training step, for the whole batch: several processes draw the same and share it.

        It may take ``generator=``. Absent, :meth:`loss_of` gets the batch itself, as keywords.
        """

    def loss_of(self, drawn: Any) -> dict[str, Tensor] | Tensor:
        """The terms of the loss by name, each a scalar, or one scalar."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser, ``{"params": [...]}``, which together hold every parameter once.

        A group may have ``"lr_scale"``, a factor on the learning rate (log Z of a GFlowNet learns ten times as fast as its
        policy), and the settings of AdamW. Without ``"weight_decay"`` matrices decay as configured, biases and norms do not.
        Absent, all parameters are one group.
        """


class Keys(NamedTuple):
    """The keys that a batch may have.

    Attributes:
        target: who takes them, for messages.
        names: key of a batch -> name of the argument; None for whatever comes.
        needed: keys that must be there.
        generator: whether ``generator=`` is taken.
    """

    target: str
    names: dict[str, str] | None
    needed: list[str]
    generator: bool


def keys_of(module: nn.Module) -> Keys:
    """The keys that a module's batches may have, from the signature of what takes them."""
    kind = type(module).__name__
    verb = next((name for name in ("draw", "loss_of") if callable(getattr(module, name, None))), "forward")
    parameters = inspect.signature(getattr(module, verb)).parameters
    generator = "generator" in parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return Keys(f"{kind}.{verb}", None, [], generator)
    shown = {argument: key for key, argument in _OTHER_NAMES.items() if key not in parameters}
    names = {shown.get(name, name): name for name in parameters if name != "generator"}
    needed = [shown.get(n, n) for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    return Keys(f"{kind}.{verb}", names, needed, generator)


def arguments_of(batch: Any, keys: Keys) -> dict[str, Any]:
    """A batch as keyword arguments.

    Raises:
        TypeError: the batch is no mapping.
        ValueError: a key is unknown, or a needed one absent.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"a batch must be a dict such as {{'x': data}}, got {type(batch).__name__}")
    if keys.names is None:
        return dict(batch)
    known = ", ".join(keys.names)
    for key in keys.needed:
        if key not in batch:
            what = "the key 'x' with the data" if key == "x" else f"the key {key!r}"
            raise ValueError(f"a batch needs {what}, it has {', '.join(map(str, batch)) or 'none'}")
    for key in batch:
        if key not in keys.names:
            close = difflib.get_close_matches(str(key), list(keys.names), n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"a batch has the key {key!r}{hint}, which {keys.target} does not take; it takes {known}")
    return {keys.names[key]: value for key, value in batch.items()}


def draw_of(module: nn.Module, arguments: dict[str, Any], generator: torch.Generator | None, keys: Keys) -> Any:
    """Everything random about a step; the arguments themselves for a module without ``draw``."""
    draw = getattr(module, "draw", None)
    if not callable(draw):
        return arguments
    return draw(**arguments, **({"generator": generator} if keys.generator and generator is not None else {}))


def loss_of(module: nn.Module, drawn: Any) -> dict[str, Tensor]:
    """The terms of the loss by name; a lone scalar is called "loss".

    Raises:
        TypeError: they are no scalars.
    """
    if callable(getattr(module, "draw", None)):
        made = module.loss_of(drawn)  # type: ignore[operator]
    else:
        made = (module.loss_of if callable(getattr(module, "loss_of", None)) else module)(**drawn)  # type: ignore[operator]
    parts = dict(made) if isinstance(made, Mapping) else {"loss": made}
    for name, value in parts.items():
        if not isinstance(value, Tensor) or value.ndim > 0:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"the loss term {name!r} of {type(module).__name__} must be a scalar tensor, got {what}")
    if not parts:
        raise TypeError(f"the loss of {type(module).__name__} has no terms")
    return parts


def parameter_groups(module: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of an optimiser: those of the module, matrices apart from biases and norms, which do not decay.

    Raises:
        ValueError: a parameter is in two groups or in none.
    """
    names = {id(p): n for n, p in module.named_parameters() if p.requires_grad}
    own = getattr(module, "parameter_groups", None)
    every: dict[str, Any] = {"params": [p for p in module.parameters() if p.requires_grad]}
    groups: list[dict[str, Any]] = own() if callable(own) else [every]
    made: list[dict[str, Any]] = []
    for group in groups:
        options = {k: v for k, v in group.items() if k not in ("params", "lr_scale")}
        options.setdefault("lr", learning_rate * group.get("lr_scale", 1.0))
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        for p in params:
            if names.pop(id(p), None) is None:
                raise ValueError(f"parameter_groups of {type(module).__name__}: a parameter of {_shape(p)} is in two "
                                 "groups, frozen, or no parameter of the module")  # fmt: skip
        if "weight_decay" in options:
            made.append({"params": params, **options})
            continue
        made.append({"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay, **options})
        made.append({"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0, **options})
    if names:
        raise ValueError(
            f"parameter_groups of {type(module).__name__} leave out {', '.join(names.values())}; freeze with "
            "requires_grad_(False) what shall not learn"
        )
    made = [group for group in made if group["params"]]
    if not made:
        raise ValueError(f"{type(module).__name__} has no parameters to train")
    return made


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a nest of mappings and sequences, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from tensors(v)
    elif isinstance(value, tuple | list):
        for v in value:
            yield from tensors(v)


def size_of(batch: Any) -> int:
    """The number of samples: the length of the first tensor that has an axis, or the ``size`` of those that a model draws by
    itself; 0 if there is neither."""
    drawn = batch.get("size", 0) if isinstance(batch, Mapping) else 0
    return next((len(v) for v in tensors(batch) if v.ndim > 0), drawn if isinstance(drawn, int) else 0)
