r"""Diffusions that end in the law of an energy, trained as GFlowNets: a controlled walk on, its reference back.

Path-integral samplers, denoising-diffusion samplers and diffusion GFlowNets differ in the reference process, in the loss, and in
where training trajectories come from (Zhang & Chen 2022; Vargas et al. 2023; Zhang et al. 2024; Sendera et al. 2024).
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manifoldflow.energies.controls import Control
from manifoldflow.energies.energy import Energy
from manifoldflow.energies.estimates import effective_share, log_mean, log_mean_error
from manifoldflow.energies.moves import MALA_ACCEPTANCE, Base, hmc, tuned, walkers_at
from manifoldflow.energies.references import Reference, Step, log_step
from manifoldflow.energies.replay import Replay
from manifoldflow.field import per_element
from manifoldflow.gflownet.balance import Balance
from manifoldflow.gflownet.losses import Loss, Scores, gap, trajectory_balance
from manifoldflow.sampling.base import Trajectory
from manifoldflow.sampling.simulate import simulate
from manifoldflow.state import Move, State, expand_mask, fields, first_tensor, like, map_state


class Guide(NamedTuple):
    """The target at states of a trajectory: log-densities ``(T, B)`` and slopes."""

    value: Tensor
    slope: State


class ControlledWalk(nn.Module):
    r"""A reference process with a drift and a width that a network gives: the forward kernel.

    With the reference's mean m and deviation :math:`\delta` a step is
    :math:`y = \exp_x(m + \delta \sqrt{h / (1 - t)}\, a + \delta\, g\, \mathrm{clip}(\delta \nabla \log R) + \delta e^{w} \xi)`,
    with the drift a, the width w and the gate g of the network.

    Args:
        reference: the process.
        network: ``(x, t, slope) -> Control``.
        energy: whose slope guides; None to learn without it.
        clip: bound on what the slope moves, in deviations.
        widest: bound on the log of the factor on the noise; 0 keeps the reference's.
    """

    def __init__(
        self,
        reference: Reference,
        network: nn.Module,
        energy: Energy | None = None,
        *,
        clip: float = 3.0,
        widest: float = 1.0,
    ) -> None:
        super().__init__()
        self.reference, self.network, self.energy = reference, network, energy
        self.clip, self.widest = clip, widest

    def start(self, x: State, *, mask: Tensor | None = None, cond: Any = None) -> tuple[Guide, ...]:
        """No guide yet."""
        return ()

    def control(self, x: State, t: Tensor, guide: Guide | None) -> Control:
        """Of states ``(n, ...)`` at times ``(n,)``."""
        return self.network(x, t, None if guide is None else guide.slope)

    def law(self, x: State, t: Tensor, s: Tensor, control: Control, guide: Guide | None) -> dict[str, Step]:
        """Mean tangent and deviation of the steps of all fields."""
        made: dict[str, Step] = {}
        urgency = ((s - t) / (1 - t).clamp_min(1e-9)).clamp(0, 1).sqrt()
        for n, v in fields(x).items():
            space = fields(self.reference.spaces)[n]
            mean, deviation = self.reference.forward(n, v, t, s)
            drift = control.drift[n]
            u = expand_mask(deviation * urgency, drift) * drift
            if guide is not None:
                pull = expand_mask(deviation, drift) * fields(guide.slope)[n]
                u = u + expand_mask(deviation * control.gate, drift) * clipped(space, v, pull, self.clip)
            width = (self.widest * torch.tanh(control.width[n])).exp()
            made[n] = (u if mean is None else u + mean, expand_mask(deviation, width) * width)
        return made

    def forward(
        self,
        x: State,
        carry: tuple[Guide, ...],
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
        wider: float = 0.0,
        scored: bool = False,
    ) -> Move:
        """One step, with noise that is wider by a share for exploration; the carry gathers the guides, so that scoring asks the
        energy nothing twice."""
        count = len(first_tensor(x))
        dtype = first_tensor(x).dtype
        t, s = t.to(dtype).expand(count), s.to(dtype).expand(count)
        guide = None if self.energy is None else Guide(*self.energy.value_and_gradient(x))
        law, out = self.law(x, t, s, self.control(x, t, guide), guide), {}
        for n, v in fields(x).items():
            space, (mean, deviation) = fields(self.reference.spaces)[n], law[n]
            noise = space.random_tangent(v, generator=generator)
            scale = deviation if deviation.ndim == noise.ndim else expand_mask(deviation, noise)
            u = (1 + wider) * scale * noise
            out[n] = space.exp(v, u if mean is None else mean + u)
        y = like(out, x)
        gained = log_steps(self.reference.spaces, x, law, y) if scored else None
        return Move(y, carry if guide is None else (*carry, guide), gained)

    def log_prob(self, x: State, y: State, t: Tensor, s: Tensor, **given: Any) -> Tensor:
        """Log-density of a given step, ``(B,)``."""
        count = len(first_tensor(x))
        t, s = t.expand(count), s.expand(count)
        guide = None if self.energy is None else Guide(*self.energy.value_and_gradient(x))
        return log_steps(self.reference.spaces, x, self.law(x, t, s, self.control(x, t, guide), guide), y)

    def log_probs_of(self, trajectory: Trajectory) -> Tensor:
        """Of all steps in one pass, ``(T, B)``; the carry of the trajectory may be the :class:`Guide`."""
        return self.scored(trajectory)[0]

    def scored(self, trajectory: Trajectory) -> tuple[Tensor, Tensor, Guide | None]:
        """Log-densities of all steps, what the network adds to the log-flow where they begin, both ``(T, B)``, and the guide."""
        before, after, t, s, count = pairs(trajectory)
        guide = trajectory.carry if isinstance(trajectory.carry, Guide) else None
        if self.energy is None:
            guide = None
        elif guide is None:
            guide = Guide(*self.energy.value_and_gradient(before))
            guide = Guide(*(map_state(lambda v: v.unflatten(0, (-1, count)), part) for part in guide))
        flat = None if guide is None else Guide(*(map_state(lambda v: v.flatten(0, 1), part) for part in guide))
        control = self.control(before, t, flat)
        value = log_steps(self.reference.spaces, before, self.law(before, t, s, control, flat), after)
        return value.view(-1, count), control.flow.view(-1, count), guide


class ReferenceBack:
    """The reference led back: the backward kernel, which has nothing to learn.

    Args:
        reference: the process.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def start(self, x: State, *, mask: Tensor | None = None, cond: Any = None) -> None:
        """Nothing is carried."""

    def _law(self, x: State, t: Tensor, s: Tensor) -> dict[str, Step]:
        return {n: self.reference.backward(n, v, t, s) for n, v in fields(x).items()}

    def __call__(
        self,
        x: State,
        carry: Any,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        cond: Any = None,
        generator: torch.Generator | None = None,
    ) -> Move:
        count, dtype = len(first_tensor(x)), first_tensor(x).dtype
        out = {}
        for n, (mean, deviation) in self._law(x, t.to(dtype).expand(count), s.to(dtype).expand(count)).items():
            space, v = fields(self.reference.spaces)[n], fields(x)[n]
            noise = space.random_tangent(v, generator=generator)
            u = expand_mask(deviation, noise) * noise
            out[n] = space.exp(v, u if mean is None else mean + u)
        return Move(like(out, x))

    def log_prob(self, x: State, y: State, t: Tensor, s: Tensor, **given: Any) -> Tensor:
        """Log-density of a given step, ``(B,)``; 0 of the certain one to the origin."""
        count = len(first_tensor(x))
        return log_steps(self.reference.spaces, x, self._law(x, t.expand(count), s.expand(count)), y)

    def log_probs_of(self, trajectory: Trajectory) -> Tensor:
        """Of all steps in one pass, ``(T, B)``."""
        before, after, t, s, count = pairs(trajectory)
        return log_steps(self.reference.spaces, before, self._law(before, t, s), after).view(-1, count)


