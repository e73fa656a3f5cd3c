"""The network of the crystal flows: messages between all pairs of atoms of a cell, periodic by construction.

It sees differences of fractional coordinates through sines and cosines of their multiples, the cell through its metric tensor,
and atoms through their species, so its answers do not change when the crystal is shifted or turned, and change places with the
atoms. Everything is dense and padded: ``(B, N, N)`` pairs and a mask.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manifoldflow.manifolds.spd import matrix_exp, matrix_log, symmetric_basis
from manifoldflow.tasks.crystals.conditions import ConditionFeatures
from manifoldflow.tasks.crystals.elements import ATOMIC, COVALENT, ELECTRONEGATIVITY, ELEMENTS, period_and_group


@dataclass
class NetworkConfig:
    """Size of the network.

    Args:
        width: numbers per atom and per message.
        layers: rounds of messages.
        harmonics: multiples of a fractional difference that are seen: 1 to ``harmonics``.
        time_features: numbers that tell a time.
        vectors: vectors, and as many symmetric matrices, of each atom in the e3nn network; of no use to the other.
        radial: shells in which neighbours are counted and along whose directions atoms are moved, over all images of an atom in
            the 27 cells around; 0 for a network that knows the cell only by its six numbers, as those before it did.
    """

    width: int = 128
    layers: int = 4
    harmonics: int = 10
    time_features: int = 16
    radial: int = 10
    vectors: int = 16


class CrystalNetwork(nn.Module):
    """Predictions for the fields of a crystal.

    The first call argument is a state: ``frac`` ``(B, N, 3)`` (or ``(B, N, 6)``, where a path carries three concentrations
    beside), ``species`` ``(B, N)`` tokens with the mask token ``ELEMENTS`` (or ``(B, N, ELEMENTS)`` logits of what is believed of
    them), ``lattice`` ``(B, 3, 3)`` metric tensors. The second is a time per field.

    Args:
        config: size.
        outputs: tangents per atom: 1, or 2 for a path that predicts a drift and a noise.
        frac_scale: unit of the tangents, one per output.
        centred: remove the mean of the tangents over the atoms.
        beliefs: the state holds concentrations; tangents are in units of the spread that they mean.
        lattice_mean: of the numbers of :math:`\\log G` in an orthonormal basis, six.
        lattice_scale: their standard deviation.
        affine: lattice tangents are rates of change of the metric tensor, otherwise of its logarithm.
        lattice_endpoint: return a lattice instead of a tangent.
        conditions: names, means and scales of what ``cond`` may tell, see
            :class:`manifoldflow.tasks.crystals.conditions.ConditionFeatures`; none by default.
    """

    facts: Tensor
    radii: Tensor
    images: Tensor
    basis: Tensor
    frac_scale: Tensor
    lattice_mean: Tensor

    def __init__(
        self,
        config: NetworkConfig,
        *,
        outputs: int = 1,
        frac_scale: tuple[float, ...] = (0.25,),
        centred: bool = True,
        beliefs: bool = False,
        lattice_mean: Any = (0.0,) * 6,
        lattice_scale: float = 1.0,
        affine: bool = False,
        lattice_endpoint: bool = False,
        conditions: tuple[Sequence[str], Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.outputs, self.centred, self.beliefs = config, outputs, centred, beliefs
        self.lattice_scale, self.affine = lattice_scale, affine
        self.lattice_endpoint = lattice_endpoint
        w = config.width
        self.register_buffer("facts", _element_facts(), persistent=False)
        self.register_buffer("radii", torch.as_tensor(np.append(COVALENT, 1.4), dtype=torch.float32), persistent=False)
        self.register_buffer("images", _images(), persistent=False)
        self.register_buffer("frac_scale", torch.tensor(frac_scale).unsqueeze(-1), persistent=False)
        self.register_buffer("basis", symmetric_basis(3, torch.float32), persistent=False)
        self.register_buffer("lattice_mean", torch.tensor(lattice_mean, dtype=torch.float32), persistent=False)
        self.species = nn.Embedding(ELEMENTS + 1, w)
        nn.init.normal_(self.species.weight, std=0.3)
        self.fact_map = nn.Linear(self.facts.shape[-1], w)
        self.atom_time = nn.Linear(2 * config.time_features + (9 if beliefs else 0), w)
        self.graph_map = nn.Sequential(nn.Linear(6 + 1 + config.time_features + 1, w), nn.SiLU(), nn.Linear(w, w))
        self.conditions = ConditionFeatures(*conditions, w) if conditions is not None and conditions[0] else None
        self.atom_map = nn.Sequential(nn.SiLU(), nn.Linear(w, w))
        self._make_rounds(config, outputs)
        self.lattice_head = nn.Sequential(nn.Linear(2 * w, w), nn.SiLU(), nn.Linear(w, 6))
        self.species_head = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, ELEMENTS))
        zero(self.lattice_head[-1])

    def _make_rounds(self, config: NetworkConfig, outputs: int) -> None:
        """What :meth:`_rounds` needs."""
        w = config.width
        self.layers = nn.ModuleList([Messages(w, 6 * config.harmonics + config.radial) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(w)
        self.force = nn.Linear(w, outputs * (_FORCE_HARMONICS + config.radial))
        self.frac_head = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, outputs * 3))
        zero(self.frac_head[-1], self.force)

    def forward(
        self, x: dict[str, Tensor], t: Any, *, mask: Tensor | None = None, cond: Any = None
    ) -> dict[str, Tensor]:
        """A tangent of ``frac`` ``(B, N, 3)`` (``(B, N, 2, 3)`` with two outputs), logits of ``species`` ``(B, N, ELEMENTS)`` and
        a tangent of ``lattice`` ``(B, 3, 3)``."""
        frac, species = x["frac"], x["species"]
        if species.is_floating_point():
            species = species.softmax(-1).to(frac.dtype)
        belief = frac[..., 3:] if self.beliefs else None
        frac = frac[..., :3]
        real = torch.ones(frac.shape[:2], dtype=torch.bool, device=frac.device) if mask is None else mask
        count = real.sum(-1, keepdim=True).to(frac.dtype).clamp_min(1)
        when = {n: (t[n] if isinstance(t, dict) else t).to(frac.dtype) for n in ("frac", "species", "lattice")}
        numbers = self._lattice_numbers(x["lattice"]).to(frac.dtype)
        atom_times = torch.cat([self._time(_per_node(when[n], real)) for n in ("frac", "species")], -1)
        if belief is not None:
            atom_times = torch.cat([atom_times, _belief_features(belief)], -1)
        graph = torch.cat([numbers, count.log() - 1.5, self._time(when["lattice"]), self._start(cond, count)], -1)
        whole = self.graph_map(graph)
        if self.conditions is not None:
            whole = whole + self.conditions(cond, whole)
        h = self.atom_map(
            rows_of(self.species.weight, species)
            + self.fact_map(rows_of(self.facts, species))
            + self.atom_time(atom_times)
            + whole.unsqueeze(-2)
        )
        weight = (real / count).to(frac.dtype)
        gap = frac.unsqueeze(-2) - frac.unsqueeze(-3)  # (B, N, N, 3)
        h, tangent, strain = self._rounds(h, gap, x["lattice"], species, count, weight)
        if self.centred:
            tangent = tangent - torch.einsum("bi,bioa->boa", weight, tangent).unsqueeze(1)
        pooled = torch.einsum("bi,biw->bw", weight, h)
        most = h.masked_fill(~real.unsqueeze(-1), -torch.inf).amax(-2)
        change = self.lattice_head(torch.cat([pooled, most], -1))
        if strain is not None:
            change = change + strain
        return {
            "frac": self._frac(tangent, frac, belief),
            "species": self.species_head(h),
            "lattice": self._lattice(change, numbers, x["lattice"]),
        }

    def _rounds(
        self, h: Tensor, gap: Tensor, lattice: Tensor, species: Tensor, count: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """All rounds of messages: atoms ``(B, N, W)``, tangents ``(B, N, outputs, 3)`` in their units, and what they add to the
        six numbers of the lattice's tangent, if anything."""
        pairs, sines = self._waves(gap)
        ways = sines[..., :_FORCE_HARMONICS]
        if self.config.radial:
            shells, towards = self._shells(gap, lattice.to(gap.dtype), species, count)
            pairs, ways = torch.cat([pairs, shells], -1), torch.cat([ways, towards], -1)
        message = pairs
        for layer in self.layers:
            h, message = layer(h, pairs, weight)
        h = self.norm(h)
        pull = self.force(message).unflatten(-1, (self.outputs, ways.shape[-1]))
        tangent = torch.einsum("bj,bijok,bijak->bioa", weight, pull.to(ways.dtype), ways)
        return h, tangent + self.frac_head(h).unflatten(-1, (self.outputs, 3)), None

    def _waves(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Waves of differences of fractional coordinates, ``(B, N, N, 6 harmonics)``, and the sines among them,
        ``(B, N, N, 3, harmonics)``."""
        rate = 2 * math.pi * torch.arange(1, self.config.harmonics + 1, dtype=gap.dtype, device=gap.device)
        turns = gap.unsqueeze(-1) * rate  # (B, N, N, 3, harmonics)
        sines, cosines = turns.sin(), turns.cos()
        return torch.cat([sines.flatten(-2), cosines.flatten(-2)], -1), sines

    @torch.autocast("cpu", enabled=False)
    def _shells(self, gap: Tensor, lattice: Tensor, species: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """How much of each atom's images lies in shells around each other atom, ``(B, N, N, radial)``, and in which direction, in
        turns, ``(B, N, N, 3, radial)``. Distances are in units of the sum of the two covalent radii."""
        near, apart, between = self._near_images(gap, lattice, species, count)
        images = self.images.to(gap.dtype)  # (27, 3)
        nearness = 1 / apart.clamp_min(0.3)
        seen = torch.cat([images, torch.ones_like(images[:, :1])], -1)
        width = (SHELLS[1] - SHELLS[0]) / max(self.config.radial - 1, 1)
        shells, towards = [], []
        for centre in torch.linspace(*SHELLS, self.config.radial).tolist():  # one at a time stays in the cache
            inside = (((apart - centre) / width).square() * -0.5).clamp_min(FAINT).exp()
            shells.append(inside.sum(-1))
            pointing = (inside * nearness) @ seen
            towards.append(pointing[..., :3] + pointing[..., 3:] * near)
        way = torch.stack(towards, -1) * count.unsqueeze(-1).unsqueeze(-1)
        return torch.stack(shells, -1)[:, between.place], way[:, between.place] * between.sign[..., None, None]

    def _near_images(
        self, gap: Tensor, lattice: Tensor, species: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor, "_Between"]:
        """The difference of each two atoms, ``(B, P, 3)``, within half a cell; the distances of all images, ``(B, P, 27)``, in
        sums of covalent radii, an atom far from itself; and which pairs these are."""
        metric = lattice * count.pow(2 / 3).unsqueeze(-1)
        between = _between(gap.shape[1], gap)
        i, j = between.i, between.j
        near = gap[:, i, j] - gap[:, i, j].round()  # (B, P, 3): one of both ways between two atoms
        images = self.images.to(gap.dtype)  # (27, 3)
        low = near @ metric
        constant = torch.einsum("ka,bac,kc->bk", images, metric, images)
        squared = (low * near).sum(-1, keepdim=True) + 2 * low @ images.T + constant.unsqueeze(1)
        radius = rows_of(self.radii.to(gap.dtype), species)
        apart = squared.clamp_min(1e-4).sqrt() / (radius[:, i] + radius[:, j]).unsqueeze(-1)  # (B, P, 27)
        return near, torch.where((i == j).unsqueeze(-1) & (images == 0).all(-1), 1e3, apart), between

    def _frac(self, tangent: Tensor, frac: Tensor, belief: Tensor | None) -> Tensor:
        if belief is not None:  # the data point itself, from the mean
            return (frac + tangent.squeeze(-2) * _spread(belief)).remainder(1)
        tangent = self.frac_scale * tangent
        return tangent if self.outputs > 1 else tangent.squeeze(-2)

    def _lattice_numbers(self, lattice: Tensor) -> Tensor:
        """The six numbers of log G, standardised."""
        log = matrix_log(lattice.double())
        numbers = torch.einsum("bij,kij->bk", log, self.basis.double())
        return (numbers - self.lattice_mean) / self.lattice_scale

    def _lattice(self, numbers: Tensor, standard: Tensor, lattice: Tensor) -> Tensor:
        if self.lattice_endpoint:  # the data point itself, from the mean
            numbers = self.lattice_mean + self.lattice_scale * (standard + numbers)
            return matrix_exp(torch.einsum("bk,kij->bij", numbers, self.basis))
        u = torch.einsum("bk,kij->bij", self.lattice_scale * numbers, self.basis)
        if not self.affine:
            return u
        root = torch.linalg.cholesky_ex(lattice)[0]
        return root @ u @ root.mT

    def _time(self, t: Tensor) -> Tensor:
        """``(..., time_features)``: the time, and how little is left on a logarithmic scale, in waves."""
        half = self.config.time_features // 4
        left = (1 - t + 3e-3).log() / 5.8 + 1  # 0 to 1
        rate = math.pi * 2 ** torch.arange(half, dtype=t.dtype, device=t.device)
        waves = torch.cat([t.unsqueeze(-1) * rate, left.unsqueeze(-1) * rate], -1)
        return torch.cat([waves.sin(), waves.cos()], -1)

    def _start(self, cond: Any, count: Tensor) -> Tensor:
        """``(B, 1)``: 1 where the flow starts from a prototype, 0 from noise, -1 where elements of the data were exchanged."""
        given = cond.get("prototype") if isinstance(cond, dict) else None
        return torch.zeros_like(count) if given is None else given.to(count).reshape(-1, 1)


_FORCE_HARMONICS = 4
SHELLS = (0.25, 2.5)
"""Innermost and outermost shell, in sums of covalent radii."""
FAINT = -50.0
"""Logarithm of what counts as nothing in a shell: an exponential that underflows takes four times as long."""


@dataclass(frozen=True)
class _Between:
    """The pairs of N atoms, each once: of ``i`` and ``j`` ``(P,)``; pair ``place[i, j]``, to be seen with ``sign[i, j]``."""

    i: Tensor
    j: Tensor
    place: Tensor
    sign: Tensor


def _between(n: int, like: Tensor) -> _Between:
    i, j = torch.tril_indices(n, n, device=like.device)
    place = torch.empty(n, n, dtype=torch.int64, device=like.device)
    order = torch.arange(len(i), device=like.device)
    place[i, j], place[j, i] = order, order
    return _Between(i, j, place, torch.ones(n, n, dtype=like.dtype, device=like.device).tril().mul(2).sub(1))


def zero(*layers: nn.Module) -> None:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def _images() -> Tensor:
    """The 27 cells around an atom, ``(27, 3)``."""
    steps = torch.tensor([-1.0, 0.0, 1.0])
    return torch.cartesian_prod(steps, steps, steps)


class Messages(nn.Module):
    """One round: every atom hears from all atoms, itself among them, and changes by what it heard."""

    def __init__(self, width: int, pair_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.ends = nn.Linear(width, 2 * width)
        self.pair = nn.Linear(pair_size, width, bias=False)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.update = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, pairs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """``h`` ``(B, N, W)``, ``pairs`` ``(B, N, N, P)``, ``weight`` ``(B, N)`` of a mean over real atoms."""
        normed = self.norm(h)
        to, of = self.ends(normed).chunk(2, -1)
        message = self.message(to.unsqueeze(-2) + of.unsqueeze(-3) + self.pair(pairs))
        heard = (weight.unsqueeze(1).unsqueeze(1) @ message).squeeze(-2)
        return h + self.update(torch.cat([normed, heard], -1)), message


def _per_node(t: Tensor, real: Tensor) -> Tensor:
    return t if t.ndim == 2 else t.unsqueeze(-1).expand(real.shape)


def rows_of(table: Tensor, species: Tensor) -> Tensor:
    """Rows of a table ``(ELEMENTS + 1, ...)`` of tokens ``(B, N)``, or their means under probabilities ``(B, N, ELEMENTS)``."""
    return species @ table[:ELEMENTS] if species.is_floating_point() else table[species]


def _spread(concentration: Tensor) -> Tensor:
    """About the standard deviation, in turns, of a von Mises law of this concentration; that of the uniform law at 0."""
    return 0.29 / (1 + 3.3 * concentration).sqrt()


def _belief_features(concentration: Tensor) -> Tensor:
    log = (concentration + 0.05).log()
    return torch.cat([0.3 * log, (0.7 * log).sin(), (0.7 * log).cos()], -1)


def _element_facts() -> Tensor:
    """What is known of the elements, by species number, and zeros for the mask token: ``(ELEMENTS + 1, facts)``."""
    period, group = period_and_group()
    negative = np.where(np.isnan(ELECTRONEGATIVITY), 0.0, ELECTRONEGATIVITY - 1.8)
    numbers = [COVALENT - 1.5, ATOMIC - 1.5, negative, (period - 4) / 2, (group - 9) / 5]
    parts = [np.stack(numbers, -1), np.eye(7)[period - 1], np.eye(18)[group - 1]]
    table = np.concatenate([np.concatenate(parts, -1), np.zeros((1, 30))])
    return torch.as_tensor(table, dtype=torch.float32)
