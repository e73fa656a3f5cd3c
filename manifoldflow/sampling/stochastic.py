r"""Sampling by a stochastic differential equation with the marginals of the flow.

For a velocity b with marginals p_t every :math:`\epsilon(t) \ge 0` gives a diffusion with the same marginals,

.. math:: dx = (b + \epsilon \nabla \log p_t)\, dt + \sqrt{2 \epsilon}\, dW,

because :math:`\epsilon \Delta p = \mathrm{div}(\epsilon\, p \nabla \log p)`, on any manifold (Albergo et al. 2023, eq. 2.34). It
forgets errors of earlier steps, the more the larger :math:`\epsilon`, and costs more steps.

The score. :class:`manifoldflow.StochasticInterpolant` learns it. On flat space with a Gaussian source :math:`N(0, c^2)` drawn
independently of the data, :class:`Geodesic` has it in closed form: with :math:`\alpha = k, \sigma = c (1 - k)`,

.. math:: \nabla \log p_t = \frac{\alpha u - \alpha' x}{\sigma (\alpha' \sigma - \alpha \sigma')}
    = -\frac{\hat x_0}{c^2 (1 - k)}, \quad \hat x_0 = x - \frac{k}{k'} u

A uniform source on a compact space has no such relation: given the data point, x_t lies on a contracted copy of the space
with a density that is constant there (up to the volume factor of exp), so the score of the conditional law says nothing of
where on it x_t lies; it is carried by the boundary of the copy, which the velocity does not see.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from manifoldflow.manifolds.base import expand_time
from manifoldflow.sampling.kernel import FlowKernel
from manifoldflow.state import State, fields, first_tensor, like, where_mask

Diffusion = float | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SDE:
    r"""How much noise a sampler adds: a ``method`` of :meth:`manifoldflow.Flow.sample`.

    A step from t to s follows the flow and takes a Langevin step at the noise level :math:`\gamma` of the middle,

    .. math:: -\gamma q\, \eta + \gamma \sqrt{2 q}\, \xi, \quad q = 1 - e^{-\epsilon h / \gamma^2}, \quad
        \eta = -\gamma \nabla \log p_t

    together one step of a geodesic random walk. To first order in h it is that of Euler and Maruyama,
    :math:`\epsilon h \nabla \log p + \sqrt{2 \epsilon h}\, \xi`, but as q < 1 it is stable at every :math:`\epsilon` and h: no
    more noise is renewed than there is. A step to a time without noise adds none, so the last one lands where the flow's
    does.

    Args:
        diffusion: a number r means :math:`\epsilon(t) = r \gamma(t)^2`, the noise being renewed r times in unit time (units
            of length drop out; 0 is the flow itself); a function of time is :math:`\epsilon(t)`, length^2 per unit time. One
            for all fields, or one per field (absent fields get 0).
    """

    diffusion: Diffusion | Mapping[str, Diffusion] = 1.0

    def __post_init__(self) -> None:
        given = self.diffusion.values() if isinstance(self.diffusion, Mapping) else [self.diffusion]
        for value in given:
            if not callable(value) and not value >= 0:
                raise ValueError(f"SDE: diffusion must be a number of at least 0 or a function of time, got {value}")

    is_for_jumps: ClassVar[bool] = False

    def __hash__(self) -> int:
        given = self.diffusion
        return hash(tuple(sorted(given.items(), key=str)) if isinstance(given, Mapping) else given)

    def of(self, name: str) -> Diffusion:
        """The diffusion of a field."""
        return self.diffusion.get(name, 0.0) if isinstance(self.diffusion, Mapping) else self.diffusion

    def for_field(self, name: str, names: Any) -> "SDE | None":
        """The way of one field: None where it gets no noise.

        Raises:
            ValueError: the diffusion names fields that the flow lacks.
        """
        if isinstance(self.diffusion, Mapping) and (unknown := set(self.diffusion) - set(names)):
            raise ValueError(f"SDE: unknown fields {sorted(unknown)}; the fields are {list(names)}")
        own = self.of(name)
        return None if not callable(own) and own == 0 else SDE(own)

    def check(self, path: Any, coupling: Any) -> None:
        """Raise unless the path has a score.

        Raises:
            TypeError: says what is missing.
        """
        path.check_score(coupling)

    def renew(
        self,
        path: Any,
        pred: Tensor,
        x: Tensor,
        moved: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A step of the flow, completed by a Langevin step at the noise level of its middle.

        Args:
            path: of the field.
            pred: prediction of the model at ``x`` and ``t``.
            x: points ``(..., *event)``.
            moved: where the path alone leads.
            t, s: scalars, either way round.
            mask: bool of real elements.
            generator: of the noise.
        """
        mean, deviation = self._law(path, pred, x, moved, t, s)
        noise = _normal(path.space, x, mean, mask, generator)
        return path.space.exp(x, mean + expand_time(deviation, noise, path.space.tangent_ndim) * noise)

    def log_prob(self, path: Any, pred: Tensor, x: Tensor, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Log-density of the step from ``x`` to ``y``, by the volume of the space, ``(...)``; infinite where it adds no noise."""
        mean, deviation = self._law(path, pred, x, path.follow(pred, x, t, s), t, s)
        return path.space.log_pushed_normal(x, mean, deviation, y)

    def _law(self, path: Any, pred: Tensor, x: Tensor, moved: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean tangent at ``x`` and standard deviation of the step."""
        diffusion, middle = self.of(""), 0.5 * (t + s)
        level = path.noise_level(middle)
        renewed = (s - t).abs() * (diffusion(middle) / (level * level) if callable(diffusion) else diffusion)
        level = torch.where(path.noise_level(s) > 1e-5 * level, level, 0.0)
        drift, deviation = _langevin(path, pred, x, t, level, renewed)
        # What the path moved by, as a tangent: its step may be more than velocity times time.
        return path.space.log(x, moved) + drift, deviation


def SDEKernel(flow: Any, method: Any = 1.0, *, known: Any = None) -> FlowKernel:
    """A :class:`FlowKernel` with noise.

    Args:
        flow: the flow; its ``predict`` is called.
        method: the :class:`SDE`, or its diffusion.
        known: elements that are known.

    Raises:
        TypeError: a field with noise has no score.
    """
    return FlowKernel(flow, method=method if isinstance(method, SDE) else SDE(method), known=known)


@torch.no_grad()
def langevin(
    flow: Any,
    x: State,
    t: Tensor | float,
    *,
    steps: int = 10,
    renewed: float = 0.1,
    mask: Tensor | None = None,
    cond: Any = None,
    generator: torch.Generator | None = None,
) -> State:
    r"""Corrector: Langevin steps that leave the marginal p_t as it is, at a fixed time, for every field.

    Args:
        flow: a flow whose paths have a score.
        x: state at time ``t``.
        t: time, away from the ends, where the noise has no level to renew.
        steps: number of steps.
        renewed: the :math:`\epsilon h / \gamma^2` of a step.
        mask, cond: as for the flow.
        generator: of the noise.

    Raises:
        TypeError: a field has no score.
    """
    for path in flow.path.values():
        path.check_score(flow.coupling)
    first = first_tensor(x)
    time = torch.as_tensor(t, dtype=first.dtype, device=first.device)
    share = torch.as_tensor(renewed, dtype=first.dtype, device=first.device)
    for _ in range(steps):
        made = fields(flow.predict(x, time.expand(first.shape[0]), mask=mask, cond=cond))
        view = fields(x)
        for n, v in view.items():
            path, own = flow.path[n], flow.fields[n].spread(mask)
            drift, deviation = _langevin(path, made[n], v, time, path.noise_level(time), share)
            noise = _normal(path.space, v, drift, own, generator)
            change = drift + expand_time(deviation, noise, path.space.tangent_ndim) * noise
            view[n] = where_mask(own, path.space.exp(v, change), v)
        x = like(view, x)
    return x


def _langevin(path: Any, pred: Tensor, x: Tensor, t: Tensor, level: Tensor, renewed: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean :math:`-\gamma q\, \eta` and deviation :math:`\gamma \sqrt{2 q}` of a Langevin step, q = 1 - exp(-renewed)."""
    eta = path.noise_prediction(pred, x, t)
    share = -torch.expm1(-renewed)
    return -expand_time(level * share, eta, path.space.tangent_ndim) * eta, level * (2 * share).sqrt()


def _normal(space: Any, x: Tensor, like_: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """A standard normal tangent at ``x``, without what the space does not have."""
    normal = torch.randn(like_.shape, generator=generator, dtype=like_.dtype, device=like_.device)
    return space.center(normal, mask) if space.is_centered else space.to_tangent(x, normal)


def score(flow: Any, x: State, t: Tensor, *, mask: Tensor | None = None, cond: Any = None) -> State:
    r""":math:`\nabla \log p_t(x)` by the flow's network, tangents at ``x`` in its structure.

    Args:
        flow: the flow.
        x: state ``(B, ..., *event)`` per field.
        t: scalar time; the score of data that fill no volume is infinite at t = 1, so the noise level is kept above 1e-6.
        mask, cond: as for the flow.

    Raises:
        TypeError: a field has no score.
    """
    for path in flow.path.values():
        path.check_score(flow.coupling)
    first = first_tensor(x)
    made = fields(flow.predict(x, t.expand(first.shape[0]).to(first.dtype), mask=mask, cond=cond))
    return like({n: flow.path[n].score(made[n], v, t) for n, v in fields(x).items()}, x)
