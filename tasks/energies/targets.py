"""The targets by name: what is sampled, what is known of it exactly, and how it is looked at."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.energies import Base
from manifoldflow.state import State, fields, first_tensor, like


@dataclass(frozen=True)
class Target:
    r"""An unnormalised law :math:`R = e^{-E}`, and what is known of it.

    Args:
        name: in files and messages.
        space: manifold of the state, or a dict of them.
        log_density: states ``(B, ...)`` -> :math:`\log R`, ``(B,)``, differentiable.
        scale: a length that reaches over the target: standard deviation of Monte Carlo's base, and of a diffusion's noise in
            all, on flat spaces; on compact ones, of the noise.
        log_z: exact logarithm of the normaliser, by the volume of the space; None if it is not known.
        draw: exact samples ``(count, generator) -> state``; None if there is no way.
        modes: states -> number of the mode they belong to, int64 ``(B,)``, -1 for none.
        mode_mass: share of every mode; the number of modes is its length.
        view: states -> two numbers to be drawn, ``(B, 2)``.
        axes: what they are called.
        limits: of the picture, ``(low, high)`` for both axes.
        bins: states -> number of their bin, int64 ``(B,)``.
        bin_mass: function without arguments -> exact share of every bin.
        settings: of the samplers, by method, where they differ from the defaults.
    """

    name: str
    space: Any
    log_density: Callable[[Any], Tensor]
    scale: float = 1.0
    log_z: float | None = None
    draw: Callable[[int, torch.Generator | None], State] | None = None
    modes: Callable[[Any], Tensor] | None = None
    mode_mass: tuple[float, ...] = ()
    view: Callable[[Any], Tensor] | None = None
    axes: tuple[str, str] = ("x1", "x2")
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None
    bins: Callable[[Any], Tensor] | None = None
    bin_mass: Callable[[], Tensor] | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def base(self) -> Base:
        """Where tempering begins: a normal of the target's scale on flat fields, uniform on compact ones."""
        return base_of(self.space, self.scale)

    def modes_found(self, x: State, least: float = 0.25) -> int:
        """Modes that hold at least this share of the mass that they should."""
        if self.modes is None:
            return 0
        seen = self.modes(x)
        mass = torch.tensor(self.mode_mass, dtype=torch.float64)
        share = torch.bincount(seen[seen >= 0], minlength=len(mass)).double() / max(len(seen), 1)
        return int((share >= least * mass).sum())

    def total_variation(self, x: State, log_weight: Tensor | None = None) -> float:
        """Between the bins of samples and the exact ones."""
        assert self.bins is not None and self.bin_mass is not None
        exact = self.bin_mass()
        return binned_distance(self.bins(x), exact, log_weight)

    def floor(self, count: int, seed: int = 0, repeats: int = 8) -> float:
        """The total variation of so many exact samples, by drawing their counts."""
        assert self.bin_mass is not None
        exact, generator = self.bin_mass(), torch.Generator().manual_seed(seed)
        draws = [torch.multinomial(exact, count, replacement=True, generator=generator) for _ in range(repeats)]
        return sum(binned_distance(d, exact) for d in draws) / repeats


def binned_distance(bins: Tensor, exact: Tensor, log_weight: Tensor | None = None) -> float:
    r""":math:`\frac12 \sum_b |\hat p_b - p_b|`."""
    weight = None if log_weight is None else log_weight.double().softmax(0)
    seen = torch.bincount(bins, weights=weight, minlength=len(exact)).double()
    return float(0.5 * (seen / seen.sum() - exact).abs().sum())


def base_of(spaces: Any, scale: float) -> Base:
    """A normal of this scale on flat fields, the uniform law on compact ones."""
    laws = {n: (mf.Normal(scale) if s.is_linear else mf.Uniform()).bind(s) for n, s in fields(spaces).items()}

    def sample(count: int, generator: torch.Generator | None = None) -> State:
        return like({n: law.sample((count,), generator=generator) for n, law in laws.items()}, spaces)

    def log_prob(x: State) -> Tensor:
        parts = [laws[n].log_prob(v).reshape(len(v), -1).sum(-1) for n, v in fields(x).items()]
        return torch.stack(parts).sum(0)

    return Base(sample, log_prob)


TARGETS: dict[str, Callable[[], Target]] = {}
"""Functions that make the targets by name: a target is made when it is asked for."""


GENERATORS = {
    "alanine": "manifoldflow.tasks.energies.alanine_study:main",
    "ice": "manifoldflow.tasks.energies.ice_study:main",
}
"""Studies of Boltzmann generators by target: ``main(["--out", folder, "--seed", number])``, imported when asked for."""


