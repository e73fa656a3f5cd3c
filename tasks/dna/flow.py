"""The sequence flow: one network, five representations of the same tokens."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import manifoldflow as mf
from manifoldflow.tasks.common.runs import configured, load_model
from manifoldflow.tasks.dna.autoregressive import CausalConvNet, LeftToRight
from manifoldflow.tasks.dna.model import STACK, ConvNet, Transformer

Representation = Literal["dirichlet", "fisher_rao", "linear", "masking", "uniform", "autoregressive"]
REPRESENTATIONS: tuple[Representation, ...] = get_args(Representation)

BUILDER = "manifoldflow.tasks.dna.flow:build"
"""What checkpoints call :func:`build`."""

DEFAULT_CHECKPOINT = "dna_ctcf_pu1"
"""The embedded flow that is meant where none is named."""


@dataclass
class DnaConfig:
    """Everything that defines a sequence flow.

    Args:
        representation: "masking" and "uniform": tokens that jump. "dirichlet", "fisher_rao" and "linear": points of the simplex
            that move to its corners. "autoregressive": letter after letter, the baseline, with one step for each.
        length: of the sequences.
        classes: names of the classes, with commas; none for a model without condition.
        alphabet: letters, in the order of the tokens.
        network: "conv" or "transformer".
        width: hidden width.
        stacks: stacks of five dilated convolutions; or layers of the transformer, divided by 4.
        kernel: width of the convolutions.
        dropout: of the network.
        cond_dropout: share of the training samples whose class is hidden, for guidance.
        pin_share: share of the training samples of which pieces are shown clean, so that motifs and flanks can be kept.
        most: largest concentration of the Dirichlet path.
        objective: of tokens: "cross_entropy" or "elbo".
        shortest: length of the shortest sequence of the training, where they have several; 0 if all have one.
    """

    representation: Representation = "masking"
    length: int = 100
    classes: str = ""
    alphabet: str = "ACGT"
    network: Literal["conv", "transformer"] = "conv"
    width: int = 64
    stacks: int = 1
    kernel: int = 9
    dropout: float = 0.0
    cond_dropout: float = 0.2
    pin_share: float = 0.3
    most: float = 8.0
    objective: Literal["cross_entropy", "elbo"] = "cross_entropy"
    shortest: int = 0

    def __post_init__(self) -> None:
        if self.representation not in REPRESENTATIONS:
            raise ValueError(f"representation must be one of {', '.join(REPRESENTATIONS)}, got {self.representation!r}")
        for name in ("cond_dropout", "pin_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.network not in ("conv", "transformer"):
            raise ValueError(f"network must be 'conv' or 'transformer', got {self.network!r}")
        for name in ("length", "width", "stacks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.shortest <= self.length:
            raise ValueError(f"shortest must lie between 0 and the length {self.length}, got {self.shortest}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of their numbers."""
        return tuple(name for name in self.classes.split(",") if name)


@dataclass(frozen=True)
class RandomPieces:
    """Pieces to show clean in training, so that motifs and flanks can be kept in sampling.

    A share of the samples gets one to three pieces of random places and lengths, up to half of the sequence in all.

    Args:
        share: of the samples that get any.
    """

    share: float

    def __call__(self, mask: Tensor, generator: torch.Generator | None) -> Tensor:
        """Bool ``(B, L)`` from the mask of real positions."""
        batch, length = mask.shape
        options: dict[str, Any] = {"generator": generator, "device": mask.device}
        start = torch.rand(batch, 3, 1, **options) * length
        size = torch.rand(batch, 3, 1, **options) * length / 6
        used = torch.rand(batch, 3, 1, **options) < torch.tensor([1.0, 0.5, 0.25], device=mask.device)[:, None]
        place = torch.arange(length, device=mask.device)
        pieces = ((place >= start) & (place < start + size) & used).any(1)
        return pieces & mask & (torch.rand(batch, 1, **options) < self.share)


def build(config: DnaConfig | dict[str, Any]) -> mf.Flow:
    """A sequence flow from its configuration (or the dict that a checkpoint holds)."""
    config = configured(DnaConfig, config, "sequence flow")
    k, kind = len(config.alphabet), config.representation
    spaces: Any = mf.Simplex(k, metric="flat" if kind == "linear" else "fisher_rao")
    options: dict[str, Any] = {"predicts": "logits", "path": mf.Geodesic(own_evidence=kind == "fisher_rao")}
    if kind in ("masking", "uniform", "autoregressive"):
        spaces, options = mf.Tokens(k, mask=kind != "uniform"), {}
    if kind == "masking":
        options["path"] = mf.Masking(objective=config.objective)
    elif kind == "uniform":
        options["path"] = mf.UniformJump(objective=config.objective, own_evidence=True)
    elif kind == "autoregressive":
        options["path"] = LeftToRight()
    elif kind == "dirichlet":
        options = {"path": mf.DirichletPath(most=config.most)}
    if config.class_names:
        options["cond_dropout"] = config.cond_dropout
    if config.pin_share > 0 and kind != "autoregressive":  # which sees all that is to the left as it is anyway
        options["pin"] = RandomPieces(config.pin_share)
    flow = mf.Flow(spaces, _network(config), **options)
    flow.builder, flow.config = BUILDER, asdict(config)
    return flow