class Drawn(NamedTuple):
    """Training trajectories, with everything that the energy said of them.

    Attributes:
        trajectory: its carry is the guide, or None.
        log_reward: of the ends, ``(B,)``.
    """

    trajectory: Trajectory
    log_reward: Tensor


class WeightedEnds(NamedTuple):
    """Samples of a sampler with their importance weights.

    Attributes:
        x: states.
        log_weight: ``(B,)``, whose log-mean estimates log Z.
    """

    x: State
    log_weight: Tensor

    @property
    def log_z(self) -> float:
        """The estimate, unbiased in Z."""
        return float(log_mean(self.log_weight.double()))

    @property
    def log_z_error(self) -> float:
        """Its standard error to first order."""
        return float(log_mean_error(self.log_weight.double()))

    @property
    def share(self) -> float:
        """Effective size, as a share."""
        return float(effective_share(self.log_weight.double()))

    @property
    def bound(self) -> float:
        r"""The mean log-weight, a lower bound of log Z on average."""
        return float(self.log_weight.double().mean())


class DiffusionSampler(Balance):
    r"""Samples :math:`R(x) / Z` by a diffusion whose control is learned from values, and perhaps slopes, of :math:`\log R`.

    Trained by :func:`manifoldflow.training.fit` on ``[{"size": 256}]``. Trajectories are drawn without gradients, from the
    sampler itself with wider noise at first, and by turns backward from states that were good before: the replay buffer, which
    chains of local search improve (Sendera et al. 2024). They are scored in one pass.

    Args:
        energy: the target.
        reference: the process that is controlled.
        network: ``(x, t, slope) -> Control``, see :mod:`manifoldflow.energies.controls`.
        times: the grid from 0 to 1.
        loss: of :class:`manifoldflow.gflownet.Scores`, or ``"kl"``: the reverse divergence, with gradients through the
            trajectory.
        guided: the slope of the target steers, too: one energy call a step instead of one a trajectory.
        explore: how much wider the noise of training trajectories is at first; it falls to 0 linearly.
        explore_steps: until which step.
        replayed: share of the training steps that start from the buffer.
        search_every: training steps between local searches; 0 for none.
        search_moves: Langevin moves of a search.
        search_size: chains of a search.
        capacity, sharpness: of the :class:`Replay`.
        anneal_steps: with ``"kl"``, until which step the target is :math:`R^\beta p_1^{1 - \beta}` with the reference's law
            :math:`p_1` at time 1 and a :math:`\beta` that rises from 1e-4 to 1: the divergence drops what it cannot follow yet.
        clip, widest: of :class:`ControlledWalk`.
        z_rate: how many times faster than the rest log Z learns.
    """

    def __init__(
        self,
        energy: Energy,
        reference: Reference,
        network: nn.Module,
        times: Tensor,
        *,
        loss: Loss | Literal["kl"] = trajectory_balance,
        guided: bool = False,
        explore: float = 0.2,
        explore_steps: int = 1000,
        replayed: float = 0.5,
        search_every: int = 0,
        search_moves: int = 20,
        search_size: int = 256,
        capacity: int = 20_000,
        sharpness: float = 0.1,
        anneal_steps: int = 0,
        clip: float = 3.0,
        widest: float = 1.0,
        z_rate: float = 100.0,
    ) -> None:
        if not 0 <= replayed < 1 or explore < 0:
            raise ValueError(f"replayed must lie in [0, 1) and explore be at least 0, got {replayed} and {explore}")
        walk = ControlledWalk(reference, network, energy if guided else None, clip=clip, widest=widest)
        by_divergence = isinstance(loss, str)
        if by_divergence and loss != "kl":
            raise ValueError(f"loss must be a function of Scores or 'kl', got {loss!r}")
        super().__init__(
            walk, ReferenceBack(reference), energy, reference.start, times,
            log_start=reference.log_start, loss=trajectory_balance if by_divergence else loss, z_rate=z_rate,  # type: ignore[arg-type]
        )  # fmt: skip
        self.energy, self.reference, self.by_divergence = energy, reference, by_divergence
        self.explore, self.explore_steps = explore, explore_steps
        self.replayed = 0.0 if by_divergence else replayed
        self.search_every, self.search_moves, self.search_size = search_every, search_moves, search_size
        self.log_z_known = False
        self.anneal_steps = anneal_steps if by_divergence else 0
        self.replay = Replay(capacity, sharpness)
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.search_step = torch.tensor(0.1)

    # ---------------------------------------------------------------- trajectories

    def _walk(
        self, size: int, generator: torch.Generator | None, wider: float = 0.0, scored: bool = False
    ) -> Trajectory:
        """Trajectories of the walk, with their guides, and with the densities of their steps if they are to be ``scored``."""
        times: Any = self.times
        start = self.reference.start(size, generator=generator, like_=times)
        kernel: Any = _Kept(self.onward, wider, scored)
        made = simulate(kernel, start, times, generator=generator, log_prob=True)
        guides = made.carry
        guide = None
        if guides:
            slope = map_state(lambda *v: torch.stack(v), *[g.slope for g in guides])
            guide = Guide(torch.stack([g.value for g in guides]), slope)
        return Trajectory(made.states, times, made.log_prob if scored else None, guide)

    @torch.no_grad()
    def led_back(self, x: State, *, generator: torch.Generator | None = None) -> Trajectory:
        """Trajectories that end in given states, drawn by the reference."""
        times: Any = self.times
        made = simulate(self.back, x, times.flip(0), generator=generator, trajectory=True)
        return Trajectory(map_state(lambda v: v.flip(0), made), times)

    def draw(self, size: int = 256, *, generator: torch.Generator | None = None) -> Any:
        """Training trajectories, without gradients, and their rewards; with ``"kl"`` a seed.

        Args:
            size: number of them.
            generator: of every random draw.
        """
        counter: Any = self.drawn
        number = int(counter)
        counter.fill_(number + 1)
        if self.by_divergence:
            return torch.cat([torch.tensor([size, number]), torch.randint(2**31, (1,), generator=generator)])
        with torch.no_grad():
            if self.search_every and number % self.search_every == self.search_every - 1:
                self.search(generator)
            if len(self.replay) >= size and math.floor((number + 1) * self.replayed) > math.floor(
                number * self.replayed
            ):
                end, reward = self.replay.draw(size, generator=generator)
                return Drawn(self.led_back(end, generator=generator), reward)
            made = self._walk(size, generator, self.explore * max(0.0, 1 - number / max(1, self.explore_steps)))
            reward = self.energy(made.end)
            self.replay.add(made.end, reward)
            drawn = Drawn(made, reward)
            if number == 0 and not self.log_z_known:
                first = -gap(self.scores(drawn))  # type: ignore[arg-type]
                self.log_z.data.fill_(float(log_mean(first[first.isfinite()])))
            return drawn

    @torch.no_grad()
    def seeded(self, x: State, log_z: float | None = None) -> "DiffusionSampler":
        """With states of another sampler in the buffer, such as those of a tempered Monte Carlo run, which training then covers;
        and its log Z to begin with.

        Args:
            x: states, one energy call each.
            log_z: a first guess; None takes it from the first trajectories.
        """
        self.replay.add(x, self.energy(x))
        if log_z is not None:
            self.log_z.data.fill_(log_z)
            self.log_z_known = True
        return self

    def search(self, generator: torch.Generator | None = None) -> None:
        """Langevin chains from states of the buffer, whose ends join it."""
        if not len(self.replay):
            return
        x, _ = self.replay.draw(self.search_size, generator=generator)
        none = Base(lambda *_: x, lambda at: first_tensor(at).new_zeros(len(first_tensor(at))))
        now = walkers_at(self.energy, none, x)
        beta, step = torch.ones_like(now.log_reward), self.search_step.to(now.log_reward)
        for number in range(self.search_moves):
            now, accepted = hmc(self.energy, none, now, beta, step, leapfrogs=1, generator=generator)
            step = tuned(step, accepted.mean(), MALA_ACCEPTANCE)
            if number >= self.search_moves // 2 and (number + 1) % 5 == 0:
                self.replay.add(now.x, now.log_reward)
        self.search_step = step

    def training_state(self) -> dict[str, Any]:
        """What a continued run needs besides the weights: the buffer, the step of its search, and the count of energy calls."""
        return {
            "states": dict(self.replay.states),
            "log_reward": self.replay.log_reward,
            "search_step": self.search_step,
            "calls": self.energy.calls,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Undo :meth:`training_state`."""
        if state["states"]:
            self.replay.add(like(dict(state["states"]), self.reference.spaces), state["log_reward"])
        self.search_step, self.energy.calls = state["search_step"], int(state["calls"])

    # ---------------------------------------------------------------- losses

    def scores(self, drawn: Any) -> Scores:
        """Both kernels' log-probabilities of the steps, rewards, and flows of states, from one pass."""
        trajectory, reward = drawn
        walk: Any = self.onward
        forward, flow, guide = walk.scored(trajectory)
        back: Any = self.back
        backward = back.log_probs_of(trajectory.reversed()).flip(0)
        flows = None
        if guide is not None:
            flows = self._flows(trajectory, flow, guide, reward)
        start = self.reference.log_start(trajectory.at(0))
        return Scores(forward, backward, reward, start, self.log_z, flows, torch.ones_like(forward, dtype=torch.bool))

    def _flows(self, trajectory: Trajectory, flow: Tensor, guide: Guide, reward: Tensor) -> Tensor:
        r""":math:`\log F(x, t) = net + t \log R(x) + (1 - t) \log p_t(x)`, the reward at the end (DGFS, Zhang et al. 2024).

        At the start it is :math:`\log Z + \log p_0(x_0)`, to which the losses of pieces add no start of their own.
        """
        before, _, t, _, count = pairs(trajectory)
        guess = self.reference.log_marginal(before, t).view(-1, count)
        time = t.view(-1, count)
        inner = flow + time * guide.value.clamp_min(-1e6) + (1 - time) * guess
        first = (self.log_z + self.reference.log_start(trajectory.at(0))).unsqueeze(0)
        return torch.cat([first, inner[1:], reward.unsqueeze(0)])

    def loss_of(self, drawn: Any) -> dict[str, Tensor]:
        """The loss of trajectories, however they were drawn; the divergence of a seed."""
        if not self.by_divergence:
            return {"balance": self.loss(self.scores(drawn))}
        size, number, seed = drawn.tolist()
        made = self._walk(size, torch.Generator(self.log_z.device).manual_seed(seed), scored=True)
        reward = self.energy(made.end)
        if number < self.anneal_steps:
            beta = 1e4 ** ((number + 1) / self.anneal_steps - 1)  # evenly in its logarithm: energies begin far too large
            reward = beta * reward + (1 - beta) * self.reference.log_marginal(made.end, torch.ones_like(reward))
        off = self._gap(made, reward)
        return {"divergence": off.mean() + 0.0 * self.log_z}

    def _gap(self, made: Trajectory, reward: Tensor) -> Tensor:
        """Minus the log-weights of trajectories that the walk itself has scored."""
        back: Any = self.back
        assert made.log_prob is not None
        backward = back.log_probs_of(made.reversed()).sum(0)
        return self.reference.log_start(made.at(0)) + made.log_prob.sum(0) - reward - backward

    # ---------------------------------------------------------------- use

    @torch.no_grad()
    def sample(self, size: int, *, generator: torch.Generator | None = None) -> State:
        """States of the sampler itself, not weighted."""
        return self._walk(size, generator).end

    @torch.no_grad()
    def weighted(self, size: int, *, generator: torch.Generator | None = None, chunk: int = 2000) -> WeightedEnds:
        """Samples and their importance weights, those of whole trajectories.

        Args:
            size: number of them.
            generator: of every random draw.
            chunk: how many are made at a time.
        """
        ends, weights = [], []
        for begin in range(0, size, chunk):
            made = self._walk(min(chunk, size - begin), generator, scored=True)
            ends.append(made.end)
            weights.append(-self._gap(made, self.energy(made.end)))
        return WeightedEnds(map_state(lambda *v: torch.cat(v), *ends), torch.cat(weights))

    @torch.no_grad()
    def log_z_estimate(self, size: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Importance estimate of log Z, and the effective share of the sample."""
        made = self.weighted(size, generator=generator)
        return log_mean(made.log_weight), effective_share(made.log_weight)


class _Kept:
    """A walk whose steps report their probability, or none: they are scored in one pass afterwards."""

    def __init__(self, walk: Any, wider: float, scored: bool) -> None:
        self.walk, self.wider, self.scored = walk, wider, scored

    def start(self, x: State, **given: Any) -> Any:
        return self.walk.start(x, **given)

    def __call__(self, x: State, carry: Any, t: Tensor, s: Tensor, **given: Any) -> Move:
        move = self.walk(x, carry, t, s, wider=self.wider, scored=self.scored, **given)
        return move if self.scored else move._replace(log_prob=first_tensor(x).new_zeros(()))


def pairs(trajectory: Trajectory) -> tuple[State, State, Tensor, Tensor, int]:
    """All steps of a trajectory side by side: where they begin and end ``(T B, ...)``, their times ``(T B,)``, and B."""
    before = map_state(lambda v: v[:-1].flatten(0, 1), trajectory.states)
    after = map_state(lambda v: v[1:].flatten(0, 1), trajectory.states)
    first = first_tensor(trajectory.states)
    times = trajectory.times.to(first.dtype)
    count = first.shape[1]
    return before, after, times[:-1].repeat_interleave(count), times[1:].repeat_interleave(count), count


def log_steps(spaces: Any, x: State, law: dict[str, Step], y: State) -> Tensor:
    """Log-density of the steps of all fields together, ``(n,)``."""
    total: Any = 0.0
    for n, v in fields(x).items():
        total = total + per_element(log_step(fields(spaces)[n], v, law[n], fields(y)[n]), None, v)
    return total


def clipped(space: Any, x: Tensor, u: Tensor, most: float) -> Tensor:
    """Tangents no longer than ``most``: on flat space every coordinate, elsewhere the whole."""
    if space.is_linear:
        return u.clamp(-most, most)
    length = space.inner(x, u, u).clamp_min(1e-12).sqrt()
    return expand_mask((most / length).clamp_max(1.0), u) * u


LossOfScores = Callable[[Scores], Tensor]


def bounded_balance(most: float = 50.0, *, learned: bool = True) -> LossOfScores:
    r"""Trajectory balance that grows linearly beyond a bound, :math:`2 b^2 (\sqrt{1 + (g / b)^2} - 1)` of the gap g: rewards of
    :math:`e^{-10^6}` early on must not drown all others.

    Args:
        most: b.
        learned: with the log Z that is learned; otherwise with the median of the batch, as :func:`log_partition_variance` has
            its mean.
    """

    def loss(scores: Scores) -> Tensor:
        off = gap(scores).nan_to_num(posinf=1e6, neginf=-1e6).clamp(-1e6, 1e6)
        off = off + (scores.log_z if learned else -off.detach().median())
        return (2 * most**2 * ((1 + (off / most).square()).sqrt() - 1)).mean()

    return loss