def target(make: Callable[[], Target]) -> Callable[[], Target]:
    """Register a target under the name of the function that makes it."""
    TARGETS[make.__name__] = make
    return make


def load_target(name: str, space: str | None = None, scale: float | None = None) -> Target:
    """A target by name, or a function of yours: ``module:function`` or ``file.py:function``, which returns energies.

    Args:
        name: of the target.
        space: where the states of your function live: ``euclidean:2``, ``torus:2`` (radians), ``sphere:2``, ``so3``.
        scale: replaces the target's.

    Raises:
        ValueError: no such target, or a function without its space.
        ImportError: the function cannot be imported.
    """
    from dataclasses import replace

    if ":" in name:
        made = _own(name, space)
    elif name in TARGETS:
        if space is not None:
            raise ValueError(f"--space is for functions of yours; {name} has its own space")
        made = TARGETS[name]()
    else:
        known = ", ".join(TARGETS)
        raise ValueError(
            f"no target {name!r}; there are {known}, and functions of yours as module:function or file.py:function"
        )
    if scale is not None and not scale > 0:
        raise ValueError(f"--scale must be positive, got {scale}")
    return made if scale is None else replace(made, scale=scale)


def space_of(text: str) -> Any:
    """A manifold from its name: ``euclidean:2``, ``torus:2``, ``sphere:2``, ``so3``.

    Raises:
        ValueError: it is none of them.
    """
    kind, _, number = text.partition(":")
    if kind == "so3" and not number:
        return mf.SO3()
    made = {"euclidean": mf.Euclidean, "torus": lambda d: mf.Torus(d, period=2 * math.pi), "sphere": mf.Sphere}
    if kind not in made or not number.isdigit() or int(number) < 1:
        raise ValueError(f"--space must be euclidean:D, torus:D, sphere:D or so3, got {text!r}")
    return made[kind](int(number))