def _network(config: DnaConfig) -> nn.Module:
    """The network of a configuration."""
    is_causal = config.representation == "autoregressive"
    if is_causal and config.network != "conv":
        raise ValueError("the autoregressive baseline has a network of convolutions only: network must be 'conv'")
    shared: dict[str, Any] = {"categories": len(config.alphabet), "width": config.width, "dropout": config.dropout}
    classes = len(config.class_names)
    if config.network == "transformer":
        return Transformer(config.length, classes, layers=4 * config.stacks, **shared)
    net = CausalConvNet if is_causal else ConvNet
    return net(config.length, classes, kernel=config.kernel, dilations=STACK * config.stacks, **shared)


def to_state(flow: mf.Flow, tokens: Tensor) -> Tensor:
    """Tokens ``(B, L)`` as the flow wants its data: as they are, or as corners of the simplex."""
    return tokens if isinstance(flow.spaces, mf.Tokens) else flow.spaces.one_hot(tokens)  # type: ignore[union-attr]


def to_tokens(state: Tensor) -> Tensor:
    """What a flow samples as tokens ``(B, L)``."""
    return state.argmax(-1) if state.is_floating_point() else state


def sample_tokens(
    flow: mf.Flow,
    count: int,
    length: int,
    steps: int,
    *,
    part: int = 512,
    cond: Any = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Tensor:
    """Tokens ``(count, length)``, drawn in parts of at most ``part`` sequences.

    Args:
        flow: of any representation.
        count, length: how many, and how long.
        steps: of the sampler; the autoregressive baseline takes one for every letter, whatever this says.
        part: sequences at once.
        cond: classes ``(count,)``.
        progress: told after every step how many are done, and of how many.
        options: of :meth:`manifoldflow.Flow.sample`.
    """
    if isinstance(next(iter(flow.path.values())), LeftToRight):
        steps = length
    made: list[Tensor] = []
    done = 0

    def stepped(*_: Any) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, steps * -(-count // part))

    for at in range(0, count, part):
        size = min(part, count - at)
        some = cond[at : at + size] if isinstance(cond, Tensor) else cond
        made.append(to_tokens(flow.sample((size, length), steps=steps, cond=some, callback=stepped, **options)))
    return torch.cat(made)


def load_flow(checkpoint: str | Path) -> tuple[mf.Flow, DnaConfig]:
    """A trained flow and its configuration.

    Args:
        checkpoint: a model file, a run folder, or the name of an embedded one, with its ``dna_`` or without.

    Raises:
        FileNotFoundError: no such file, folder or name.
        ValueError: the checkpoint is of another task.
    """
    flow, _ = load_model(checkpoint, BUILDER, "sequence flow")
    return flow, configured(DnaConfig, flow.config, "sequence flow")


def class_name(config: DnaConfig, label: str | None) -> str | None:
    """A class as the flow calls it; in either case where only one fits: ``CTCF`` is ``ctcf``.

    Raises:
        ValueError: the flow knows no such class; says which it knows.
    """
    if label is None or label in config.class_names:
        return label
    near = [name for name in config.class_names if name.casefold() == label.casefold()]
    if len(near) == 1:
        return near[0]
    known = ", ".join(config.class_names) or "none"
    raise ValueError(f"this flow has no class {label!r}; its classes: {known}")


def class_number(config: DnaConfig, label: str | None, count: int) -> Tensor | None:
    """The condition for ``count`` samples of a class.

    Raises:
        ValueError: the flow knows no such class; says which it knows.
    """
    name = class_name(config, label)
    return None if name is None else torch.full((count,), config.class_names.index(name), dtype=torch.int64)


def check_length(config: DnaConfig, length: int, what: str) -> None:
    """Whether sequences of this length are among those that the flow was trained on.

    Raises:
        ValueError: they are not; ``what`` names them.
    """
    least = config.shortest or config.length
    if not least <= length <= config.length:
        trained = f"{config.length}" if least == config.length else f"{least} to {config.length}"
        raise ValueError(f"{what} {length} letters, but this flow was trained on sequences of {trained}")


def sampler(config: DnaConfig, temperature: float = 1.0) -> Any:
    """The method of :meth:`manifoldflow.Flow.sample` that suits a representation.

    Raises:
        ValueError: a temperature for a representation that has none.
    """
    if config.representation in ("masking", "uniform", "autoregressive"):
        return mf.Jumps(temperature=temperature)
    if temperature != 1:
        raise ValueError(f"--temperature is for masking, uniform and autoregressive, not for {config.representation}")
    return "midpoint"
