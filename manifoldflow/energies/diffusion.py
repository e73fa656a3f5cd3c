r"""Diffusions that end in the law of an energy, trained as GFlowNets: a controlled walk on, its reference back.

Path-integral samplers, denoising-diffusion samplers and diffusion GFlowNets differ in the reference process, in the loss, and in
where training trajectories come from (Zhang & Chen 2022; Vargas et al. 2023; Zhang et al. 2024; Sendera et al. 2024).
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manifoldflow.energies.energy import Energy
from manifoldflow.energies.estimates import effective_share, log_mean, log_mean_error
from manifoldflow.energies.moves import MALA_ACCEPTANCE, Base, hmc, tuned, walkers_at
from manifoldflow.energies.references import Reference
from manifoldflow.energies.replay import Replay
from manifoldflow.energies.walks import ControlledBack, ControlledWalk, Guide, ReferenceBack, pairs
from manifoldflow.gflownet.balance import Balance
from manifoldflow.gflownet.losses import Loss, Scores, gap, trajectory_balance
from manifoldflow.sampling.base import Trajectory
from manifoldflow.sampling.simulate import simulate
from manifoldflow.state import Move, State, first_tensor, like, map_state


class Drawn(NamedTuple):
    """Training trajectories, with everything that the energy said of them.

    Attributes:
        trajectory: its carry is the guide, or None.
        log_reward: of the ends, ``(B,)``.
    """

    trajectory: Trajectory
    log_reward: Tensor

    def share(self, rank: int, world: int) -> "Drawn":
        """Every world-th trajectory, for one of several processes."""
        guide: Guide | None = self.trajectory.carry
        if guide is not None:
            guide = Guide(*(map_state(lambda v: v[:, rank::world], part) for part in guide))
        mine = self.trajectory.share(rank, world)._replace(carry=guide)
        return Drawn(mine, self.log_reward[rank::world])


class Seed(NamedTuple):
    """From which trajectories will be drawn with gradients.

    Attributes:
        size: number of them.
        number: of the training step.
        seed: of the draws.
    """

    size: int
    number: int
    seed: int

    def share(self, rank: int, world: int) -> "Seed":
        """As many as fall to one of several processes, by draws of its own."""
        return Seed(len(range(rank, self.size, world)), self.number, (self.seed + rank * 7919) % 2**31)


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
        anneal_steps, anneal_from: with ``"kl"``, until which step the target is :math:`R^\beta p_1^{1 - \beta}` with the law
            :math:`p_1` of the reference as given, at time 1, and a :math:`\beta` that rises from ``anneal_from`` to 1: the
            divergence drops what it cannot follow yet.
        clip, widest: of :class:`ControlledWalk`.
        z_rate: how many times faster than the rest log Z learns.
        back: network of the way back, as the other but without slopes; without one it is the reference's.
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
        anneal_from: float = 1e-4,
        clip: float = 3.0,
        widest: float = 1.0,
        z_rate: float = 100.0,
        back: nn.Module | None = None,
    ) -> None:
        if not 0 <= replayed < 1 or explore < 0:
            raise ValueError(f"replayed must lie in [0, 1) and explore be at least 0, got {replayed} and {explore}")
        walk = ControlledWalk(reference, network, energy if guided else None, clip=clip, widest=widest)
        by_divergence = isinstance(loss, str)
        if by_divergence and loss != "kl":
            raise ValueError(f"loss must be a function of Scores or 'kl', got {loss!r}")
        way_back = ReferenceBack(reference) if back is None else ControlledBack(reference, back, widest=widest)
        super().__init__(
            walk, way_back, energy, reference.start, times,
            log_start=reference.log_start, loss=trajectory_balance if by_divergence else loss, z_rate=z_rate,  # type: ignore[arg-type]
        )  # fmt: skip
        self.energy, self.reference, self.by_divergence = energy, reference, by_divergence
        self.explore, self.explore_steps = explore, explore_steps
        self.replayed = 0.0 if by_divergence else replayed
        self.search_every, self.search_moves, self.search_size = search_every, search_moves, search_size
        self.log_z_known = False
        self.anneal_steps, self.anneal_from = anneal_steps if by_divergence else 0, anneal_from
        self.replay = Replay(capacity, sharpness)
        self.drawn = 0
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
        number, self.drawn = self.drawn, self.drawn + 1
        if self.by_divergence:
            host = "cpu" if generator is None else generator.device
            return Seed(size, number, int(torch.randint(2**31, (), generator=generator, device=host)))
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
                some = first.isfinite()
                self.log_z.data.copy_(first.masked_fill(~some, -torch.inf).logsumexp(0) - some.sum().log())
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
        """What a continued run needs besides the weights: the buffer, the step of its search, and the counts of draws and of
        energy calls."""
        return {
            "states": dict(self.replay.states),
            "log_reward": self.replay.log_reward,
            "search_step": self.search_step,
            "calls": self.energy.calls,
            "drawn": self.drawn,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Undo :meth:`training_state`."""
        if state["states"]:
            self.replay.add(like(dict(state["states"]), self.reference.spaces), state["log_reward"])
        self.search_step, self.energy.calls = state["search_step"], int(state["calls"])
        self.drawn = int(state.get("drawn", self.drawn))

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
        size, number, seed = drawn
        made = self._walk(size, torch.Generator(self.log_z.device).manual_seed(seed), scored=True)
        reward = self.energy(made.end)
        if number < self.anneal_steps:
            # evenly in its logarithm: energies begin far too large
            beta = self.anneal_from ** (1 - (number + 1) / self.anneal_steps)
            reward = beta * reward + (1 - beta) * self.reference.log_given(made.end)
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