def _own(name: str, space: str | None) -> Target:
    """A target of a function of the user's: energies, so minus the log-density."""
    import importlib.util
    import sys
    from pathlib import Path

    place, _, function = name.rpartition(":")
    if space is None:
        raise ValueError(f"--target {name} needs --space: euclidean:D, torus:D, sphere:D or so3")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise FileNotFoundError(f"--target {name}: there is no file {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ImportError(f"--target {name}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    else:
        sys.path.insert(0, "")
        try:
            module = import_module(place)
        except ImportError as error:
            raise ImportError(f"--target {name}: {error}") from error
        finally:
            sys.path.remove("")
    energy = getattr(module, function, None)
    if not callable(energy):
        raise ImportError(f"--target {name}: {place} has no function {function!r}")
    where = space_of(space)

    def log_density(x: State) -> Tensor:
        made = energy(x)
        return -made if isinstance(made, Tensor) else made

    compact = not where.is_linear
    return Target(function, where, log_density, scale=1.5 if compact else 1.0, view=first_two)


def first_two(x: State) -> Tensor:
    """The first two numbers of the first field; one number twice if there is only one."""
    flat = first_tensor(x).flatten(1)
    return flat[:, :2] if flat.shape[1] > 1 else flat.expand(-1, 2)


# ---------------------------------------------------------------- flat space


@target
def mixture9() -> Target:
    """Nine normals of standard deviation 0.5477 (variance 0.3) on the grid {-5, 0, 5} squared, normalised: log Z = 0."""
    centres = torch.cartesian_prod(*[torch.tensor([-5.0, 0.0, 5.0])] * 2)
    variance = 0.3

    def log_density(x: Tensor) -> Tensor:
        squared = (x.unsqueeze(1) - centres.to(x)).square().sum(-1)
        return (-0.5 * squared / variance).logsumexp(1) - math.log(9 * 2 * math.pi * variance)

    def draw(count: int, generator: torch.Generator | None = None) -> Tensor:
        which = torch.randint(9, (count,), generator=generator)
        return centres[which] + variance**0.5 * torch.randn(count, 2, generator=generator)

    def modes(x: Tensor) -> Tensor:
        distance = torch.cdist(x, centres.to(x))
        near, which = distance.min(1)
        return torch.where(near < 4 * variance**0.5, which, -1)

    return Target(
        "mixture9", mf.Euclidean(2), log_density, scale=5.0, log_z=0.0, draw=draw, modes=modes, mode_mass=(1 / 9,) * 9,
        view=first_two, limits=((-7.5, 7.5), (-7.5, 7.5)),
    )  # fmt: skip


@target
def funnel() -> Target:
    r"""Neal's funnel in 10 dimensions: :math:`x_0 \sim N(0, 3^2)`, the others :math:`N(0, e^{x_0})`: log Z = 0."""

    def log_density(x: Tensor) -> Tensor:
        first, rest = x[:, 0], x[:, 1:]
        own = -0.5 * (first / 3).square() - math.log(3) - 0.5 * math.log(2 * math.pi)
        others = -0.5 * rest.square().sum(-1) * (-first).exp() - 4.5 * first - 4.5 * math.log(2 * math.pi)
        return own + others

    def draw(count: int, generator: torch.Generator | None = None) -> Tensor:
        z = torch.randn(count, 10, generator=generator)
        first = 3 * z[:, :1]
        return torch.cat([first, z[:, 1:] * (0.5 * first).exp()], 1)

    return Target(
        "funnel", mf.Euclidean(10), log_density, scale=3.0, log_z=0.0, draw=draw, view=first_two, axes=("x0", "x1"),
        limits=((-10, 10), (-12, 12)), settings={"adaptive": {"steps": 4, "widest": 4.0, "depth": 2}},
    )  # fmt: skip


WELL_NORMALISER = 11784.50927
r""":math:`\int e^{-x^4 + 6 x^2 + x / 2} dx` (Noé et al. 2019); the other coordinate of a pair is a standard normal."""


@target
def manywell() -> Target:
    r"""Sixteen double wells, 32 dimensions: :math:`\log R = \sum_i -x_i^4 + 6 x_i^2 + \frac12 x_i - \frac12 y_i^2`."""
    grid = torch.linspace(-4, 4, 100_001, dtype=torch.float64)
    mass = (-(grid**4) + 6 * grid**2 + 0.5 * grid).exp()
    rises = mass.cumsum(0) / mass.sum()
    right = float(1 - rises[len(grid) // 2])

    def log_density(x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        return (-(a**4) + 6 * a**2 + 0.5 * a - 0.5 * b**2).sum(-1)

    def draw(count: int, generator: torch.Generator | None = None) -> Tensor:
        place = torch.rand(count, 16, generator=generator, dtype=torch.float64)
        a = grid[torch.searchsorted(rises, place).clamp_max(len(grid) - 1)].float()
        return torch.stack([a, torch.randn(count, 16, generator=generator)], -1).flatten(1)

    def modes(x: Tensor) -> Tensor:  # of the first two wells together: all 65,536 cannot be counted
        return 2 * (x[:, 0] > 0).long() + (x[:, 2] > 0).long()

    log_z = 16 * (math.log(WELL_NORMALISER) + 0.5 * math.log(2 * math.pi))
    four = ((1 - right) ** 2, (1 - right) * right, right * (1 - right), right * right)
    return Target(
        "manywell", mf.Euclidean(32), log_density, scale=1.5, log_z=log_z, draw=draw, modes=modes, mode_mass=four,
        view=lambda x: x[:, [0, 2]], axes=("x0", "x2"), limits=((-3, 3), (-3, 3)),
        settings={m: {"network": "coordinates", "width": 32, "depth": 2, "sigma": 2.0, "steps": 32, "guided": False}
                  for m in ("pis", "dds", "tb", "vargrad")}
        | {"adaptive": {"network": "coordinates", "width": 32, "depth": 2, "steps": 8, "learned_reference": False,
                        "anneal_steps": 500, "anneal_from": 0.01}},
    )  # fmt: skip


# ---------------------------------------------------------------- compact spaces


def torsion_energy(phi: Tensor, psi: Tensor) -> Tensor:
    """A closed form like a map of backbone torsions, in units of kT: three basins, a barrier at phi = 0, and a coupling."""
    return (
        1.6 * (1 + (phi - 1.0).cos())
        + 1.0 * (1 - (3 * phi).cos()) / 2
        + 1.2 * (1 + (2 * psi - 0.8).cos())
        + 1.0 * (1 - (psi - 2.2).cos())
        + 1.1 * (1 - (phi + psi - 0.4).cos())
    )


@target
def torsion() -> Target:
    """Two torsion angles with a trigonometric energy; log Z and bins by quadrature (exact to all digits: it is periodic)."""
    side, inner = 24, 40

    @lru_cache
    def table() -> tuple[Tensor, float]:
        angle = (torch.arange(side * inner, dtype=torch.float64) + 0.5) * (2 * math.pi / (side * inner))
        mass = (-torsion_energy(angle[:, None], angle[None])).exp()
        bins = mass.view(side, inner, side, inner).sum((1, 3)).flatten()
        return bins / bins.sum(), math.log(float(mass.mean()) * (2 * math.pi) ** 2)

    def bins(x: Tensor) -> Tensor:
        place = (x.remainder(2 * math.pi) * (side / (2 * math.pi))).long().clamp_max(side - 1)
        return place[:, 0] * side + place[:, 1]

    def view(x: Tensor) -> Tensor:
        return (x + math.pi).remainder(2 * math.pi) - math.pi

    return Target(
        "torsion", mf.Torus(2, period=2 * math.pi), lambda x: -torsion_energy(x[:, 0], x[:, 1]), scale=1.5,
        log_z=table()[1], view=view, axes=("phi", "psi"), limits=((-math.pi, math.pi),) * 2, bins=bins,
        bin_mass=lambda: table()[0], settings={"tb": {"steps": 30, "sigma": 2.0}},
    )  # fmt: skip


@target
def sphere3() -> Target:
    """Three von Mises-Fisher modes on the sphere, of different widths and weights; normalised: log Z = 0."""
    space = mf.Sphere(2)
    centres = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.2, 0.5], [-0.6, 0.9, 0.1], [-0.2, -0.8, -0.7]]), dim=-1
    )
    kappa, weight = (30.0, 12.0, 20.0), (0.5, 0.3, 0.2)
    parts = tuple(mf.VonMisesFisher(k, tuple(c.tolist()), space) for k, c in zip(kappa, centres, strict=True))
    law = mf.Mixture(parts, weight)
    wide, high, inner = 24, 12, 30

    def bins(x: Tensor) -> Tensor:
        place = space.to_shares(x)
        return (place[:, 0] * wide).long().clamp_max(wide - 1) * high + (place[:, 1] * high).long().clamp_max(high - 1)

    @lru_cache
    def mass() -> Tensor:  # equal areas: a grid of longitudes and heights
        turn = (torch.arange(wide * inner, dtype=torch.float64) + 0.5) / (wide * inner)
        height = (torch.arange(high * inner, dtype=torch.float64) + 0.5) / (high * inner)
        x = space.from_shares(torch.cartesian_prod(turn, height))
        value = law.log_prob(x).exp().view(wide, inner, high, inner).sum((1, 3)).flatten()
        return value / value.sum()

    def draw(count: int, generator: torch.Generator | None = None) -> Tensor:
        return law.sample((count,), generator=generator)

    def modes(x: Tensor) -> Tensor:
        return (x @ centres.to(x).mT).argmax(-1)

    def view(x: Tensor) -> Tensor:
        return torch.stack([torch.atan2(x[:, 1], x[:, 0]), x[:, 2].clamp(-1, 1)], -1)

    return Target(
        "sphere3", space, law.log_prob, scale=1.5, log_z=0.0,
        draw=draw,
        modes=modes, mode_mass=weight, view=view, axes=("longitude", "height"), limits=((-math.pi, math.pi), (-1, 1)),
        bins=bins, bin_mass=mass,
        settings={"tb": {"steps": 30}},
    )  # fmt: skip


