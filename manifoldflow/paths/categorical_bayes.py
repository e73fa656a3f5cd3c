r"""Bayesian flow of categories (Graves et al. 2023, section 6): the state is what noisy observations say of the data so far.

Of every token x there is a belief, probabilities :math:`\theta` of the K categories, even at first. An observation of accuracy
:math:`\alpha` is Gaussian, :math:`y \sim N(\alpha (K e_x - 1), \alpha K I)`, and Bayes' rule takes it in by
:math:`\theta' \propto e^y \theta`. Sums of independent Gaussians are Gaussian, so accuracies add up, and after the accuracy
:math:`\beta` the belief is

.. math:: \theta = \mathrm{softmax}(z), \qquad z \sim N(\beta (K e_x - 1), \beta K I).
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from manifoldflow.discrete import Tokens, draw_categorical
from manifoldflow.manifolds.base import expand_time
from manifoldflow.paths.base import NoisyPoint, Path
from manifoldflow.paths.logits import cross_entropy, mix_logits
from manifoldflow.state import where_mask

CERTAIN = 110.0
"""Logits by which a certain category is ahead, at least: the others' probabilities are then zero in single precision."""


@dataclass(frozen=True)
class EvenBelief:
    """The state before any observation: all categories alike.

    Args:
        tokens: the space.
        certainty: logits by which the token 0 is ahead at padding.
    """

    tokens: Tokens
    certainty: float = CERTAIN

    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Logits ``(*shape, K)``: zeros; those of the token 0 at padding."""
        x = torch.zeros(*shape, self.tokens.categories, dtype=dtype, device=device)
        rest = self.tokens.origin(tuple(shape), device=device)
        return x if mask is None else where_mask(mask, x, certain_logits(self.tokens, rest, self.certainty, x.dtype))

    def log_prob(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """One belief fills no volume.

        Raises:
            TypeError: always.
        """
        raise TypeError("a state without belief has no density")


@dataclass(frozen=True)
class CategoricalBayes(Path):
    r"""Bayesian flow of tokens, for networks that predict logits of the clean category from the belief.

    Data and samples are tokens ``(...)`` of ``Tokens(K)``. The state that the network sees has shape ``(..., K)``: logits z of
    the belief, of mean 0; the network should take their ``softmax(-1)`` first. Logits are kept because observations add up in
    them. Probabilities in single precision are zero once the others are ahead by 103, where :math:`K \beta` of about 80 brings
    them, and no later observation brings back a zero; logits of that size are rounded by 1e-5.

    The accuracy is :math:`\beta(t) = \beta_1 t^2`. With the predicted probabilities :math:`\hat e` the loss is the bound of
    continuous time, :math:`K \beta_1 t\, |e_x - \hat e|^2` nats. Its mean over times is what the observations tell of the data; a
    bound on the log-likelihood adds what they leave open at t = 1, :math:`-\log \hat e_x`.

    A step to time s observes the prediction with the accuracy :math:`\beta(s) - \beta(t)` and updates the belief. As steps
    shorten, the samples of an exact network have the law of the data, also where tokens depend on each other. With ``resample``
    the next belief is drawn anew, from all observations of the prediction ("end-back"), and what tokens knew of each other is
    kept by the prediction alone: this has no limit that is exact. A step to t = 1 ends at a category drawn from the prediction.

    Beliefs settle at :math:`\beta(t) K` of about :math:`2 \ln K`, which the default accuracy puts at t = 0.53 for every K.

    Args:
        accuracy: :math:`\beta_1`; :math:`7 \ln(K) / K` if absent, near those of Graves et al. (3 for K = 2, 0.75 for K = 27).
        objective: ``"elbo"``, the bound; or the ``"cross_entropy"`` of the prediction, which has the same minimiser and counts
            early times alike.
        observe: what a step observes: a category ``"drawn"`` from the prediction, or the ``"expected"`` one, the probabilities.
            Both have the same limit of short steps.
        resample: how a step draws.
        manifold: tokens without a mask; :class:`manifoldflow.Flow` fills it in.

    Raises:
        ValueError: an accuracy that is not positive, or an unknown word.
    """

    accuracy: float | None = None
    objective: Literal["elbo", "cross_entropy"] = "elbo"
    observe: Literal["drawn", "expected"] = "drawn"
    resample: bool = False
    predicts: Literal["logits"] = "logits"

    is_flow: ClassVar[bool] = False
    takes_coupling: ClassVar[bool] = False
    uses_source_point: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.accuracy is not None and not self.accuracy > 0:
            raise ValueError(f"CategoricalBayes: accuracy must be positive, got {self.accuracy}")
        for name, words in (("objective", ("elbo", "cross_entropy")), ("observe", ("drawn", "expected"))):
            if getattr(self, name) not in words:
                raise ValueError(
                    f"CategoricalBayes: {name} must be {words[0]!r} or {words[1]!r}, got {getattr(self, name)!r}"
                )

    def bind(self, space: Any, predicts: Any = None, source: Any = None) -> Any:
        """A copy on ``space``.

        Raises:
            TypeError: no tokens.
            ValueError: a space with a mask token, another prediction, or another start than the even belief.
        """
        if not isinstance(space, Tokens):
            raise TypeError(
                f"CategoricalBayes is for mf.Tokens(K), not for {space}; PeriodicBayes is for tori, GaussianBayes for flat space"
            )
        if space.mask:
            raise ValueError(f"CategoricalBayes starts from an even belief, not a mask: use Tokens({space.categories})")
        if predicts not in (None, "logits"):
            raise ValueError(f"CategoricalBayes: the network predicts logits of the clean category, not {predicts!r}")
        if source is not None and not isinstance(source, EvenBelief):
            raise ValueError(f"CategoricalBayes starts from the even belief, not from {source}")
        own: Any = super().bind(space, None, EvenBelief(space))
        return own.with_source(None)

    def with_source(self, source: Any) -> Any:
        """The even belief."""
        own: Any = self
        return replace(own, source=EvenBelief(self.space, self.certainty))

    # ---------------------------------------------------------------- beliefs

    @property
    def most(self) -> float:
        r""":math:`\beta_1`."""
        k = self.space.categories
        return 7 * math.log(k) / k if self.accuracy is None else self.accuracy

    @property
    def certainty(self) -> float:
        """Logits by which a known category is ahead: as many as all observations give it, and enough for certainty."""
        return max(CERTAIN, self.most * self.space.categories)

    def beta(self, t: Tensor) -> Tensor:
        r""":math:`\beta(t)`, the accuracy of all observations until ``t``."""
        return self.most * t.square()

    def state_of(self, x1: Tensor) -> Tensor:
        """Tokens as beliefs that are certain of them, logits ``(..., K)``."""
        return certain_logits(self.space, x1, self.certainty, torch.get_default_dtype())

    def data_of(self, x: Tensor) -> Tensor:
        """The most probable categories, int64."""
        return x.argmax(-1)

    def belief(self, x: Tensor) -> Tensor:
        r"""Probabilities :math:`\theta` of a state, ``(..., K)``."""
        return x.softmax(-1)

    def _observed(self, clean: Tensor, accuracy: Tensor, generator: torch.Generator | None) -> Tensor:
        """An observation of points of the simplex ``(..., K)``, without its mean over the categories, which says nothing."""
        k = self.space.categories
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        noise = noise - noise.mean(-1, keepdim=True)
        return accuracy * (k * clean - 1) + (accuracy * k).sqrt() * noise

    # ---------------------------------------------------------------- training

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> NoisyPoint:
        """The belief at time ``t``.

        Args:
            x0: unused but for its precision.
            x1: data, tokens ``(...)``.
            t: times in [0, 1], leading axes of x1.
            generator: of the observations.
        """
        dtype = x0.dtype if x0.is_floating_point() else t.dtype
        beta = torch.as_tensor(expand_time(self.beta(t).to(dtype), x1, 0)).unsqueeze(-1)
        return NoisyPoint(self._observed(self.space.one_hot(x1, dtype), beta, generator), t, x1)

    def loss(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The objective per token, ``(...)``, of logits ``pred`` ``(..., K)``."""
        if self.objective == "cross_entropy":
            return cross_entropy(pred, self.space.one_hot(point.endpoint, torch.float32))
        return self.bound(pred, point)

    def bound(self, pred: Tensor, point: NoisyPoint) -> Tensor:
        """The integrand of the bound per token, nats per unit of time ``(...)``."""
        # mixed precision ends at the network
        p = pred.softmax(-1, dtype=torch.promote_types(pred.dtype, torch.float32))
        squared = (p - self.space.one_hot(point.endpoint, p.dtype)).square().sum(-1)
        return self.space.categories * self.most * expand_time(point.t, squared, 0) * squared

    def bound_times(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Even times: the integrand is bounded."""
        return u, torch.ones_like(u)

    # ---------------------------------------------------------------- predictions

    def certain(self, x1: Tensor, x: Tensor) -> Tensor:
        """Logits that are certain of ``x1``."""
        return self.space.one_hot(x1, x.dtype) * 1e4

    def mix(self, pred_a: Tensor, pred_b: Tensor, weight: float | Tensor) -> Tensor:
        """As for tokens that jump: logits of :math:`p_a^w p_b^{1-w}`."""
        return mix_logits(pred_a, pred_b, weight)

    # ---------------------------------------------------------------- sampling

    def is_random(self, how: Any = None) -> bool:
        """Every step draws."""
        return True

    def log_prob(
        self, pred: Tensor, x: Tensor, y: Tensor, t: Tensor, s: Tensor, *, shift: Tensor | None = None, how: Any = None
    ) -> Tensor:
        """Not in closed form.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a step of CategoricalBayes draws a category and a belief; it has no probability in closed form"
        )

    def follow(
        self, pred: Tensor, x: Tensor, t: Tensor, s: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The next belief from logits ``pred`` and the present belief ``x``, ``(..., K)`` both; a step to t = 1 is certain of a
        category drawn from the prediction."""
        is_drawn = self.observe == "drawn"
        may_end = s.device.type != "cpu" or bool((s >= 1).any())
        end = self.space.one_hot(draw_categorical(pred, generator=generator), x.dtype) if is_drawn or may_end else None
        clean = end if is_drawn and end is not None else pred.softmax(-1, dtype=x.dtype)
        gained = self.beta(s) if self.resample else self.beta(s) - self.beta(t)
        gained = torch.as_tensor(expand_time(gained.clamp_min(0).to(x.dtype), x, 1))
        moved = self._observed(clean, gained, generator)
        moved = moved if self.resample else x + moved
        if end is None:
            return moved
        certain = self.certainty * (end - 1 / self.space.categories)
        return torch.where(torch.as_tensor(expand_time(s >= 1, x, 1)), certain, moved)


def certain_logits(tokens: Tokens, x: Tensor, ahead: float, dtype: torch.dtype) -> Tensor:
    """Logits ``(..., K)`` of mean 0, in which each token of ``x`` is ahead of all others by ``ahead``."""
    return ahead * (tokens.one_hot(x, dtype) - 1 / tokens.categories)
