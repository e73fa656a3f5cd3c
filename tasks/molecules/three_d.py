"""Molecules in three dimensions: positions, elements, charges and bonds in one flow."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.field import edges_of_pairs
from manifoldflow.state import expand_mask
from manifoldflow.tasks.common.runs import configured
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.molecules.conformers import Conformers
from manifoldflow.tasks.molecules.three_d_model import MoleculeNetwork

BUILDER = "manifoldflow.tasks.molecules.three_d:build"
"""What checkpoints call :func:`build`."""

ELEMENTS = ("H", "C", "N", "O", "F", "S")
"""The elements of the tokens ``kind``."""

ATOMIC_NUMBERS = (1, 6, 7, 8, 9, 16)

CHARGES = (0, 1, -1)
"""The formal charges of the tokens ``charge``."""

ORDERS = (0, 1, 2, 3)
"""The orders of the tokens ``bond``, none included; aromatic rings are kekulised before."""


@dataclass
class ThreeDConfig:
    """Everything that defines a flow of molecules in three dimensions.

    Args:
        width, pair_width, vectors, depth: of the network.
        noise: standard deviation of the source positions, angstrom.
        clip: errors of positions are weighed by 1 / max(1 - t, clip)^2.
        late: training times and the sampler's steps are even in log(1 - t + late): lengths of bonds take shape at the end. 0 for
            times that are even.
        self_condition: share of the training steps in which the network sees its own first prediction.
        distorted: share of the training samples whose noisy geometry is disturbed once more, so that the network learns to
            mend it.
        distortion: by how much, angstrom.
        kinds, charges, bonds: how often each token is the source's, in the order of :data:`ELEMENTS`, :data:`CHARGES` and
            :data:`ORDERS`: the shares of the training data.
        sizes: how many molecules of the training data have 0, 1, 2, ... atoms, hydrogens included.
    """

    width: int = 96
    pair_width: int = 48
    vectors: int = 8
    depth: int = 5
    noise: float = 1.5
    clip: float = 0.1
    late: float = 0.1
    self_condition: float = 0.5
    distorted: float = 0.25
    distortion: float = 0.3
    kinds: tuple[float, ...] = (1.0,) * len(ELEMENTS)
    charges: tuple[float, ...] = (1.0,) * len(CHARGES)
    bonds: tuple[float, ...] = (1.0,) * len(ORDERS)
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, length in (("kinds", len(ELEMENTS)), ("charges", len(CHARGES)), ("bonds", len(ORDERS))):
            given = tuple(getattr(self, name))
            if len(given) != length:
                raise ValueError(f"{name} must have {length} shares, got {len(given)}")
            setattr(self, name, given)
        self.sizes = tuple(self.sizes)
        for name in ("noise", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.late < 1:
            raise ValueError(f"late must lie in [0, 1), got {self.late}")
        for name in ("self_condition", "distorted"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class Distorted(mf.Geodesic):
    """The straight path, with noisy points that are off it in a share of the samples (geometry distortion, Dunn & Koes 2025).

    The sampler's own errors put atoms where no path leads; a network that has seen such places leads back.

    Args:
        share: of the samples.
        size: standard deviation of the disturbance of an atom, in the units of the space.
        atoms: share of the atoms of such a sample that are moved.
    """

    share: float = 0.5
    size: float = 0.3
    atoms: float = 0.3

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, *, generator: torch.Generator | None = None) -> Any:
        """A point of the straight path, or beside it; the endpoint is the same."""
        point = super().sample(x0, x1, t, generator=generator)
        options: dict[str, Any] = {"generator": generator, "device": x1.device, "dtype": x1.dtype}
        coin = torch.rand(x1.shape[0], **options) < self.share
        moved = expand_mask(coin, x1[..., 0]) & (torch.rand(x1.shape[:-1], **options) < self.atoms)
        noise = self.size * torch.randn(x1.shape, **options)
        return point._replace(x=point.x + torch.where(moved.unsqueeze(-1), noise, 0.0))


def build(config: ThreeDConfig | dict[str, Any] | None = None) -> mf.Flow:
    """A flow of molecules from its configuration (or the dict that a checkpoint holds)."""
    config = configured(ThreeDConfig, config, "3D molecule flow")
    jump = {n: mf.UniformJump(source=mf.Categorical(getattr(config, n))) for n in ("kinds", "charges", "bonds")}
    flow = mf.Flow(
        spaces={
            "pos": mf.Centered(mf.Euclidean(3)),
            "kind": mf.Tokens(len(ELEMENTS)),
            "charge": mf.Tokens(len(CHARGES)),
            "bond": mf.Field(mf.Tokens(len(ORDERS)), per="edge"),
        },
        source={"pos": mf.Normal(config.noise)},
        path={
            "pos": Distorted(share=config.distorted, size=config.distortion, clip=config.clip),
            "kind": jump["kinds"],
            "charge": jump["charges"],
            "bond": jump["bonds"],
        },
        predicts={"pos": "endpoint"},
        coupling=mf.Permute("pos", align=mf.Align("pos")),
        weights={"pos": 0.3, "kind": 1.0, "charge": 0.5, "bond": 3.0},
        self_condition=config.self_condition,
        time_warp=mf.Late(config.late) if config.late else None,
        model=MoleculeNetwork(
            len(ELEMENTS),
            len(CHARGES),
            len(ORDERS),
            width=config.width,
            pair_width=config.pair_width,
            vectors=config.vectors,
            depth=config.depth,
        ),
    )
    flow.builder, flow.config = BUILDER, asdict(config)
    return flow


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class MoleculeTensors:
    """Molecules of at most N atoms as tensors.

    Attributes:
        state: ``pos`` ``(n, N, 3)``, ``kind`` and ``charge`` ``(n, N)``, ``bond`` ``(n, N, N)`` symmetric; tokens as int8.
        sizes: atoms ``(n,)``.
    """

    state: dict[str, Tensor]
    sizes: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def mask(self) -> Tensor:
        """Bool ``(n, N)``."""
        return torch.arange(self.state["pos"].shape[1]) < self.sizes.unsqueeze(-1)

    def batch(self, rows: Tensor, nodes: int | None = None) -> dict[str, Any]:
        """Some molecules as :class:`manifoldflow.Flow` takes them, padded to ``nodes`` atoms."""
        n = int(self.sizes[rows].max()) if nodes is None else nodes
        some = {k: v[rows, :n] for k, v in self.state.items()}
        x = {
            "pos": some["pos"],
            "kind": some["kind"].long(),
            "charge": some["charge"].long(),
            "bond": edges_of_pairs(some["bond"][:, :, :n]).long(),
        }
        return {"x": x, "mask": torch.arange(n) < self.sizes[rows].unsqueeze(-1)}

    def shares(self) -> dict[str, Any]:
        """How often every token occurs, and every size: what :class:`ThreeDConfig` wants to know of the training data."""
        mask = self.mask
        pair = (mask.unsqueeze(1) & mask.unsqueeze(2)).triu(1)
        count = {
            "kinds": torch.bincount(self.state["kind"][mask].long(), minlength=len(ELEMENTS)),
            "charges": torch.bincount(self.state["charge"][mask].long(), minlength=len(CHARGES)),
            "bonds": torch.bincount(self.state["bond"][pair].long(), minlength=len(ORDERS)),
        }
        made: dict[str, Any] = {n: tuple((c / c.sum()).tolist()) for n, c in count.items()}
        return made | {"sizes": tuple(torch.bincount(self.sizes).tolist())}


def tensors_of(conformers: Conformers) -> MoleculeTensors:
    """Conformers as padded tensors.

    Raises:
        ValueError: an element, charge or bond order without a token; says which.
    """
    sizes = torch.from_numpy(conformers.sizes.astype(np.int64))
    count, most = len(sizes), int(sizes.max()) if len(sizes) else 0
    row = torch.repeat_interleave(torch.arange(count), sizes)
    column = torch.arange(len(row)) - torch.repeat_interleave(
        torch.from_numpy(conformers.atom_offset[:-1].astype(np.int64)), sizes
    )
    pos = torch.zeros(count, most, 3)
    kind, charge = torch.zeros(count, most, dtype=torch.int8), torch.zeros(count, most, dtype=torch.int8)
    pos[row, column] = torch.from_numpy(np.asarray(conformers.positions, np.float32))
    kind[row, column] = _tokens(conformers.atomic_number, ATOMIC_NUMBERS, "atomic number")
    charge[row, column] = _tokens(conformers.charge, CHARGES, "formal charge")
    bond = torch.zeros(count, most, most, dtype=torch.int8)
    bonds = torch.from_numpy(np.diff(conformers.bond_offset).astype(np.int64))
    of = torch.repeat_interleave(torch.arange(count), bonds)
    ends = torch.from_numpy(conformers.bonds.astype(np.int64))
    order = _tokens(conformers.bond_order, ORDERS, "bond order")
    bond[of, ends[:, 0], ends[:, 1]] = order
    bond[of, ends[:, 1], ends[:, 0]] = order
    return MoleculeTensors({"pos": pos, "kind": kind, "charge": charge, "bond": bond}, sizes)


def _tokens(values: Any, table: tuple[int, ...], what: str) -> Tensor:
    """Numbers as their places in a table.

    Raises:
        ValueError: one that is not there.
    """
    found = np.asarray(values)[:, None] == np.array(table)
    if not found.any(-1).all():
        raise ValueError(f"{what} {np.asarray(values)[~found.any(-1)][0]} is not one of {', '.join(map(str, table))}")
    return torch.from_numpy(found.argmax(-1).astype(np.int8))


def split_molecules(conformers: Conformers, share: float = 0.1) -> tuple[Conformers, Conformers]:
    """Training and validation, whole molecules each: every so-many-th molecule is held back."""
    every = max(2, round(1 / share))
    held = conformers.molecule % every == every - 1
    return conformers.rows(~held), conformers.rows(held)


def sized_batches(
    data: MoleculeTensors, edges: int, seed: int, buckets: int = 12
) -> Callable[[int], Iterator[dict[str, Any]]]:
    """Batches of molecules of about one size, for :func:`manifoldflow.training.fit`: no work is spent on padding.

    A bucket is drawn with the share of the molecules it holds, then its rows with replacement. The draws of a step depend on the
    seed and the step alone.

    Args:
        data: the molecules.
        edges: pairs of atoms in a batch, about.
        seed: of the draws.
        buckets: groups of sizes.
    """
    order = data.sizes.argsort()
    parts = [part for part in order.tensor_split(buckets) if len(part)]
    largest = [int(data.sizes[part].max()) for part in parts]
    weight = torch.tensor([float(len(part)) for part in parts])

    def after(step: int) -> Iterator[dict[str, Any]]:
        while True:
            generator = generator_of(seed, step)
            which = int(torch.multinomial(weight, 1, generator=generator))
            n, part = largest[which], parts[which]
            size = max(1, edges // max(1, n * (n - 1) // 2))
            yield data.batch(part[torch.randint(len(part), (size,), generator=generator)], n)
            step += 1

    return after


# ---------------------------------------------------------------- samples


def draw_sizes(flow: mf.Flow, count: int, generator: torch.Generator | None = None) -> list[int]:
    """Numbers of atoms, as often as in the training data.

    Raises:
        ValueError: the flow does not know them.
    """
    sizes = torch.tensor((flow.config or {}).get("sizes", ()), dtype=torch.float)
    if sizes.sum() <= 0:
        raise ValueError("this flow does not know the sizes of its training data: give lengths=")
    return torch.multinomial(sizes, count, replacement=True, generator=generator).tolist()


@dataclass(frozen=True)
class Made:
    """Molecules as a flow made them.

    Attributes:
        state: ``pos`` ``(n, N, 3)``, ``kind``, ``charge`` ``(n, N)``, ``bond`` ``(n, P)``.
        mask: bool ``(n, N)``.
    """

    state: dict[str, Tensor]
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)


def sample_molecules(
    flow: mf.Flow,
    sizes: list[int],
    *,
    steps: int = 100,
    temperature: float = 0.5,
    corrector: float = 4.0,
    batch: int = 100,
    generator: torch.Generator | None = None,
    callback: Callable[[int], None] | None = None,
) -> Made:
    """Molecules of given numbers of atoms.

    Args:
        flow: from :func:`build`.
        sizes: atoms, hydrogens included.
        steps: of the sampler.
        temperature: of the tokens: below 1 the likelier ones.
        corrector: how often a token may change again (:class:`manifoldflow.Jumps`).
        batch: molecules at once; those of like sizes go together.
        generator: of every random draw.
        callback: called with the number of molecules after every batch.
    """
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    most = max(sizes)
    parts, jumps = [], mf.Jumps(corrector=corrector, temperature=temperature)
    for at in range(0, len(order), batch):
        some = [sizes[i] for i in order[at : at + batch]]
        x, mask = flow.sample(
            lengths=some,
            steps=steps,
            method=jumps,
            generator=generator,
        )
        parts.append(_widened(x, mask, most))
        if callback is not None:
            callback(at + len(some))
    back = torch.tensor(order).argsort()
    state = {n: torch.cat([p.state[n] for p in parts])[back] for n in parts[0].state}
    return Made(state, torch.cat([p.mask for p in parts])[back])


def _widened(x: dict[str, Tensor], mask: Tensor, nodes: int) -> Made:
    """The same molecules, padded to ``nodes`` atoms."""
    extra = nodes - mask.shape[1]
    pad = torch.nn.functional.pad
    bond = mf.field.pairs_of_edges(x["bond"], mask.shape[1])
    return Made(
        {
            "pos": pad(x["pos"], (0, 0, 0, extra)),
            "kind": pad(x["kind"], (0, extra)),
            "charge": pad(x["charge"], (0, extra)),
            "bond": edges_of_pairs(pad(bond, (0, extra, 0, extra))),
        },
        pad(mask, (0, extra)),
    )