@target
def rotations2() -> Target:
    r"""Two matrix-Fisher modes :math:`e^{tr(F^T R)}` on rotations, neither of them isotropic; log Z and bins by quadrature."""
    space = mf.SO3()
    turn = mf.SO3().exp(torch.eye(3).expand(2, 3, 3), torch.tensor([[0.3, -0.2, 0.1], [1.0, 1.6, -0.8]]))
    spread = torch.tensor([[9.0, 6.0, 2.0], [7.0, 7.0, 4.0]])
    factor = turn * spread.unsqueeze(1)  # U diag(s): anisotropic in the body frame
    lift = torch.tensor([0.0, 0.5])
    side, inner = 12, 8

    def log_density(x: Tensor) -> Tensor:
        overlap = (factor.to(x) * x.unsqueeze(1)).sum((-1, -2)) - spread.to(x).sum(-1)
        return (overlap + lift.to(x)).logsumexp(1)

    def angles(x: Tensor) -> Tensor:
        """Shares of the Euler angles z, y, z whose volume is even: two turns and a height."""
        first = torch.atan2(x[:, 1, 2], x[:, 0, 2]) / (2 * math.pi)
        last = torch.atan2(x[:, 2, 1], -x[:, 2, 0]) / (2 * math.pi)
        return torch.stack([first.remainder(1), (x[:, 2, 2] + 1) / 2, last.remainder(1)], -1)

    def bins(x: Tensor) -> Tensor:
        place = (angles(x) * side).long().clamp(0, side - 1)
        return (place[:, 0] * side + place[:, 1]) * side + place[:, 2]

    @lru_cache
    def table() -> tuple[Tensor, float]:
        share = (torch.arange(side * inner, dtype=torch.float64) + 0.5) / (side * inner)
        made = []
        for first in share:  # a plane of the grid at a time
            plane = torch.cartesian_prod(first[None], share, share)
            made.append(log_density(from_angles(plane)).exp())
        mass = torch.stack(made).view(side, inner, side, inner, side, inner).sum((1, 3, 5)).flatten()
        total = float(mass.sum()) / (side * inner) ** 3
        return mass / mass.sum(), math.log(total) + space.log_volume

    def modes(x: Tensor) -> Tensor:
        return space.dist(turn.to(x).unsqueeze(0), x.unsqueeze(1)).argmin(-1)

    def view(x: Tensor) -> Tensor:
        share = angles(x)
        return torch.stack([2 * math.pi * share[:, 0] - math.pi, 2 * share[:, 1] - 1], -1)

    alone = [
        float(fisher_normaliser(s)) - float(s.sum()) + float(w) for s, w in zip(spread.double(), lift, strict=True)
    ]
    weight = torch.tensor(alone, dtype=torch.float64).softmax(0)
    return Target(
        "rotations2", space, log_density, scale=1.5, log_z=table()[1], modes=modes,
        mode_mass=tuple(weight.tolist()), view=view, axes=("first turn", "height"),
        limits=((-math.pi, math.pi), (-1, 1)), bins=bins, bin_mass=lambda: table()[0],
        settings={"tb": {"steps": 30}},
    )  # fmt: skip


