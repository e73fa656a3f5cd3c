"""Flow: a source, a path and a network on named spaces, with the three verbs loss, sample and log_prob."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manifoldflow.coupling import Coupling, Independent
from manifoldflow.discrete import Tokens
from manifoldflow.distributions import Normal, Uniform
from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.euclidean import Centered, Euclidean
from manifoldflow.paths import (
    DirichletPath,
    Geodesic,
    Jumps,
    Linear,
    Masking,
    PathPoint,
    Schedule,
    SphericalBridge,
    UniformJump,
)
from manifoldflow.sampling.kernel import FlowKernel
from manifoldflow.sampling.likelihood import (
    ROWS,
    Adaptive,
    Directions,
    Divergence,
    OrthantCover,
    SolverGrid,
    divergence,
    log_density_change,
    log_density_change_adaptive,
)
from manifoldflow.sampling.simulate import Kernel, simulate
from manifoldflow.sampling.steps import Step
from manifoldflow.sampling.stochastic import SDE, SDEKernel
from manifoldflow.sampling.timegrid import linear_grid
from manifoldflow.state import (
    SINGLE,
    State,
    expand_mask,
    fields,
    first_tensor,
    float_dtype,
    like,
    map_state,
    masked_mean,
    where_mask,
)

Predicts = Literal["velocity", "endpoint", "logits"]
Pin = Callable[[Tensor, torch.Generator | None], Tensor]
# The states are those of the flow's own fields, which only the task knows.
Auxiliary = Callable[[Any, Any, dict[str, PathPoint], Tensor | None, Any], dict[str, Tensor]]


class Draw(NamedTuple):
    """Everything random about one training step, for a batch.

    Attributes:
        xt: noisy state.
        t: its times, ``(B,)`` or per element ``(B, N)``.
        points: draws of the paths, one per field.
        x1, mask, cond: the data.
        pinned: bool ``(B, N)``, elements that the model sees clean, or None.
        show_previous: bool scalar on the host: whether the model sees its own first prediction.
        cond_mask: bool ``(B,)``, samples whose condition the model sees, or None for all.
    """

    xt: State
    t: Tensor
    points: dict[str, PathPoint]
    x1: State
    mask: Tensor | None
    cond: Any
    pinned: Tensor | None
    show_previous: Tensor
    cond_mask: Tensor | None = None


class Flow(nn.Module):
    r"""A flow-matching model of states that live in one space or in several named ones.

    Time runs from the source (t = 0) to the data (t = 1). ``forward`` is the loss, so any trainer works.

    Args:
        spaces: a manifold or :class:`Tokens`, or ``{field: space}``.
        model: ``model(x, t, *, mask=None, cond=None)`` -> predictions in the structure of the state. ``t`` has shape
            ``(B,)``, or ``(B, N)`` when elements are pinned. With ``self_condition`` it also takes ``previous=``.
        source: distribution (or one per field) at t = 0. Default: uniform on compact spaces, standard normal on flat ones.
        path: conditional path (or one per field). Default: :class:`Geodesic` with a linear schedule.
        coupling: pairs source with data. Default: independent.
        predicts: ``"velocity"``, ``"endpoint"`` or (simplex) ``"logits"``, for all fields or one per field; what the path says if
            absent.
        weights: factor of each field's loss, default 1.
        auxiliary: ``(pred, x1, points, mask, cond) -> {name: scalar}``, further losses, added as they are.
        self_condition: probability of showing the model its own first prediction in training; above 0 the sampler feeds
            each prediction to the next step (Chen et al. 2023).
        cond_dropout: share of the training samples whose condition is hidden from the model, which is told by
            ``cond_mask=``, bool ``(B,)``; for :class:`manifoldflow.guidance.ClassifierFree`.
        pin: ``(mask, generator) -> bool (B, N)``: elements to show clean (at t = 1) in training, so that ``known=`` works.
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
        spaces: Manifold | Tokens | Mapping[str, Manifold | Tokens],
        model: nn.Module,
        *,
        source: Any = None,
        path: Any = None,
        coupling: Coupling | None = None,
        predicts: Predicts | Mapping[str, Predicts] | None = None,
        weights: Mapping[str, float] | None = None,
        auxiliary: Auxiliary | None = None,
        self_condition: float = 0.0,
        cond_dropout: float = 0.0,
        pin: Pin | None = None,
        time_range: tuple[float, float] = (0.0, 1.0),
        time_warp: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.spaces: Any = dict(spaces) if isinstance(spaces, Mapping) else spaces
        space_of = fields(self.spaces)
        predicts_of = _per_field(predicts, space_of, "predicts", None)
        given_source = _per_field(source, space_of, "source", None)
        given_path = _per_field(path, space_of, "path", None)
        self.path = {n: _bind(given_path[n], s, predicts_of[n], given_source[n]) for n, s in space_of.items()}
        self.spaces = like({n: p.space for n, p in self.path.items()}, self.spaces)  # a path may choose the metric
        self.source = {n: _source_of(p, p.space, given_source[n]) for n, p in self.path.items()}
        self.coupling: Coupling = coupling or Independent()
        for name, bound in self.path.items():
            if getattr(bound, "average_targets", False) and (
                not isinstance(self.source[name], Uniform) or not isinstance(self.coupling, Independent)
            ):
                raise ValueError("average_targets need a uniform source and the independent coupling")
            if getattr(bound, "own_evidence", False) and isinstance(bound, Geodesic):
                if not isinstance(self.source[name], Uniform) or not isinstance(self.coupling, Independent):
                    raise ValueError("own_evidence needs a uniform source and the independent coupling")
            if isinstance(bound, DirichletPath | SphericalBridge) and not isinstance(self.coupling, Independent):
                raise ValueError(f"{type(bound).__name__} draws x_t without the source point, so it takes no coupling")
        self.weights = dict(weights or {})
        if unknown := set(self.weights) - set(space_of):
            raise ValueError(f"weights name unknown fields {sorted(unknown)}; the fields are {list(space_of)}")
        self.auxiliary = auxiliary
        self.self_condition = self_condition
        self.cond_dropout = cond_dropout
        self.pin = pin
        self.time_range = time_range
        self.time_warp = time_warp or Linear()
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        known = ("mask", "cond", "cond_mask", "previous")
        self._takes = {name for name in known if takes_any or name in parameters}
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
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss by name, each a scalar: one per field, then the auxiliary ones.

        Args:
            x1: data, ``(B, ..., *event)`` per field.
            mask: bool ``(B, N)``, True where an element is real.
            cond: condition, handed to the model and the coupling.
            x0: stored source points (reflow), used as they are; drawn from the source and coupled if absent.
            t: times ``(B,)``; uniform on ``time_range`` if absent.
            generator: of all random draws.
        """
        return self.loss_of(self.draw(x1, mask=mask, cond=cond, x0=x0, t=t, generator=generator))

    def draw(
        self,
        x1: State,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        x0: State | None = None,
        t: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Draw:
        """The random part of :meth:`loss_parts`, with the same arguments: source, coupling, times, noisy states."""
        first = first_tensor(x1)
        with torch.autocast(first.device.type, enabled=False):
            return self._draw(x1, first, mask, cond, x0, t, generator)

    def loss_of(self, draw: Draw) -> dict[str, Tensor]:
        """The terms of the loss at a draw: the part of :meth:`loss_parts` that calls the model, without randomness."""
        # Geometry stays out of autocast; the model call goes back in.
        kind = first_tensor(draw.x1).device.type
        autocast = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False):
            return self._loss_of(draw, autocast)

    def _draw(
        self,
        x1: State,
        first: Tensor,
        mask: Tensor | None,
        cond: Any,
        x0: State | None,
        t: Tensor | None,
        generator: torch.Generator | None,
    ) -> Draw:
        batch, device = first.shape[0], first.device
        if x0 is not None and any(getattr(p, "average_targets", False) for p in self.path.values()):
            raise ValueError("average_targets assume independent pairs: train on stored pairs (x0=) without them")
        pinned = None if self.pin is None else self.pin(self._full_mask(first, mask), generator)
        x1 = self._center(x1, mask, pinned)
        if t is None:
            low, high = self.time_range
            even = torch.rand(batch, dtype=float_dtype(x1), device=device, generator=generator)
            t = low + (high - low) * self.time_warp.k(even)
        if x0 is None:  # stored pairs stay as they are: the coupling made them
            shapes = {n: v.shape[: v.ndim - self.path[n].space.event_ndim] for n, v in fields(x1).items()}
            x0 = self.draw_source(shapes, mask=mask, generator=generator, dtype=float_dtype(x1), device=device)
            coupled, x1 = self.coupling(x0, x1, spaces=self.spaces, mask=mask, cond=cond, generator=generator)
            if pinned is not None:
                # With a pinned part the frame of the data is given, so the source may not be turned towards the rest of it.
                has_pin = pinned.any(-1)
                coupled = map_state(lambda a, b: torch.where(expand_mask(has_pin, a), a, b), x0, coupled)
            x0 = coupled
        time = t if pinned is None else torch.where(pinned, 1.0, t.unsqueeze(-1))
        points = {n: self.path[n].sample(fields(x0)[n], v, time, generator=generator) for n, v in fields(x1).items()}
        xt = like({n: where_mask(mask, p.x, fields(x1)[n]) for n, p in points.items()}, x1)
        if pinned is not None:  # not every path ends at its data point exactly: the Dirichlet path ends near it
            xt = map_state(lambda noisy, clean: torch.where(expand_mask(pinned, clean), clean, noisy), xt, x1)
        show = torch.zeros((), dtype=torch.bool)
        if self.self_condition > 0:
            # One coin for the batch: no host sync on the outcome of a device draw, and half of the batches cost nothing.
            coin = torch.rand(
                (), generator=generator if generator is not None and generator.device.type == "cpu" else None
            )
            show = coin < self.self_condition
        seen = None
        if self.cond_dropout > 0 and cond is not None:
            seen = torch.rand(batch, generator=generator, device=device) >= self.cond_dropout
        return Draw(xt, time, points, x1, mask, cond, pinned, show, seen)

    def _loss_of(self, draw: Draw, autocast: bool) -> dict[str, Tensor]:
        xt, time, points, x1, mask, cond, pinned, show_previous, seen = draw
        device = time.device
        previous = None
        if self.self_condition > 0 and show_previous:
            with torch.no_grad(), torch.autocast(device.type, enabled=autocast):
                previous = self.predict(xt, time, mask=mask, cond=cond, cond_mask=seen)
        with torch.autocast(device.type, enabled=autocast):
            pred = self.predict(xt, time, mask=mask, cond=cond, cond_mask=seen, previous=previous)
        counted = mask if pinned is None else (~pinned if mask is None else mask & ~pinned)
        parts = {}
        for name, point in points.items():
            element = self.path[name].loss(fields(pred)[name], point)
            parts[name if name != "x" else "flow"] = self.weights.get(name, 1.0) * masked_mean(element, counted)
        if self.auxiliary is not None:
            parts |= self.auxiliary(pred, x1, points, mask, cond)
        return parts

    # ---------------------------------------------------------------- sampling

    def predict(
        self,
        x: State,
        t: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        cond_mask: Tensor | None = None,
        previous: State | None = None,
    ) -> State:
        """One call of the model; padding holds the origin (endpoints) or zero (velocities, logits)."""
        given = {"mask": mask, "cond": cond, "cond_mask": cond_mask, "previous": previous}
        kwargs = {k: v for k, v in given.items() if v is not None}
        if "cond" in kwargs and "cond" not in self._takes:
            raise ValueError("this flow's model takes no condition; build it with one, or call without cond=")
        raw = self.model(x, t, **{k: v for k, v in kwargs.items() if k in self._takes})
        if mask is None:
            return raw
        out = {}
        for name, value in fields(raw).items():
            path = self.path[name]
            if path.predicts == "endpoint":
                rest = path.space.origin(
                    value.shape[: value.ndim - path.space.event_ndim], dtype=value.dtype, device=value.device
                )
            else:
                rest = torch.zeros_like(value)
                if isinstance(path.space, Centered) and self.pin is None:
                    value = path.space.center(value, mask)  # the path's own centring does not know the mask
            out[name] = where_mask(mask, value, rest)
        return like(out, raw)

    def rate_shift(self, name: str, x: State, t: Tensor, mask: Tensor | None, cond: Any) -> Tensor | None:
        """Logarithms of factors on the jump rates of a field of tokens, ``(..., K)``; None here, guidance has some."""
        return None

    def draw_source(
        self,
        shape: Any,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> State:
        """Points of the source; ``shape`` is a batch shape, or one per field."""
        shapes = shape if isinstance(shape, Mapping) else {n: tuple(shape) for n in self.path}
        drawn = {
            n: s.sample(tuple(shapes[n]), mask=mask, generator=generator, dtype=dtype, device=device)
            for n, s in self.source.items()
        }
        return like(drawn, self.spaces)

    @torch.no_grad()
    def sample(
        self,
        shape: int | Sequence[int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        steps: int = 100,
        times: Tensor | Sequence[float] | None = None,
        method: str | Step | SDE | Jumps = "euler",
        mask: Tensor | None = None,
        cond: Any = None,
        known: State | None = None,
        known_mask: Tensor | None = None,
        x0: State | None = None,
        generator: torch.Generator | None = None,
        trajectory: bool = False,
        callback: Callable[[int, State], None] | None = None,
    ) -> Any:
        """Draw samples.

        Args:
            shape: number of samples, or batch shape ``(B, N)``.
            lengths: sizes of sets, one per sample; the result is then ``(x, mask)`` with ``x`` padded to the longest.
            steps: number of steps of a grid from 0 to 1, equally spaced up to ``time_warp``.
            times: a grid instead, ``(steps + 1,)``, increasing or decreasing.
            method: ``"euler"`` follows the path exactly between two predictions; ``"midpoint"``, ``"heun"``, ``"rk4"``; or an
                :class:`manifoldflow.SDE`, which adds noise and keeps the marginals; or :class:`manifoldflow.Jumps`, which says
                how tokens jump.
            mask: bool ``(B, N)`` of real elements, if ``shape`` is given.
            cond: condition for the model.
            known, known_mask: values of pinned elements and where they are, see :func:`manifoldflow.sampling.simulate`.
            x0: source points to start from, instead of a draw.
            generator: of every random draw.
            trajectory: return the states at all times, stacked along a new first axis.
            callback: called with the number of the step and the state after each step.

        Returns:
            The samples, or ``(samples, mask)`` when ``lengths`` is given.
        """
        parameter = next(self.model.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        if lengths is not None:
            if shape is not None or mask is not None:
                raise ValueError("give either lengths, or shape and mask, not both")
            shape, mask = _lengths_to_mask(lengths, device)
        if x0 is None:
            if shape is None:
                raise ValueError("say how many samples: sample(100), sample((8, 64)) or sample(lengths=[100, 120])")
            batch_shape = (shape,) if isinstance(shape, int) else tuple(shape)
            if min(batch_shape, default=1) < 1:
                raise ValueError(f"the number and size of samples must be at least 1, got {shape}")
            x0 = self.draw_source(batch_shape, mask=mask, generator=generator, device=device)
        if known is not None:
            if self.pin is None:
                warnings.warn(
                    "this flow was trained without pin=, so known= steers it only by replacement; "
                    "train with pin= for conditional samples",
                    stacklevel=2,
                )
            known, known_mask = self._fit_known(x0, known, known_mask)
        if times is None:
            grid = self.time_warp.k(linear_grid(steps, dtype=torch.float64)).to(device, torch.get_default_dtype())
        else:
            grid = torch.as_tensor(times, device=device)
        # Elements of which every field is known are clean: the model sees them at t = 1.
        fully_known = known is not None and set(fields(known)) == set(self.path)
        kernel: Kernel
        if isinstance(method, SDE):
            kernel = SDEKernel(self, method, known_mask=known_mask if fully_known else None)
        else:
            kernel = FlowKernel(self, method=method, known_mask=known_mask, fully_known=fully_known)
        x = simulate(
            kernel,
            x0,
            grid,
            mask=mask,
            cond=cond,
            known=known,
            known_mask=known_mask,
            generator=generator,
            trajectory=trajectory,
            callback=callback,
        )
        return (x, mask) if lengths is not None else x

    # ---------------------------------------------------------------- likelihood

    def velocity(
        self, x: State, t: Tensor, *, mask: Tensor | None = None, cond: Any = None, known_mask: Tensor | None = None
    ) -> State:
        """The tangent field that sampling follows, at a scalar time ``t`` (or times ``(B,)``)."""
        first = first_tensor(x)
        pred = fields(self.predict(x, t.expand(first.shape[0]).to(first.dtype), mask=mask, cond=cond))
        return like({n: self.path[n].velocity(pred[n], v, t) for n, v in fields(x).items()}, x)

    def log_prob(
        self,
        x: State,
        *,
        steps: int = 100,
        times: Tensor | Sequence[float] | None = None,
        method: str | Step | Adaptive = "rk4",
        divergence: Divergence = "exact",
        probes: int = 1,
        trace_every: int = 2,
        t_max: float | None = None,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
        differentiable: bool | None = None,
        return_error: bool = False,
        rows: int = ROWS,
    ) -> Any:
        r"""Log-density of data points in nats, with respect to the Riemannian volume of the spaces (as the sources' own).

        .. math:: \log p_1(x) = \log p_0(x_0) - \int_0^1 \mathrm{div}\, v(x_t, t)\, dt

        along the trajectory that ends at ``x``, solved backward (Chen et al. 2018; Mathieu & Nickel 2020). A set
        ``(B, N, ...)`` and a state of several fields have one density each. On :class:`UnitQuaternion` it is the density of
        rotations, the same number as on :class:`SO3`, if the network takes q and -q for the same. What has no exact density
        (discrete fields) will have a bound, ``elbo``.

        Args:
            x: points ``(B, ..., *event)`` per field, on the manifold.
            steps: number of steps of a grid from ``t_max`` to 0, equally spaced up to ``time_warp``.
            times: a decreasing grid instead, ``(steps + 1,)``; finer near 1 for data of a small scale.
            method: ``"rk4"``, ``"midpoint"``, ``"heun"``, ``"euler"``, or :class:`manifoldflow.Adaptive` for error control.
            divergence: ``"exact"`` (one forward-mode product per dimension of the state) or ``"hutchinson"`` (an unbiased
                estimate from random tangents, drawn anew at every time, so that their noise averages out).
            probes: number of random tangents.
            trace_every: take the divergence at every such time of a grid that is long enough for it (32 times are left);
                1 for fields that change fast in time.
            t_max: time at which ``x`` is taken to live. 1 for velocity predictions; 0.99 for endpoint predictions, whose
                velocity has a pole at 1. Numbers at different ``t_max`` do not compare.
            mask: bool ``(B, N)`` of real elements.
            cond: condition for the model.
            generator: of the random tangents.
            differentiable: keep the graph, through ``x`` and the parameters; by default if ``x`` requires a gradient. Steps
                are recomputed in the backward pass, so memory grows by one state per step.
            return_error: also return an estimate of the solver's error, the difference to half as many steps.
            rows: bound on the elements (samples x set size x directions) that go through the network at once, and so on
                memory; results do not depend on it.

        Returns:
            Log-densities ``(B,)``, or ``(log-densities, errors)``.

        Raises:
            ValueError: a point lies off its manifold, or the grid is not decreasing.
        """
        first = first_tensor(x)
        if set(fields(x)) != set(self.path):
            raise ValueError(f"log_prob needs all fields of the flow, {list(self.path)}, got {list(fields(x))}")
        if tokens := [n for n, p in self.path.items() if isinstance(p.space, Tokens)]:
            raise ValueError(f"tokens (field {tokens[0]!r}) have no exact log_prob; elbo(x) is a bound on it")
        with_graph = first.requires_grad if differentiable is None else differentiable
        grid = self._backward_grid(steps, times, t_max)
        plans: list[tuple[SolverGrid, Any]]
        if return_error and isinstance(method, Adaptive):
            fine = method._replace(rtol=0.1 * method.rtol, atol=0.1 * method.atol)
            plans = [(grid, fine), (grid, method)]
        elif return_error:
            if len(grid.times) < 3:
                raise ValueError("return_error compares with half as many steps, so it needs at least 2")
            plans = [(grid, method), (grid.halved(), method)]
        else:
            plans = [(grid, method)]
        is_set = first.ndim > 1 + next(iter(self.path.values())).space.event_ndim
        size = max(1, rows // (first.shape[1] if is_set else 1))
        values = []
        with torch.set_grad_enabled(with_graph), torch.autocast(first.device.type, enabled=False):
            for name, value in fields(x).items():
                self.path[name].space.check(value.detach() if mask is None else value.detach()[mask])
            for plan, solver in plans:
                parts = [
                    self._log_prob(
                        part, plan, solver, divergence, probes, trace_every, m, c, generator, rows, with_graph
                    )
                    for part, m, c in _parts(x, mask, cond, size)
                ]
                values.append(torch.cat(parts))
        return (values[0], (values[0] - values[1]).abs()) if return_error else values[0]

    @torch.no_grad()
    def elbo(
        self,
        x: State,
        *,
        samples: int = 64,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
        return_error: bool = False,
    ) -> Any:
        r"""A lower bound on the log-probability of tokens in nats, estimated from random times.

        .. math:: \log p(x_1) \ge -\int_0^1 E_{x_t}\, D(u_t(\cdot | x_t, x_1), \hat u_t(\cdot | x_t))\, dt

        with the generalised Kullback-Leibler divergence D of the jump rates (Campbell et al. 2022; Shaul et al. 2024), summed
        over the tokens. The estimate is unbiased; its times are stratified, one in every ``1 / samples``.

        Args:
            x: tokens ``(B, ...)`` of a flow whose fields are all tokens.
            samples: times for every sequence.
            mask: bool ``(B, N)`` of real tokens.
            cond: condition for the model.
            generator: of times and noise.
            return_error: also return the standard error of every estimate (an upper bound on it, as times are stratified).

        Returns:
            ``(B,)`` nats, or ``(value, error)``.

        Raises:
            TypeError: a field lives on a manifold, where :meth:`log_prob` is exact.
        """
        for name, path in self.path.items():
            if not isinstance(path.space, Tokens):
                raise TypeError(f"elbo is for tokens; field {name!r} lives on {path.space}, which has log_prob")
            path.space.check(fields(x)[name], with_mask=False)
        first = first_tensor(x)
        batch, dtype = first.shape[0], float_dtype(x)
        gained = []
        for i in range(samples):
            u = torch.rand(batch, dtype=dtype, device=first.device, generator=generator)
            t = (i + u * (1 - 1e-6)) / samples
            shapes = {n: tuple(v.shape) for n, v in fields(x).items()}
            x0 = fields(self.draw_source(shapes, mask=mask, generator=generator, device=first.device))
            points = {n: self.path[n].sample(x0[n], v, t, generator=generator) for n, v in fields(x).items()}
            xt = like({n: where_mask(mask, p.x, fields(x)[n]) for n, p in points.items()}, x)
            pred = fields(self.predict(xt, t, mask=mask, cond=cond))
            total = torch.zeros(batch, dtype=torch.float64, device=first.device)
            for name, point in points.items():
                part = self.path[name].bound(pred[name], point)
                total = total + where_mask(mask, part, torch.zeros_like(part)).flatten(1).double().sum(-1)
            gained.append(-total)
        values = torch.stack(gained)
        value = values.mean(0).to(dtype)
        return (value, (values.std(0) / samples**0.5).to(dtype)) if return_error else value

    def _backward_grid(self, steps: int, times: Tensor | Sequence[float] | None, t_max: float | None) -> SolverGrid:
        if times is None:
            ends = any(p.predicts in ("endpoint", "logits") for p in self.path.values())
            start = t_max if t_max is not None else (0.99 if ends else 1.0)
            if not 0 < start <= 1:
                raise ValueError(f"t_max must lie in (0, 1], got {start}")
            clock = linear_grid(steps, 1.0, 0.0, dtype=torch.float64)
            warped, rates = start * self.time_warp.k(clock), start * self.time_warp.dk(clock)
            return SolverGrid(warped.tolist(), clock.tolist(), rates.tolist())
        grid = torch.as_tensor(times, dtype=torch.float64).tolist()
        if len(grid) < 2 or any(b >= a for a, b in pairwise(grid)):
            raise ValueError("times must decrease, from the time of the data (1) to that of the source (0)")
        return SolverGrid.of(grid)

    def _log_prob(
        self,
        x: State,
        grid: SolverGrid,
        method: Any,
        kind: Divergence,
        probes: int,
        trace_every: int,
        mask: Tensor | None,
        cond: Any,
        generator: torch.Generator | None,
        rows: int,
        with_graph: bool,
    ) -> Tensor:
        fold = OrthantCover(self.spaces)
        velocity = fold.lift(lambda at, when: self.velocity(at, when, mask=mask, cond=cond))
        spaces, start = fold.spaces, fold.up(x)

        def take(at: State, when: Tensor) -> tuple[State, Tensor]:
            return divergence(
                velocity,
                spaces,
                at,
                when,
                kind=kind,
                probes=probes,
                mask=mask,
                generator=generator,
                rows=rows,
                push=None if fold.names else self._push(mask, cond),
            )

        if isinstance(method, Adaptive):
            end, gained = log_density_change_adaptive(spaces, start, grid.times[0], grid.times[-1], method, take)
        else:
            end, gained = log_density_change(
                velocity, spaces, start, grid, method=method, trace_every=trace_every, take=take, recompute=with_graph
            )
        x0 = fold.down(end)
        total = gained + fold.log_inside(end, mask)
        for name, value in fields(x0).items():
            space = self.path[name].space
            element = self.source[name].log_prob(value, mask=mask)
            warp = space.log_volume_element(value) - space.log_volume_element(fields(x)[name])
            for part in (element, where_mask(mask, warp, torch.zeros_like(warp))):
                total = total + (part.flatten(1).sum(-1) if part.ndim > 1 else part)
        return total

    def _push(self, mask: Tensor | None, cond: Any) -> Any:
        """The network's own derivative along directions, where it has one and its output is the velocity."""
        own = getattr(self.model, "push_forward", None)
        path = next(iter(self.path.values()))
        plain = path.predicts == "velocity" and getattr(path, "sample_schedule", None) is None
        if own is None or mask is not None or isinstance(self.spaces, Mapping) or not plain:
            return None

        def push(x: State, t: Tensor, directions: Directions) -> tuple[State, dict[str, Tensor]]:
            time = t.expand(first_tensor(x).shape[0]).to(first_tensor(x).dtype)
            v, dv = own(x, time, directions.moves[SINGLE], **({} if cond is None else {"cond": cond}))
            return v, {SINGLE: dv}

        return push

    # ---------------------------------------------------------------- internals

    def _fit_known(self, x: State, known: State, known_mask: Tensor | None) -> tuple[State, Tensor | None]:
        """Check the known elements, and extend them by free ones if the samples have more."""
        first, given = first_tensor(x), fields(known)
        if unknown := set(given) - set(self.path):
            raise ValueError(f"known has unknown fields {sorted(unknown)}; the fields are {list(self.path)}")
        if known_mask is None:
            return known, None
        extra = first.shape[1] - known_mask.shape[-1]
        if extra < 0:
            raise ValueError(
                f"known_mask covers {known_mask.shape[-1]} elements, but a sample has only {first.shape[1]}"
            )
        if extra > 0:
            for name, value in given.items():
                rest = self.path[name].space.origin((value.shape[0], extra), dtype=value.dtype, device=value.device)
                given[name] = torch.cat([value, rest], 1)
            known_mask = torch.nn.functional.pad(known_mask, (0, extra))
        return like(given, known), known_mask.expand(first.shape[0], -1).to(first.device)

    def _full_mask(self, first: Tensor, mask: Tensor | None) -> Tensor:
        return torch.ones(first.shape[:2], dtype=torch.bool, device=first.device) if mask is None else mask

    def _center(self, x: State, mask: Tensor | None, pinned: Tensor | None) -> State:
        """Centre mean-free fields: on the pinned part where there is one (its place is what sampling will be given)."""
        out = fields(x)
        for name, value in out.items():
            space = self.path[name].space
            if isinstance(space, Centered):
                if pinned is None:
                    out[name] = space.center(value, mask)
                else:
                    anchor = torch.where(pinned.any(-1, keepdim=True), pinned, self._full_mask(value, mask))
                    weight = anchor.unsqueeze(-1).to(value.dtype)
                    mean = (value * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp_min(1)
                    out[name] = where_mask(mask, value - mean, torch.zeros_like(value))
        return like(out, x)


def _per_field(value: Any, names: Mapping[str, Any], what: str, default: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value if value is not None else default for name in names}
    if unknown := set(value) - set(names):
        raise ValueError(f"{what} names unknown fields {sorted(unknown)}; the fields are {list(names)}")
    return {name: value.get(name, default) for name in names}


def _parts(x: State, mask: Tensor | None, cond: Any, size: int) -> Iterator[tuple[State, Tensor | None, Any]]:
    """Pieces of a batch of at most ``size`` samples; conditions whose first axis is the batch are cut with it."""
    batch = first_tensor(x).shape[0]

    def cut(value: Any, at: int) -> Any:
        if isinstance(value, Mapping):
            return {key: cut(v, at) for key, v in value.items()}
        belongs = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch
        return value[at : at + size] if belongs else value

    for at in range(0, max(batch, 1), size):
        yield cut(x, at), cut(mask, at), cut(cond, at)


def _bind(path: Any, space: Any, predicts: Predicts | None, source: Any) -> Any:
    """The path of a field on its space; paths of tokens also know where the tokens come from."""
    if isinstance(space, Tokens):
        path = path or (Masking() if space.mask else UniformJump())
        return path.bind(space, predicts, source)
    return (path or Geodesic()).bind(space, predicts)


def _source_of(path: Any, space: Any, given: Any) -> Any:
    own = getattr(path, "source", None)  # paths of tokens, and bridges, know where they start
    if own is not None:
        if not isinstance(space, Tokens) and given is not None and given.bind(space) != own:
            raise ValueError(f"{type(path).__name__} starts from {own}, not from {given}")
        return own
    return (given or (Normal() if isinstance(space, Euclidean | Centered) else Uniform())).bind(space)


def _lengths_to_mask(lengths: Sequence[int], device: torch.device) -> tuple[tuple[int, int], Tensor]:
    sizes = [int(n) for n in lengths]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"lengths must be positive whole numbers, got {list(lengths)}")
    longest = max(sizes)
    mask = torch.arange(longest, device=device) < torch.tensor(sizes, device=device).unsqueeze(-1)
    return (len(sizes), longest), mask
