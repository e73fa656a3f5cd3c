r"""What every conditional path offers, with defaults, so that a new path is one file.

A path joins a source point x_0 (t = 0) to a data point x_1 (t = 1) in one space. In training it draws the noisy point x_t; in
sampling it turns what the network returned into a step. What differs between paths is a method here, never a question about
their type somewhere else.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from manifoldflow.distributions import Normal, Uniform, WrappedNormal
from manifoldflow.manifolds.base import expand_time
from manifoldflow.state import Move, where_mask

DEFAULT_SOURCES: dict[str, Any] = {"normal": Normal, "uniform": Uniform, "wrapped normal": WrappedNormal}
"""Where a path starts if nothing is said, by :attr:`Manifold.default_source`."""


class Point(Protocol):
    """One draw of a conditional path: x_t, its time, and what the loss needs."""

    @property
    def x(self) -> Tensor:
        """The noisy point, ``(..., *event)``; a path may put a state of another shape than the data here."""

    @property
    def t(self) -> Tensor:
        """Its time, leading batch axes of x."""


class Source(Protocol):
    """Where a path starts: a distribution of points or tokens; one that is an ``nn.Module`` is trained with the model."""

    def sample(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Independent points, ``(*shape, *event)``; the origin at padding."""

    def log_prob(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Log-density of every point, ``(...)``; 0 at padding."""


class PathPoint(NamedTuple):
    """One draw of a conditional path with a velocity.

    Attributes:
        x: the point x_t, ``(..., *event)``.
        t: its time, leading batch axes of x.
        velocity: d x_t / dt, a tangent at x.
        endpoint: x_1.
    """

    x: Tensor
    t: Tensor
    velocity: Tensor
    endpoint: Tensor


class NoisyPoint(NamedTuple):
    """One draw of a conditional path whose network predicts the clean point or category, so that no velocity is needed.

    Attributes:
        x: x_t: tokens ``(...)``, or points ``(..., *event)``.
        t: their time, leading batch axes of x.
        endpoint: x_1, of the same shape.
    """

    x: Tensor
    t: Tensor
    endpoint: Tensor


@dataclass(frozen=True, kw_only=True)
class Path:
    r"""Base class of conditional paths: a frozen dataclass of hyper-parameters.

    A subclass writes :meth:`sample`, :meth:`loss` and either :meth:`velocity` (a flow: its steps, likelihoods and, where there is
    a :meth:`noise_level`, SDE steps follow) or :meth:`follow` (any other step).

    Args:
        manifold: the space, tokens too; :class:`manifoldflow.Flow` fills it in.
        source: where the path starts; likewise.

    Attributes:
        predicts: what the network returns: ``"velocity"``, ``"endpoint"``, ``"logits"``, or a word of the path's own.
        outputs: how many tangents the network returns for a point.
        uses_source_point: x_t is a function of the source point, so that couplings and stored pairs mean something.
        takes_coupling: the source point may be chosen to suit the data point.
        is_flow: samples follow a velocity field, so there is a density (:meth:`manifoldflow.Flow.log_prob`).
        jumps: the steps are jumps between discrete states, so guidance may multiply their rates (``shift``).
    """

    manifold: Any = None
    source: Source | None = None

    predicts = "velocity"  # a class attribute here, so that a subclass says where among its own arguments it stands
    outputs: ClassVar[int] = 1
    uses_source_point: ClassVar[bool] = True
    takes_coupling: ClassVar[bool] = True
    is_flow: ClassVar[bool] = True
    jumps: ClassVar[bool] = False

    # ---------------------------------------------------------------- binding

    @property
    def space(self) -> Any:
        """The space of a bound path."""
        if self.manifold is None:
            name = type(self).__name__
            raise ValueError(f"this path has no manifold yet: use {name}(manifold=...) or path.bind(manifold)")
        return self.manifold

    @property
    def bound_source(self) -> Source:
        """Where a bound path starts."""
        if self.source is None:
            raise ValueError(f"this path has no source yet: use {type(self).__name__}().bind(manifold)")
        return self.source

    def bind(self, space: Any, predicts: Any = None, source: Source | None = None) -> Any:
        """A copy on ``space``.

        Args:
            space: manifold or tokens.
            predicts: what the network returns; as the path says if absent.
            source: where the path starts; the default of the path and the space if absent.

        Raises:
            TypeError, ValueError: the path does not exist there; says what to use.
        """
        own: Any = self
        given = {} if predicts is None or predicts == self.predicts else {"predicts": predicts}
        bound = replace(own, manifold=self.manifold or space, **given)
        return bound.with_source(source)

    def with_source(self, source: Source | None) -> Any:
        """A copy that starts from ``source``, or from the default: uniform on compact spaces, standard normal on flat ones."""
        start = source if source is not None else self.source
        if start is None:
            start = DEFAULT_SOURCES[self.space.default_source]()
        own: Any = self
        return replace(own, source=start.bind(self.space) if hasattr(start, "bind") else start)

    def check(self, coupling: Any) -> None:
        """Raise unless the bound path may be trained with its source and this coupling.

        Raises:
            ValueError: says what does not fit.
        """
        if not self.takes_coupling and not getattr(coupling, "is_independent", False):
            raise ValueError(f"{type(self).__name__} draws x_t without the source point, so it takes no coupling")

    def for_pairs(self, *, only_start: bool) -> Any:
        """The path that trains on stored pairs of a flow's own (reflow).

        Args:
            only_start: training sees t = 0 alone.

        Raises:
            ValueError: a sample is no function of its source point.
        """
        if not self.uses_source_point or not self.is_flow:
            raise ValueError(f"a sample of {type(self).__name__} is no function of its source point")
        return self

    def on_training_clock(self) -> Any:
        """The path with the velocities that training regresses on."""
        return self

    # ---------------------------------------------------------------- training

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> Point:
        """A draw of x_t.

        Args:
            x0, x1: source and data points ``(..., *event)``.
            t: times in [0, 1], leading batch axes of x0.
            generator: of every random number.
        """
        raise NotImplementedError

    def loss(self, pred: Tensor, point: Any) -> Tensor:
        """The loss per element, batch shape of ``point.x``."""
        raise NotImplementedError

    def bound(self, pred: Tensor, point: Any) -> Tensor | None:
        """The integrand of a negative evidence bound per element, nats per unit of time; None if the path has none."""
        return None

    def bound_times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times at which the bound is estimated, and their weights, from uniform ``u``: :math:`t = 1 - (1 - u)^4`.

        Near t = 1 the integrand is as large as 1 / (1 - t), on tokens that are rarer and rarer. Under even times its variance is
        infinite, and a call in a hundred reports a small error far above the truth; with the square it is finite, with the
        fourth power the higher moments are too, so that reported errors can be believed.
        """
        left = 1 - u
        return 1 - left**4, 4 * left**3

    # ---------------------------------------------------------------- states of another shape

    def state_of(self, x1: Tensor) -> Tensor:
        """A data point as the state that this path ends at: itself, unless the path carries more than a point (beliefs)."""
        return x1

    def data_of(self, x: Tensor) -> Tensor:
        """The data point of a state at the end of the path, the inverse of :meth:`state_of`."""
        return x

    # ---------------------------------------------------------------- predictions

    def rest(self, pred: Tensor) -> Tensor:
        """What a prediction holds at padding: zeros."""
        return torch.zeros_like(pred)

    def centred(self, pred: Tensor, mask: Tensor | None) -> Tensor:
        """A prediction without what the space does not have (the drift of the centre of a set), over real elements only."""
        return pred

    def logits(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Logits of the clean category ``(..., K)`` from what the network returned.

        Raises:
            ValueError: the path predicts something else.
        """
        if self.predicts != "logits":
            raise ValueError(f"{type(self).__name__} predicts {self.predicts!r}, so it has no logits")
        return pred

    def posterior(self, probabilities: Tensor, x: Tensor) -> Tensor:
        """Probabilities ``(..., K)`` of the clean categories, those that are known made certain."""
        return probabilities

    def certain(self, x1: Tensor, x: Tensor) -> Tensor:
        """The prediction at ``x`` of a network that knows the data: with it the steps are those of the conditional process.

        Raises:
            TypeError: the path predicts something else than a category.
        """
        if self.predicts != "logits" or not self.jumps:
            raise TypeError(f"{type(self).__name__} has no prediction that is certain of a category")
        return torch.nn.functional.one_hot(x1, self.space.categories) * 1e4

    def mix(self, pred_a: Tensor, pred_b: Tensor, weight: float | Tensor) -> Tensor:
        """The blend of two predictions that guidance needs: a at weight 1, b at 0, beyond a above 1."""
        return pred_b + weight * (pred_a - pred_b)

    def guess(self, pred: Tensor, x: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """A clean point drawn from a prediction at ``x``: a step to t = 1."""
        return self.data_of(self.advance(pred, x, t, torch.ones_like(t), generator=generator).x)

    # ---------------------------------------------------------------- sampling

    def velocity(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The tangent that moves ``x`` at time ``t``.

        Raises:
            ValueError: samples of this path do not follow a field.
        """
        raise ValueError(f"{type(self).__name__} is no flow: its steps are random, so it has no velocity")

    def has_pole(self) -> bool:
        """Whether the velocity grows without limit at t = 1, as that of an endpoint prediction does."""
        return self.predicts in ("endpoint", "logits")

    def follow(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The step from ``t`` to ``s`` with the prediction held fixed, without noise of a sampler: exp((s - t) velocity).

        Args:
            pred: what the network returned at ``x`` and ``t``.
            x: points ``(..., *event)``.
            t, s: scalar times, or one per sample.
            generator: of a draw at the end (a corner, a token).
        """
        u = self.velocity(pred, x, t)
        return self.space.exp(x, expand_time(s - t, u, self.space.tangent_ndim) * u)

    def check_method(self, how: Any) -> None:
        """Raise unless ``how``, a ``method`` of :meth:`manifoldflow.Flow.sample`, says how this path steps.

        Raises:
            TypeError, ValueError: it is for other spaces; says which.
        """
        if how is not None and not hasattr(how, "renew"):
            raise ValueError(f"method={type(how).__name__}(...) is for fields of tokens, not for {self.space}")

    def advance(
        self,
        pred: Tensor,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        shift: Tensor | None = None,
        how: Any = None,
    ) -> Move:
        """One sampling step from time ``t`` to ``s`` with the prediction held fixed.

        Args:
            pred: what the network returned at ``x`` and ``t``.
            x: points ``(..., *event)``.
            t, s: scalar times.
            mask: bool, leading axes of x, of real elements; the others stay.
            generator: of every random number.
            shift: logarithms of factors on the jump rates towards every category (guidance); for paths that jump.
            how: the way of stepping: an :class:`manifoldflow.SDE`, or :class:`manifoldflow.Jumps`; the path's own if absent.

        Returns:
            The :class:`Move`, without a log-probability: :meth:`log_prob` has that of any move.
        """
        moved = self.follow(pred, x, t, s, generator=generator)
        if how is not None:
            moved = how.renew(self, pred, x, moved, t, s, mask=mask, generator=generator)
        return Move(moved if mask is None else where_mask(mask, moved, x))

    def is_random(self, how: Any = None) -> bool:
        """Whether :meth:`advance` draws the step, so that it has a probability; else the step is a map with a volume factor."""
        return how is not None

    def log_prob(
        self,
        pred: Tensor,
        x: Tensor,
        y: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        shift: Tensor | None = None,
        how: Any = None,
    ) -> Tensor:
        """Log-probability (log-density, by the volume of the space) of the step of :meth:`advance` from ``x`` to ``y``.

        Args:
            pred, x, t, s, shift, how: as for :meth:`advance`.
            y: where the step ended, ``(..., *event)``.

        Returns:
            Nats per element, batch shape.

        Raises:
            TypeError: the step has no closed form of it.
        """
        if how is None:
            raise TypeError(f"a step of {type(self).__name__} draws nothing, so it has no probability of its own")
        return how.log_prob(self, pred, x, y, t, s)

    # ---------------------------------------------------------------- noise and score

    def check_score(self, coupling: Any) -> None:
        """Raise unless the score of the marginals follows from what the network predicts.

        Raises:
            TypeError: says what is missing.
        """
        raise TypeError(
            f"{type(self).__name__} on {self.space} has no score in closed form; use path=StochasticInterpolant(), whose "
            "network learns the score"
        )

    def noise_level(self, t: Tensor) -> Tensor:
        r""":math:`\gamma(t)`: the standard deviation of the noise in x_t, for paths with a score."""
        raise TypeError(f"{type(self).__name__} has no noise level")

    def noise_prediction(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r""":math:`\eta = -\gamma \nabla \log p_t(x)`, the noise expected in ``x``; a tangent."""
        raise TypeError(f"{type(self).__name__} has no noise prediction")

    def score(self, pred: Tensor, x: Tensor, t: Tensor) -> Tensor | None:
        r""":math:`\nabla \log p_t(x)` of the marginals, a tangent at ``x``; None where it does not follow from the prediction.

        The score of data that fill no volume is infinite where there is no noise, so its level is kept above 1e-6.
        """
        try:
            level = self.noise_level(t)
        except TypeError:
            return None
        noise = self.noise_prediction(pred, x, t)
        return -noise / expand_time(level.clamp_min(1e-6), noise, self.space.tangent_ndim)
