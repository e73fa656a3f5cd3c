"""Samplers of a reward by balance: any two kernels, one that makes objects and one that leads back."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.field import per_element
from manifoldflow.gflownet.losses import Loss, Scores, trajectory_balance
from manifoldflow.sampling.base import Kernel, Memoryless, Trajectory
from manifoldflow.sampling.simulate import simulate
from manifoldflow.state import Move, State, bare, fields, first_tensor, like, map_state, where_mask


class Balance(nn.Module):
    r"""Trains a kernel so that the states it ends in have the law :math:`R(x) / Z`, for a reward R > 0.

    Trajectories are drawn without gradients, then scored by both kernels: a loss of balance makes the probability of a trajectory
    the reward of its end times that of being led back (Bengio et al. 2021; Malkin et al. 2022; Lahlou et al. 2023 for
    continuous states). :func:`manifoldflow.training.fit` trains it: ``fit(balance, [{"size": 256}], config, out=...)``.

    Args:
        forward, backward: kernels with log-probabilities; those with parameters are modules.
        log_reward: ends -> ``(B,)``.
        start: number -> states at the first time.
        log_start: their log-probability ``(B,)``; 0, as of a single state, if absent.
        times: the grid.
        loss: of :class:`Scores`.
        z_rate: how many times faster than the rest log Z learns.
        partition: network of the condition, ``(B, ...) -> (B,)`` or ``(B, 1)``, for log Z of every condition; a number if absent.
    """

    builder: str | None = None
    config: dict[str, Any] | None = None

    def __init__(
        self,
        forward: Kernel,
        backward: Kernel,
        log_reward: Callable[[State], Tensor],
        start: Callable[[int], State],
        times: Tensor,
        *,
        log_start: Callable[[State], Tensor] | None = None,
        loss: Loss = trajectory_balance,
        z_rate: float = 10.0,
        partition: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.onward, self.back = forward, backward
        self.log_reward, self.start, self.log_start = log_reward, start, log_start
        self.register_buffer("times", torch.as_tensor(times), persistent=False)
        self.loss, self.z_rate = loss, z_rate
        self.log_z = nn.Parameter(torch.zeros(()))
        self.partition = partition
        if partition is not None:
            self.log_z.requires_grad_(False)
        if not math.isfinite(z_rate) or z_rate <= 0:
            raise ValueError(f"z_rate must be positive, got {z_rate}")

    def draw(self, size: int = 64, *, generator: torch.Generator | None = None) -> Trajectory:
        """Trajectories of the forward kernel, without gradients.

        Args:
            size: number of them.
            generator: of every random draw.
        """
        with torch.no_grad():
            return self._run(self.onward, size, generator)

    def _run(self, kernel: Any, size: int, generator: torch.Generator | None) -> Trajectory:
        times: Any = self.times
        made = simulate(kernel, self.start(size), times, generator=generator, trajectory=True)
        return Trajectory(made, times)

    def scores(self, trajectory: Trajectory) -> Scores:
        """Both kernels' log-probabilities of a trajectory's steps, and its reward."""
        end, begin = trajectory.end, trajectory.at(0)
        forward = step_scores(self.onward, trajectory)
        backward = step_scores(self.back, trajectory.reversed()).flip(0)
        start = torch.zeros_like(forward[0]) if self.log_start is None else self.log_start(begin)
        moved = torch.ones_like(forward, dtype=torch.bool)
        reward = check_reward(self.log_reward(end), forward[0])
        return Scores(forward, backward, reward, start, self.log_z, None, moved)

    def loss_of(self, drawn: Trajectory) -> dict[str, Tensor]:
        """The loss of trajectories, however they were drawn."""
        return {"balance": self.loss(self.scores(drawn))}

    def log_z_of(self, cond: Any, size: int) -> Tensor:
        """log Z of every condition, ``(B,)``."""
        if self.partition is None:
            return self.log_z.expand(size)
        return self.partition(bare(cond)).reshape(-1).expand(size)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """log Z learns faster than the kernels, which must follow it."""
        quick = [p for n, p in self.named_parameters() if n.split(".")[0] in ("log_z", "partition") and p.requires_grad]
        known = {id(p) for p in quick}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        return [{"params": rest}, {"params": quick, "lr_scale": self.z_rate, "weight_decay": 0.0}]

    @torch.no_grad()
    def sample(self, size: int, *, generator: torch.Generator | None = None) -> State:
        """Ends of trajectories."""
        return self.draw(size, generator=generator).end

    @torch.no_grad()
    def log_z_estimate(self, size: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        r"""Importance estimate of log Z from trajectories, unbiased in Z, and the effective share of the sample
        :math:`(\sum w)^2 / (n \sum w^2)`."""
        scores = self.scores(self.draw(size, generator=generator))
        weight = -(scores.log_start + scores.log_forward.sum(0) - scores.log_reward - scores.log_backward.sum(0))
        total = weight.logsumexp(0)
        return total - math.log(size), (2 * total - (2 * weight).logsumexp(0)).exp() / size


def step_scores(kernel: Any, trajectory: Any, cond: Any = None) -> Tensor:
    """Log-probability of every step, ``(T, B)``, in one pass where the kernel can."""
    given = {} if cond is None else {"cond": cond}
    if hasattr(kernel, "log_probs_of"):
        return kernel.log_probs_of(trajectory, **given)
    times = trajectory.times
    pairs = range(len(times) - 1)
    return torch.stack(
        [kernel.log_prob(trajectory.at(i), trajectory.at(i + 1), times[i], times[i + 1], **given) for i in pairs]
    )


def check_reward(value: Tensor, like_: Tensor) -> Tensor:
    """A reward as a tensor of one number a sample, in the precision of the log-probabilities.

    Raises:
        ValueError: another shape, or NaN; says of which sample (looked at on the host only).
    """
    if value.shape != like_.shape:
        raise ValueError(f"log_reward must return one number a sample, {tuple(like_.shape)}, got {tuple(value.shape)}")
    if value.device.type == "cpu" and bool(value.isnan().any()):
        raise ValueError(f"log_reward is NaN for sample {int(value.isnan().nonzero()[0])} of the batch")
    return value.to(like_.dtype)


class PinnedBridge(Memoryless):
    r"""Leads a diffusion back to the point in which it began: Brownian motion given both ends.

    From x at time t back to s < t on flat space: normal with mean :math:`x_0 + \frac{s}{t} (x - x_0)` and variance
    :math:`\sigma^2 \frac{s (t - s)}{t}`; the last step, to s = 0, is certain. The backward kernel of path-integral samplers
    (Zhang & Chen 2022) whose forward kernel is a :class:`manifoldflow.RandomWalk` from x_0.

    Args:
        spaces: flat manifold of the state, or a dict of them.
        origin: x_0, broadcast.
        scale: :math:`\sigma` of the forward walk.

    Raises:
        ValueError: a manifold that is not flat.
    """

    def __init__(self, spaces: Any, origin: State, scale: float) -> None:
        if not all(s.is_linear for s in fields(spaces).values()):
            raise ValueError("PinnedBridge is for flat space; elsewhere start uniformly and walk back without drift")
        self.spaces, self.origin, self.scale = spaces, origin, scale

    def _law(self, x: State, t: Tensor, s: Tensor) -> tuple[State, Tensor]:
        mean = map_state(lambda a, o: o + (s / t) * (a - o), x, like(fields(self.origin), x))
        return mean, self.scale * (s * (t - s) / t).clamp_min(0).sqrt()

    def _move(
        self, x: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any, generator: torch.Generator | None
    ) -> Move:
        mean, spread = self._law(x, t, s)

        def noisy(m: Tensor, v: Tensor) -> Tensor:
            noise = torch.randn(m.shape, generator=generator, dtype=m.dtype, device=m.device)
            return where_mask(mask, m + spread * noise, v)

        return Move(map_state(noisy, mean, x))

    def _log_prob(self, x: State, y: State, t: Tensor, s: Tensor, mask: Tensor | None, cond: Any) -> Tensor:
        """Log-density of the step, ``(B,)``; 0 of the certain one to the origin."""
        mean, spread = self._law(x, t, s)
        safe = torch.where(spread > 0, spread, 1.0)
        total: Any = 0.0
        for n, m in fields(mean).items():
            dim = fields(self.spaces)[n].dim
            off = (fields(y)[n] - m).square().sum(-1)
            element = -0.5 * off / safe**2 - dim * (safe.log() + 0.5 * math.log(2 * math.pi))
            total = total + per_element(element, mask, first_tensor(x))
        return torch.where(spread > 0, total, torch.zeros_like(total))


class DriftedWalk(nn.Module):
    r"""A random walk whose drift is a network: the forward kernel of a diffusion sampler.

    Args:
        walk: makes the kernel of a drift ``(x, t) -> tangent``.
        network: ``network(x, t)`` with t ``(B,)``.
    """

    def __init__(self, walk: Callable[[Callable[[State, Tensor], State]], Any], network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.kernel = walk(self._drift)

    def _drift(self, x: State, t: Tensor) -> State:
        first = first_tensor(x)
        return self.network(x, t.expand(first.shape[0]).to(first.dtype))

    def start(self, x: State, **given: Any) -> Any:
        """As the walk."""
        return self.kernel.start(x, **given)

    def forward(self, x: State, carry: Any, t: Tensor, s: Tensor, **given: Any) -> Move:
        """One step."""
        return self.kernel(x, carry, t, s, **given)

    def log_prob(self, x: State, y: State, t: Tensor, s: Tensor, **given: Any) -> Tensor:
        """Of a given step."""
        return self.kernel.log_prob(x, y, t, s, **given)