@target
def alanine() -> Target:
    r"""Alanine dipeptide at 300 K in OpenMM, all 22 atoms, bonds to hydrogen rigid (needs OpenMM): 43 stiff coordinates in
    standard units, 5 soft torsions in radians. log Z is not known; the embedded Boltzmann generator estimates it."""
    from manifoldflow.checkpoint import read_metadata
    from manifoldflow.tasks.energies.alanine import make_potential

    config = read_metadata("alanine")["config"]
    potential = make_potential(config["mean"], config["scale"])

    def log_density(x: Any) -> Tensor:
        return (potential.log_volume(x) - potential.energy(x)).nan_to_num(nan=-torch.inf)

    def view(x: Any) -> Tensor:
        return (x["turn"][:, :2] + math.pi).remainder(2 * math.pi) - math.pi

    spaces = {"line": mf.Euclidean(43), "turn": mf.Torus(5, period=2 * math.pi)}
    return Target("alanine", spaces, log_density, view=view, axes=("phi", "psi"), limits=((-math.pi, math.pi),) * 2)


def from_angles(share: Tensor) -> Tensor:
    """Rotations from the shares ``(..., 3)`` of their Euler angles z, y, z."""
    a, c = 2 * math.pi * share[..., 0], 2 * math.pi * share[..., 2]
    height = 2 * share[..., 1] - 1
    sine = (1 - height * height).clamp_min(0).sqrt()
    return torch.stack(
        [
            a.cos() * height * c.cos() - a.sin() * c.sin(), -a.cos() * height * c.sin() - a.sin() * c.cos(), a.cos() * sine,
            a.sin() * height * c.cos() + a.cos() * c.sin(), -a.sin() * height * c.sin() + a.cos() * c.cos(), a.sin() * sine,
            -sine * c.cos(), sine * c.sin(), height,
        ], -1,
    ).unflatten(-1, (3, 3))  # fmt: skip


def fisher_normaliser(s: Tensor, points: int = 4001) -> Tensor:
    r"""Log of the mean of :math:`e^{tr(F^T R)}` over all rotations, for singular values s (Lee 2018):
    :math:`\int_{-1}^1 \frac12 I_0(\tfrac{s_1 - s_2}{2}(1 - u)) I_0(\tfrac{s_1 + s_2}{2}(1 + u)) e^{s_3 u} du`."""
    u = torch.linspace(-1, 1, points, dtype=torch.float64)
    a, b = 0.5 * (s[0] - s[1]) * (1 - u), 0.5 * (s[0] + s[1]) * (1 + u)
    value = torch.special.i0e(a) * torch.special.i0e(b)
    return torch.trapezoid(0.5 * value * (a.abs() + b.abs() + s[2] * u).exp(), u).log()
