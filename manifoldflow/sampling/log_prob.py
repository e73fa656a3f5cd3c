"""The verbs of a flow that say how probable a state is: log_prob, elbo and log_prob_bound."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from manifoldflow.sampling.adaptive import Adaptive
from manifoldflow.sampling.bounds import mixed_bound, token_bound
from manifoldflow.sampling.density import backward_grid, exact_log_prob
from manifoldflow.sampling.likelihood import (
    CHUNK,
    Divergence,
)
from manifoldflow.sampling.steps import Step
from manifoldflow.state import State, fields, first_tensor, like


class Likelihoods:
    """The verbs of a flow that say how probable a state is."""

    path: dict[str, Any]
    fields: dict[str, Any]
    clocks: Any
    predict: Callable[..., State]
    time_dtype: Callable[[State], torch.dtype]

    def velocity(
        self,
        x: State,
        t: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        names: Sequence[str] | None = None,
    ) -> State:
        """The tangent field that sampling follows, at a scalar time ``t`` (or times ``(B,)``); of the fields ``names`` only."""
        first = first_tensor(x)
        time = t.expand(first.shape[0]).to(self.time_dtype(x))
        shown = {n: time for n in fields(x)} if self.clocks is not None else time
        pred, view = fields(self.predict(x, shown, mask=mask, cond=cond)), fields(x)
        made = {n: self.path[n].velocity(pred[n], view[n], t) for n in (names or view)}
        return like(made, x)

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
        chunk: int = CHUNK,
        rows: int | None = None,
    ) -> Any:
        r"""Log-density of data points in nats, with respect to the Riemannian volume of the spaces (as the sources' own).

        .. math:: \log p_1(x) = \log p_0(x_0) - \int_0^1 \mathrm{div}\, v(x_t, t)\, dt

        along the trajectory that ends at ``x``, solved backward (Chen et al. 2018; Mathieu & Nickel 2020). A set
        ``(B, N, ...)`` and a state of several fields have one density each. On :class:`UnitQuaternion` it is the density of
        rotations, the same number as on :class:`SO3`, if the network takes q and -q for the same. Tokens have a bound,
        :meth:`elbo`; states of both have :meth:`log_prob_bound`. On the Fisher-Rao simplex a field may let trajectories across
        the walls; points whose trajectory comes from outside have density 0, so the density integrates to less than 1 by
        the mass of those (a warning says how many).

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
            cond: condition for the model; its tensors belong to the samples, but for those in :class:`manifoldflow.Shared`.
            generator: of the random tangents.
            differentiable: keep the graph, through ``x`` and the parameters; by default if ``x`` requires a gradient. Steps
                are recomputed in the backward pass, so memory grows by one state per step.
            return_error: also return an estimate of the solver's error, the difference to half as many steps.
            chunk: bound on the elements (samples x set size x directions) that go through the network at once, and so on
                memory; results do not depend on it.

            rows: the name that ``chunk`` had before version 0.2.

        Returns:
            Log-densities ``(B,)``, or ``(log-densities, errors)``.

        Raises:
            ValueError: a point lies off its manifold, or the grid is not decreasing.
        """
        if rows is not None:
            warnings.warn("log_prob(rows=) is now log_prob(chunk=)", FutureWarning, stacklevel=2)
        return exact_log_prob(
            self,
            x,
            grid=backward_grid(self, steps, times, t_max),
            method=method,
            kind=divergence,
            probes=probes,
            trace_every=trace_every,
            mask=mask,
            cond=cond,
            generator=generator,
            with_graph=first_tensor(x).requires_grad if differentiable is None else differentiable,
            return_error=return_error,
            chunk=chunk if rows is None else rows,
        )

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
        over the tokens. The estimate is unbiased; its times are stratified, and denser near t = 1, where the integrand is
        large and rare.

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
        exact = [n for n, p in self.path.items() if p.is_flow or not p.jumps]
        if exact:
            one = "log_prob" if len(exact) == len(self.path) else "log_prob_bound, with the tokens"
            raise TypeError(
                f"elbo is for tokens; field {exact[0]!r} lives on {self.path[exact[0]].space}, which has {one}"
            )
        self._check_tokens(x)
        value, error = token_bound(self, x, samples=samples, mask=mask, cond=cond, generator=generator)
        return (value, error) if return_error else value

    @torch.no_grad()
    def log_prob_bound(
        self,
        x: State,
        *,
        samples: int = 16,
        steps: int = 50,
        divergence: Divergence = "exact",
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
        return_error: bool = False,
    ) -> Any:
        r"""A lower bound on the log-density of any state in nats: tokens bounded, points exact, added.

        Trajectories of the tokens are drawn from their conditional process, the points are carried back along the flow beside
        them, and the log-probabilities of both are added up (:func:`manifoldflow.sampling.bounds.mixed_bound`). A state of points
        alone gives :meth:`log_prob`, one of tokens alone :meth:`elbo`.

        Args:
            x: state ``(B, ...)`` per field.
            samples: trajectories of the tokens.
            steps: of the sampler whose law is bounded, and of the points' solver.
            divergence: as for :meth:`log_prob`.
            mask: bool ``(B, N)`` of real elements.
            cond: condition for the model.
            generator: of every random draw.
            return_error: also return the standard error of the mean over ``samples``.

        Returns:
            ``(B,)`` nats, or ``(value, error)``.
        """
        given: dict[str, Any] = {"mask": mask, "cond": cond, "generator": generator, "return_error": return_error}
        if all(p.is_flow for p in self.path.values()):
            return self.log_prob(x, steps=steps, divergence=divergence, **given)
        if not any(p.is_flow for p in self.path.values()):
            return self.elbo(x, samples=samples * steps, **given)
        self._check_tokens(x)
        value, error = mixed_bound(
            self, x, samples=samples, steps=steps, kind=divergence, mask=mask, cond=cond, generator=generator
        )
        return (value, error) if return_error else value

    def _check_tokens(self, x: State) -> None:
        for name, path in self.path.items():
            if path.jumps:
                path.space.check(fields(x)[name], with_mask=False)
