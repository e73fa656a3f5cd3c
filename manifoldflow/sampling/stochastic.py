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
from typing import Any

import torch
from torch import Tensor

from manifoldflow.coupling import Independent
from manifoldflow.distributions.normal import Normal
from manifoldflow.manifolds.base import expand_time
from manifoldflow.manifolds.euclidean import Centered, Euclidean
from manifoldflow.paths.geodesic import Geodesic
from manifoldflow.paths.interpolant import StochasticInterpolant
from manifoldflow.state import State, expand_mask, fields, first_tensor, like, where_mask

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

    def of(self, name: str) -> Diffusion:
        """The diffusion of a field."""
        return self.diffusion.get(name, 0.0) if isinstance(self.diffusion, Mapping) else self.diffusion

    def advance(
        self,
        name: str,
        path: Any,
        source: Any,
        pred: Tensor,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One step of field ``name`` from time ``t`` to ``s``, either way round.

        Args:
            path, source: of the field.
            pred: prediction of the model at ``x`` and ``t``.
            x: points ``(B, ..., *event)``.
            t, s: scalars.
            mask: bool ``(B, N)`` of real elements; the others stay.
            generator: of the noise.
        """
        moved = path.advance(pred, x, t, s, generator=generator)
        diffusion = self.of(name)
        if not callable(diffusion) and diffusion == 0:
            return moved
        middle = 0.5 * (t + s)
        level = noise_level(path, source, middle)
        renewed = (s - t).abs() * (diffusion(middle) / (level * level) if callable(diffusion) else diffusion)
        level = torch.where(noise_level(path, source, s) > 1e-5 * level, level, 0.0)
        change = renewal(path, source, pred, x, t, level, renewed, mask, generator)
        # What the path moved by, as a tangent: its step may be more than velocity times time.
        return where_mask(mask, path.space.exp(x, path.space.log(x, moved) + change), moved)


class SDEKernel:
    """Moves a state along a flow with noise, for :func:`simulate`. One object per trajectory.

    Args:
        flow: the flow; its ``predict`` is called.
        method: the :class:`SDE`, or its diffusion.
        known_mask: fully known elements, which the model sees at t = 1 and which do not move.

    Raises:
        TypeError: a field with noise has no score.
    """

    def __init__(
        self, flow: Any, method: SDE | Diffusion | Mapping[str, Diffusion] = 1.0, *, known_mask: Tensor | None = None
    ) -> None:
        self.flow = flow
        self.method = method if isinstance(method, SDE) else SDE(method)
        self.known_mask = known_mask
        self.previous: State | None = None
        if isinstance(self.method.diffusion, Mapping) and (unknown := set(self.method.diffusion) - set(flow.path)):
            raise ValueError(f"SDE: unknown fields {sorted(unknown)}; the fields are {list(flow.path)}")
        for name, path in flow.path.items():
            if self.method.of(name) != 0:
                check_score(path, flow.source[name], flow.coupling)

    def __call__(
        self,
        x: State,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> State:
        first = first_tensor(x)
        time = t.expand(first.shape[0]).to(first.dtype)
        if self.known_mask is not None:
            known = self.known_mask.expand(first.shape[: self.known_mask.ndim])
            time = torch.where(known, 1.0, expand_mask(time, known))
        pred = self.flow.predict(x, time, mask=mask, cond=cond, previous=self.previous)
        if self.flow.self_condition > 0:
            self.previous = pred
        made = fields(pred)
        moved = {
            n: self.method.advance(
                n, self.flow.path[n], self.flow.source[n], made[n], v, t, s, mask=mask, generator=generator
            )
            for n, v in fields(x).items()
        }
        return like(moved, x)


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
    for name, path in flow.path.items():
        check_score(path, flow.source[name], flow.coupling)
    first = first_tensor(x)
    time = torch.as_tensor(t, dtype=first.dtype, device=first.device)
    share = torch.as_tensor(renewed, dtype=first.dtype, device=first.device)
    for _ in range(steps):
        made = fields(flow.predict(x, time.expand(first.shape[0]), mask=mask, cond=cond))
        view = fields(x)
        for n, v in view.items():
            path, source = flow.path[n], flow.source[n]
            change = renewal(path, source, made[n], v, time, noise_level(path, source, time), share, mask, generator)
            view[n] = where_mask(mask, path.space.exp(v, change), v)
        x = like(view, x)
    return x


def renewal(
    path: Any,
    source: Any,
    pred: Tensor,
    x: Tensor,
    t: Tensor,
    level: Tensor,
    renewed: Tensor,
    mask: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    r"""The tangent :math:`-\gamma q\, \eta + \gamma \sqrt{2 q}\, \xi`, q = 1 - exp(-renewed), of a Langevin step."""
    eta = noise_prediction(path, source, pred, x, t)
    normal = torch.randn(eta.shape, generator=generator, dtype=eta.dtype, device=eta.device)
    space = path.space
    normal = space.center(normal, mask) if isinstance(space, Centered) else space.to_tangent(x, normal)
    share = -torch.expm1(-renewed)
    return level * ((2 * share).sqrt() * normal - share * eta)


def check_score(path: Any, source: Any, coupling: Any) -> None:
    """Raise unless the score follows from what the network predicts.

    Raises:
        TypeError: says what is missing.
    """
    if isinstance(path, StochasticInterpolant):
        return
    advice = "; use path=StochasticInterpolant(), whose network learns the score"
    if not isinstance(path, Geodesic) or not isinstance(path.space, Euclidean | Centered):
        raise TypeError(f"{type(path).__name__} on {path.space} has no score in closed form" + advice)
    if not isinstance(source, Normal):
        raise TypeError(f"the score follows from the velocity for a Normal source, not for {source}" + advice)
    if not isinstance(coupling, Independent):
        raise TypeError(
            f"the score follows from the velocity if source and data are paired independently, not by {coupling}"
            + advice
        )
    if path.sample_schedule is not None:
        raise TypeError("the score belongs to the training schedule, but this path has a sample_schedule" + advice)


def noise_prediction(path: Any, source: Any, pred: Tensor, x: Tensor, t: Tensor) -> Tensor:
    r""":math:`\eta = -\gamma \nabla \log p_t(x)`, the noise expected in ``x``; a tangent."""
    if isinstance(path, StochasticInterpolant):
        return path.noise_prediction(pred, x, t)
    space, k = path.space, path.schedule.k(t)
    if path.predicts == "endpoint":
        ahead = space.log(x, pred) / expand_time(path.schedule.remaining(t).clamp_min(1e-3), x, space.tangent_ndim)
    else:
        ahead = path.velocity(pred, x, t) / expand_time(path.schedule.dk(t).clamp_min(1e-3), x, space.tangent_ndim)
    return (x - expand_time(k, x, space.tangent_ndim) * ahead) / source.scale


def noise_level(path: Any, source: Any, t: Tensor) -> Tensor:
    r""":math:`\gamma(t)`: the standard deviation of the noise in x_t."""
    if isinstance(path, StochasticInterpolant):
        return path.noise_level(t)
    return source.scale * path.schedule.remaining(t)


def score(flow: Any, x: State, t: Tensor, *, mask: Tensor | None = None, cond: Any = None) -> State:
    r""":math:`\nabla \log p_t(x)` by the flow's network, tangents at ``x`` in its structure.

    Args:
        flow: the flow.
        x: state ``(B, ..., *event)`` per field.
        t: scalar time; the score of data that fill no volume is infinite at t = 1, so the noise level is kept above 1e-6.
        mask, cond: as for the flow.

    Raises:
        TypeError: a field has no score; see :func:`check_score`.
    """
    for name, path in flow.path.items():
        check_score(path, flow.source[name], flow.coupling)
    first = first_tensor(x)
    made = fields(flow.predict(x, t.expand(first.shape[0]).to(first.dtype), mask=mask, cond=cond))
    out = {}
    for n, v in fields(x).items():
        path, source = flow.path[n], flow.source[n]
        level = noise_level(path, source, t).clamp_min(1e-6)
        out[n] = -noise_prediction(path, source, made[n], v, t) / level
    return like(out, x)
