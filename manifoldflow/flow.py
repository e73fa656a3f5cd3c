"""Flow: a source, a path and a network on named spaces, with the three verbs loss, sample and log_prob."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manifoldflow import noising
from manifoldflow.coupling import Coupling, Independent
from manifoldflow.field import Field, as_fields
from manifoldflow.noising import Clocks, Draw, Pin
from manifoldflow.paths import Linear, Path, Schedule, Source, default_path
from manifoldflow.sampling.base import Trajectory
from manifoldflow.sampling.density import check_points
from manifoldflow.sampling.kernel import FlowKernel
from manifoldflow.sampling.log_prob import Likelihoods
from manifoldflow.sampling.simulate import simulate
from manifoldflow.sampling.timegrid import check_times, linear_grid
from manifoldflow.state import (
    Shared,
    State,
    bare,
    fields,
    first_tensor,
    float_dtype,
    like,
    masked_mean,
    where_mask,
)

Predicts = Literal["velocity", "endpoint", "logits"]
# The states are those of the flow's own fields, which only the task knows.
Auxiliary = Callable[[Any, Any, dict[str, Any], Tensor | None, Any], dict[str, Tensor]]

__all__ = ["Draw", "Flow", "Pin", "Shared"]


class Flow(Likelihoods, nn.Module):
    r"""A flow-matching model of states that live in one space or in several named ones.

    Time runs from the source (t = 0) to the data (t = 1). ``forward`` is the loss, so any trainer works.

    Args:
        spaces: a manifold or :class:`Tokens`, or ``{field: space}``; a :class:`manifoldflow.Field` says that a field has one
            point per graph, or one per pair of nodes.
        model: ``model(x, t, *, mask=None, cond=None)`` -> predictions in the structure of the state. ``t`` has shape
            ``(B,)``, or ``(B, N)`` when elements are pinned; with ``clocks`` it is one tensor per field. With
            ``self_condition`` it also takes ``previous=``.
        source: distribution (or one per field) at t = 0; one with parameters (an ``nn.Module``) is trained with the model.
            Default: uniform on compact spaces, standard normal on flat ones, wrapped normal where exp is one-to-one
            (hyperbolic space, positive-definite matrices).
        path: conditional path (or one per field). Default: :class:`Geodesic` with a linear schedule; of tokens :class:`Masking`
            or :class:`UniformJump`.
        coupling: pairs source with data. Default: independent.
        predicts: ``"velocity"``, ``"endpoint"`` or (simplex) ``"logits"``, for all fields or one per field; what the path says if
            absent.
        weights: factor of each field's loss, default 1.
        auxiliary: ``(pred, x1, points, mask, cond) -> {name: scalar}``, further losses, added as they are.
        self_condition: probability of showing the model its own first prediction in training; above 0 the sampler feeds
            each prediction to the next step (Chen et al. 2023).
        cond_dropout: share of the training samples whose condition is hidden from the model, which is told by
            ``cond_mask=``, bool ``(B,)``; for :class:`manifoldflow.guidance.ClassifierFree`.
        pin: ``(mask, generator) -> bool (B, N)``: nodes to show clean (at t = 1) in training, so that ``known=`` works; or one
            tensor per field, of its own batch axes.
        clocks: ``{field: name}``: fields of the same name share a time, others have independent ones, so that any of them may be
            known, or not at all, at sampling.
        time_range: range of training times.
        time_warp: training times are ``time_warp.k(u)`` of uniform u, and so are the default grids of ``sample`` and
            ``log_prob``; :class:`Late` for data with fine detail. Default: as they are.

    Raises:
        ValueError: if the fields of spaces, source and path differ.
    """

    builder: str | None = None
    config: dict[str, Any] | None = None

    def __init__(
        self,
        spaces: Any,
        model: nn.Module,
        *,
        source: Source | Mapping[str, Source] | None = None,
        path: Path | Mapping[str, Path] | None = None,
        coupling: Coupling | None = None,
        predicts: Predicts | Mapping[str, Predicts] | None = None,
        weights: Mapping[str, float] | None = None,
        auxiliary: Auxiliary | None = None,
        self_condition: float = 0.0,
        cond_dropout: float = 0.0,
        pin: Pin | None = None,
        clocks: Clocks | None = None,
        time_range: tuple[float, float] = (0.0, 1.0),
        time_warp: Schedule | None = None,
    ) -> None:
        super().__init__()
        given, plain = as_fields(spaces)
        space_of = fields(plain)
        predicts_of = _per_field(predicts, space_of, "predicts")
        source_of = _per_field(source, space_of, "source")
        path_of = _per_field(path, space_of, "path")
        self.path: dict[str, Path] = {
            n: (path_of[n] or default_path(s)).bind(s, predicts_of[n], source_of[n]) for n, s in space_of.items()
        }
        # a path may choose the metric
        self.fields = {n: Field(p.space, given[n].per) for n, p in self.path.items()}
        self.spaces: Any = like({n: p.space for n, p in self.path.items()}, plain)
        self.source = {n: p.bound_source for n, p in self.path.items()}
        parts = {f"source_{n}": s for n, s in self.source.items()} | {f"path_{n}": p for n, p in self.path.items()}
        self.learned = nn.ModuleDict({n: m for n, m in parts.items() if isinstance(m, nn.Module)})
        self.coupling: Coupling = coupling or Independent()
        for bound in self.path.values():
            bound.check(self.coupling)
        self.weights = dict(weights or {})
        if unknown := set(self.weights) - set(space_of):
            raise ValueError(f"weights name unknown fields {sorted(unknown)}; the fields are {list(space_of)}")
        if clocks is not None and set(clocks) != set(space_of):
            raise ValueError(f"clocks must name a clock for each of the fields {list(space_of)}, got {list(clocks)}")
        self.auxiliary = auxiliary
        self.self_condition, self.cond_dropout = self_condition, cond_dropout
        self.pin, self.clocks = pin, clocks
        self.time_range, self.time_warp = time_range, time_warp or Linear()
        self.model = model
        self._takes = _accepted(model)
        if self_condition > 0 and "previous" not in self._takes:
            raise ValueError("self_condition needs a model that takes previous=, the prediction of the step before")
        if not 0 <= cond_dropout <= 1:
            raise ValueError(f"cond_dropout must lie in [0, 1], got {cond_dropout}")
        if cond_dropout > 0 and not {"cond", "cond_mask"} <= self._takes:
            raise ValueError(
                "cond_dropout needs a model that takes cond= and cond_mask=, bool (B,), False where it is hidden"
            )

    # ---------------------------------------------------------------- training

    def forward(self, x1: State, **kwargs: Any) -> Tensor:
        """The loss; see :meth:`loss`."""
        return self.loss(x1, **kwargs)

    def loss(self, x1: State, **kwargs: Any) -> Tensor:
        """Flow-matching loss of a batch of data, a scalar: the sum of :meth:`loss_parts`, with the same arguments."""
        return torch.stack(list(self.loss_parts(x1, **kwargs).values())).sum()

    def loss_parts(
        self,
        x1: State,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        x0: State | None = None,
        t: Any = None,
        generator: torch.Generator | None = None,
        check: bool = False,
    ) -> dict[str, Tensor]:
        """The terms of the loss by name, each a scalar: one per field, then the auxiliary ones.

        Args:
            x1: data, ``(B, ..., *event)`` per field.
            mask: bool ``(B, N)``, True where an element is real; what the padding holds does not matter.
            cond: condition, handed to the model and the coupling; its tensors have the batch as their first axis, but for those
                in :class:`manifoldflow.Shared`.
            x0: stored source points (reflow), used as they are; drawn from the source and coupled if absent.
            t: times ``(B,)``, or with ``clocks`` one tensor per field; uniform on ``time_range`` if absent.
            generator: of all random draws.
            check: look at the data first, which waits for the device: points off their space, NaN, numbers that are no tokens.
                :func:`manifoldflow.training.fit` looks at its batches by itself.
        """
        if check:
            check_points(self, x1, mask)
        return self.loss_of(self.draw(x1, mask=mask, cond=cond, x0=x0, t=t, generator=generator))

    def draw(
        self,
        x1: State,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        x0: State | None = None,
        t: Any = None,
        generator: torch.Generator | None = None,
    ) -> Draw:
        """The random part of :meth:`loss_parts`, with the same arguments: source, coupling, times, noisy states."""
        if x0 is not None and any(getattr(p, "average_targets", False) for p in self.path.values()):
            raise ValueError("average_targets assume independent pairs: train on stored pairs (x0=) without them")
        with torch.autocast(first_tensor(x1).device.type, enabled=False):
            return noising.draw(self, x1, mask, cond, x0, t, generator)

    def loss_of(self, draw: Draw) -> dict[str, Tensor]:
        """The terms of the loss at a draw: the part of :meth:`loss_parts` that calls the model, without randomness."""
        # Geometry stays out of autocast; the model call goes back in.
        kind = first_tensor(draw.x1).device.type
        autocast = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False):
            return self._loss_of(draw, autocast)

    def _loss_of(self, draw: Draw, autocast: bool) -> dict[str, Tensor]:
        kind = first_tensor(draw.x1).device.type
        given: dict[str, Any] = {"mask": draw.mask, "cond": draw.cond, "cond_mask": draw.cond_mask}
        previous = None
        if self.self_condition > 0 and draw.show_previous:
            with torch.no_grad(), torch.autocast(kind, enabled=autocast):
                previous = self.predict(draw.xt, draw.t, **given)
        with torch.autocast(kind, enabled=autocast):
            pred = self.predict(draw.xt, draw.t, previous=previous, **given)
        pins, parts = noising.spread_pins(self.fields, draw.pinned), {}
        for name, point in draw.points.items():
            element = self.path[name].loss(fields(pred)[name], point)
            real, pinned = self.fields[name].spread(draw.mask), pins[name]
            counted = real if pinned is None else (~pinned if real is None else real & ~pinned)
            parts[name if name != "x" else "flow"] = self.weights.get(name, 1.0) * masked_mean(element, counted)
        if self.auxiliary is not None:
            parts |= self.auxiliary(pred, draw.x1, draw.points, draw.mask, draw.cond)
        return parts

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters for an optimiser: those of the model and of learned sources and paths, in one group."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    # ---------------------------------------------------------------- sampling

    def predict(
        self,
        x: State,
        t: Any,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        cond_mask: Tensor | None = None,
        previous: State | None = None,
    ) -> State:
        """One call of the model; padding holds the origin (endpoints) or zero (velocities, logits)."""
        given = {"mask": mask, "cond": bare(cond), "cond_mask": cond_mask, "previous": previous}
        kwargs = {k: v for k, v in given.items() if v is not None}
        if "cond" in kwargs and "cond" not in self._takes:
            raise ValueError("this flow's model takes no condition; build it with one, or call without cond=")
        raw = self.model(x, t, **{k: v for k, v in kwargs.items() if k in self._takes})
        if mask is None:
            return raw
        out = {}
        for name, value in fields(raw).items():
            path, real = self.path[name], self.fields[name].spread(mask)
            if self.pin is None:
                value = path.centred(value, real)  # the path's own centring does not know the mask
            out[name] = where_mask(real, value, path.rest(value))
        return like(out, raw)

    def rate_shift(self, name: str, x: State, t: Tensor, mask: Tensor | None, cond: Any) -> Tensor | None:
        """Logarithms of factors on the jump rates of a field of tokens, ``(..., K)``; None here, guidance has some."""
        return None

    def time_dtype(self, x: State) -> torch.dtype:
        """The dtype in which the model gets times beside the state: that of its points, of its weights if all are tokens."""
        own = float_dtype(x, None)
        return own if own is not None else self._home()[1]

    def _home(self) -> tuple[torch.device, torch.dtype]:
        """Where the weights are, and in which precision; the defaults of torch without weights."""
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
        return torch.device("cpu"), torch.get_default_dtype()

    def draw_source(
        self,
        shape: Any,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> State:
        """Points of the source; ``shape`` is the batch shape of the nodes, or one batch shape per field. On the device and in
        the precision of the weights if none is named."""
        home = self._home()
        shapes = shape if isinstance(shape, Mapping) else {n: f.shape(tuple(shape)) for n, f in self.fields.items()}
        masks = {n: f.spread(mask) for n, f in self.fields.items()}
        drawn = noising.draw_source(
            self,
            shapes,
            masks=masks,
            generator=generator,
            dtype=dtype or home[1],
            device=home[0] if device is None else device,
        )
        return like(drawn, self.spaces)

    def kernel(self, method: Any = "euler", *, known: noising.Known | None = None, log_prob: bool = False) -> Any:
        """The kernel that :meth:`sample` repeats; see :class:`manifoldflow.sampling.FlowKernel` for the arguments."""
        return FlowKernel(self, method=method, known=known, log_prob=log_prob)

    def sample(
        self,
        shape: int | Sequence[int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        steps: int = 100,
        times: Tensor | Sequence[float] | None = None,
        method: Any = "euler",
        mask: Tensor | None = None,
        cond: Any = None,
        known: State | None = None,
        known_mask: Any = None,
        x0: State | None = None,
        generator: torch.Generator | None = None,
        trajectory: bool = False,
        log_prob: bool = False,
        differentiable: bool = False,
        callback: Callable[[int, State], None] | None = None,
    ) -> Any:
        """Draw samples.

        Args:
            shape: number of samples, or batch shape ``(B, N)`` of the nodes.
            lengths: sizes of sets, one per sample; the result is then ``(x, mask)`` with ``x`` padded to the longest.
            steps: number of steps of a grid from 0 to 1, equally spaced up to ``time_warp``.
            times: a grid instead, ``(steps + 1,)``, increasing or decreasing.
            method: ``"euler"`` follows the path exactly between two predictions; ``"midpoint"``, ``"heun"``, ``"rk4"``; or an
                :class:`manifoldflow.SDE`, which adds noise and keeps the marginals; or :class:`manifoldflow.Jumps`, which says
                how tokens jump; or one of them per field, ``{"pos": mf.SDE(), "type": mf.Jumps()}``.
            mask: bool ``(B, N)`` of real elements, if ``shape`` is given.
            cond: condition for the model; its tensors have the batch as their first axis, but for those in
                :class:`manifoldflow.Shared`.
            known, known_mask: values of pinned elements (some fields, or all) and where they are: bool ``(B, N)`` of nodes, or
                one per field; all of them if absent.
            x0: source points to start from, instead of a draw.
            generator: of every random draw.
            trajectory: return the states at all times, stacked along a new first axis.
            log_prob: return a :class:`manifoldflow.sampling.Trajectory` with the log-probability of every step.
            differentiable: keep the graph, through ``x0``, the condition and the parameters.
            callback: called with the number of the step and the state after each step.

        Returns:
            The samples (or trajectory), or ``(samples, mask)`` when ``lengths`` is given.
        """
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            start, mask = self._start(shape, lengths, mask, x0, generator)
            kept = noising.fit_known(self, start, known, known_mask)
            if kept.values is not None:
                given = {n: self.path[n].state_of(v) for n, v in fields(kept.values).items()}
                kept = kept._replace(values=like(given, kept.values))
            if known is not None and self.pin is None and self.clocks is None:
                warnings.warn(
                    "this flow was trained without pin=, so known= steers it only by replacement; "
                    "train with pin= for conditional samples",
                    stacklevel=2,
                )
            x = simulate(
                self.kernel(method, known=kept, log_prob=log_prob),
                start,
                self.time_grid(steps, times, first_tensor(start).device),
                mask=mask,
                cond=cond,
                known=kept.values,
                known_mask=kept.masks,
                generator=generator,
                trajectory=trajectory,
                log_prob=log_prob,
                callback=callback,
            )
        if isinstance(x, Trajectory):
            x = x._replace(states=self._data_of(x.states))
        else:
            x = self._data_of(x)
        return (x, mask) if lengths is not None else x

    def _data_of(self, x: State) -> State:
        """Points of the data's spaces, where paths carry more than a point."""
        return like({n: self.path[n].data_of(v) for n, v in fields(x).items()}, x)

    def sample_pairs(
        self, shape: int | Sequence[int] | None = None, *, x0: State | None = None, **options: Any
    ) -> tuple[State, State]:
        """Source points, drawn or given, and the samples that the flow makes of them; options as for :meth:`sample`."""
        start, _ = self._start(shape, None, options.get("mask"), x0, options.get("generator"))
        return start, self.sample(x0=start, **options)

    def time_grid(self, steps: int, times: Any = None, device: Any = None) -> Tensor:
        """The grid of :meth:`sample`: ``times``, checked, or ``steps`` steps of the warped unit interval."""
        if times is not None:
            return check_times(times, device)
        return self.time_warp.k(linear_grid(steps, dtype=torch.float64)).to(device)

    def _start(
        self,
        shape: int | Sequence[int] | None,
        lengths: Sequence[int] | None,
        mask: Tensor | None,
        x0: State | None,
        generator: torch.Generator | None,
    ) -> tuple[State, Tensor | None]:
        """The states at the first time, and the mask."""
        if lengths is not None:
            if shape is not None or mask is not None:
                raise ValueError("give either lengths, or shape and mask, not both")
            shape, mask = _lengths_to_mask(lengths, self._home()[0])
        if x0 is not None:
            return x0, mask
        if shape is None:
            raise ValueError("say how many samples: sample(100), sample((8, 64)) or sample(lengths=[100, 120])")
        batch_shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if min(batch_shape, default=1) < 1:
            raise ValueError(f"the number and size of samples must be at least 1, got {shape}")
        return self.draw_source(batch_shape, mask=mask, generator=generator), mask


def _per_field(value: Any, names: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    if unknown := set(value) - set(names):
        raise ValueError(f"{what} names unknown fields {sorted(unknown)}; the fields are {list(names)}")
    return {name: value.get(name) for name in names}


def _accepted(model: nn.Module) -> set[str]:
    """Which of the further arguments a model takes."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name for name in ("mask", "cond", "cond_mask", "previous") if takes_any or name in parameters}


def _lengths_to_mask(lengths: Sequence[int], device: torch.device) -> tuple[tuple[int, int], Tensor]:
    sizes = [int(n) for n in lengths]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"lengths must be positive whole numbers, got {list(lengths)}")
    longest = max(sizes)
    mask = torch.arange(longest, device=device) < torch.tensor(sizes, device=device).unsqueeze(-1)
    return (len(sizes), longest), mask
