"""Molecules built of fragments: a tree of blocks that grows by one at a time, as batched tensors; RDKit only at the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifoldflow.tasks.molecules.fragments import Vocabulary, load_fragments, start_block
from manifoldflow.tasks.molecules.molecule_env import MoleculeEnv, Score


class FragmentEnv(MoleculeEnv):
    r"""Trees of blocks. Action 0 ends the molecule; any other attaches a block to a free site of one that is there.

    The state is a dict of tensors: ``block`` ``(B, N)``, the number of every node's block; ``parent`` and ``site`` ``(B, N)``,
    where it is attached; ``depth`` ``(B, N)``, how far from the first; ``done`` ``(B,)``. Nodes stand in the order of a walk
    through the tree (a node, then its children by their sites), -1 where there is none. So the order in which blocks were
    added leaves no trace, every leaf may have been the last (that is the exact :meth:`backward_mask`), and equal trees are equal
    tensors. A molecule that can be begun at several blocks, or whose block has equal sites, is several states; it is
    made as often as they together.

    Masks allow a block only where its bond is allowed, where there is room, and where all sites that must be filled still can be.

    Args:
        vocabulary: of blocks, or what :func:`load_fragments` takes.
        reward: SMILES -> rewards that are not negative; 1 for every molecule if absent. Several make a front of Pareto: the
            reward of a condition (weights w of them, in sum 1) is their weighted geometric mean.
        exponent: :math:`\beta`; objects are made in proportion to :math:`R^\beta`.
        max_fragments: N, most blocks, the first included.
        max_atoms: most heavy atoms.
        min_fragments: least blocks.
        start: SMILES of a scaffold (its ``*`` are where it may grow) or of a lead (grows at atoms that have a hydrogen), which
            is in every molecule. Otherwise they begin with any block that has a ring, if some have.
        stable: only bonds that chemists would make (:meth:`Vocabulary.stable_bonds`).
        forbidden: SMARTS that no molecule may hold. Blocks and bonds that make them are masked out; what only three blocks
            together make has the smallest reward.
        smallest: reward of what is forbidden, and least reward of all.
        partial: SMILES -> rewards of unfinished molecules for forward-looking losses; the reward itself if absent.

    Raises:
        ValueError: sizes that cannot be, or sites that must be filled and cannot.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | str | Path = "own",
        reward: Score | Sequence[Score] | None = None,
        *,
        exponent: float = 1.0,
        max_fragments: int = 8,
        max_atoms: int = 45,
        min_fragments: int = 2,
        start: str | None = None,
        stable: bool = True,
        forbidden: Sequence[str] = (),
        smallest: float = 1e-4,
        partial: Score | Sequence[Score] | None = None,
    ) -> None:
        book = vocabulary if isinstance(vocabulary, Vocabulary) else load_fragments(vocabulary)
        if not 1 <= min_fragments <= max_fragments:
            raise ValueError(f"expected 1 <= min_fragments <= max_fragments, got {min_fragments} and {max_fragments}")
        self.rest = len(book)  # blocks that can be attached
        if start is not None:
            book = book.with_block(start_block(start))
        super().__init__(reward, exponent=exponent, forbidden=forbidden, smallest=smallest, partial=partial)
        self.vocabulary = book
        self.max_fragments, self.max_atoms, self.min_fragments = max_fragments, max_atoms, min_fragments
        self.start = start
        self.sites = book.most_sites
        self.horizon = max_fragments + (start is None)
        self.places = max(max_fragments - 1, 1) * self.sites
        self.actions = 1 + self.places * self.rest
        self.observed = 3 * max_fragments + 1
        bonds = torch.zeros(len(book), self.sites, self.rest, dtype=torch.bool)
        bonds |= (torch.arange(self.sites) < book.site_count.unsqueeze(1)).unsqueeze(2)
        whole = torch.ones(self.rest, dtype=torch.bool)
        if stable:
            bonds &= book.stable_bonds()[..., : self.rest]
        if self.forbidden:
            bonds &= book.bonds_without(self.forbidden)[..., : self.rest]
            whole = book.blocks_without(self.forbidden)[: self.rest]
            if start is not None and not bool(book.blocks_without(self.forbidden)[-1]):
                raise ValueError(f"start {start!r} holds a forbidden pattern")
        atoms, needed = book.atom_count[: self.rest], book.needed
        heavy = torch.where(book.needed.any(1)[: self.rest], 10**6, atoms)  # a cap that needs nothing itself
        caps = torch.where(bonds, heavy, 10**6).amin(-1)
        open_ = needed & (caps >= 10**6)
        if bool(open_[:, 1:].any()):
            name = book.blocks[int(open_.any(1).nonzero()[0])].name
            raise ValueError(f"block {name}: no block can fill a site of it that must be filled")
        self._cap = int(torch.where(needed & ~open_, caps, 0).max())
        roots = book.has_ring if bool(book.has_ring.any()) else torch.ones(len(book), dtype=torch.bool)
        roots = roots[: self.rest] & whole & ~open_[: self.rest].any(1) & (atoms <= max_atoms)
        if min_fragments > 1:
            roots &= bonds[: self.rest].flatten(1).any(1)
        if start is None and not bool(roots.any()):
            raise ValueError("no block can begin a molecule: all hold forbidden patterns or more atoms than max_atoms")
        if start is not None and int(book.atom_count[-1]) > max_atoms:
            raise ValueError(f"start has {int(book.atom_count[-1])} heavy atoms, more than max_atoms = {max_atoms}")
        self.tables = {
            "bonds": bonds, "roots": roots, "atoms": book.atom_count, "needed": needed, "sites": book.site_count,
        }  # fmt: skip
        self._moved: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): self.tables}

    # ------------------------------------------------------------------------------------------------------ states

    def initial(self, n: int, *, device: torch.device | str | None = None) -> dict[str, Tensor]:
        empty = torch.full((n, self.max_fragments), -1, device=device)
        x = {"block": empty, "parent": empty.clone(), "site": empty.clone(), "depth": empty.clone()}
        if self.start is not None:
            x["block"] = x["block"].clone()
            x["block"][:, 0], x["depth"][:, 0] = self.rest, 0
        return {**x, "done": torch.zeros(n, dtype=torch.bool, device=device)}

    def is_done(self, x: Any) -> Tensor:
        return x["done"]

    def size(self, x: Any) -> Tensor:
        """Number of blocks, ``(B,)``."""
        return (x["block"] >= 0).sum(-1)

    def atoms(self, x: Any) -> Tensor:
        """Number of heavy atoms, ``(B,)``."""
        return torch.where(x["block"] >= 0, self._on(x)["atoms"][x["block"].clamp_min(0)], 0).sum(-1)

    def free_sites(self, x: Any) -> Tensor:
        """Which sites of which nodes are free, bool ``(B, N, S)``."""
        there = x["block"] >= 0
        sites = torch.arange(self.sites, device=there.device)
        free = there.unsqueeze(-1) & (sites < self._on(x)["sites"][x["block"].clamp_min(0)].unsqueeze(-1))
        free = free & ~((x["parent"] >= 0).unsqueeze(-1) & (sites == 0))  # by which it is attached itself
        place = torch.where(x["parent"] >= 0, x["parent"] * self.sites + x["site"], self.max_fragments * self.sites)
        taken = torch.zeros(len(there), self.max_fragments * self.sites + 1, dtype=torch.bool, device=there.device)
        return free & ~taken.scatter(1, place, True)[:, :-1].reshape(free.shape)

    def must_fill(self, x: Any) -> Tensor:
        """Number of free sites that must be filled, ``(B,)``."""
        needed = self._on(x)["needed"][x["block"].clamp_min(0)]
        return (needed & self.free_sites(x)).flatten(1).sum(-1)

    def forward_mask(self, x: Any) -> Tensor:
        table, size = self._on(x), self.size(x)
        free = self.free_sites(x)[:, : max(self.max_fragments - 1, 1)]  # (B, N - 1, S)
        block = x["block"][:, : free.shape[1]].clamp_min(0)
        must, atoms = self.must_fill(x), self.atoms(x)
        own = table["needed"][block] & free  # filling this one makes one less to fill
        opened = table["needed"][: self.rest, 1:].sum(-1)
        after = must.view(-1, 1, 1, 1) - own.unsqueeze(-1).long() + opened
        grown = atoms.view(-1, 1, 1, 1) + table["atoms"][: self.rest]
        able = table["bonds"][block] & free.unsqueeze(-1)
        able &= after <= (self.max_fragments - 1 - size).view(-1, 1, 1, 1)
        able &= grown + self._cap * after <= self.max_atoms
        able = able.flatten(1)
        first = torch.zeros_like(able)
        if self.start is None:
            all_open = table["needed"][: self.rest].sum(-1)
            roots = table["roots"] & (all_open <= self.max_fragments - 1)
            first[:, : self.rest] = roots & (table["atoms"][: self.rest] + self._cap * all_open <= self.max_atoms)
        able = torch.where((size == 0).unsqueeze(1), first, able)
        some = able.any(1)
        stop = (must == 0) & (size > 0) & ((size >= self.min_fragments) | ~some)
        return torch.cat([stop.unsqueeze(1), able], 1) & ~x["done"].unsqueeze(1)

    def backward_mask(self, x: Any) -> Tensor:
        leaf = self._leaves(x)
        place = x["parent"].clamp_min(0) * self.sites + x["site"].clamp_min(0)
        action = 1 + place * self.rest + x["block"].clamp(0, self.rest - 1)
        mask = torch.zeros(len(leaf), self.actions + 1, dtype=torch.bool, device=leaf.device)
        mask = mask.scatter(1, torch.where(leaf, action, self.actions), True)[:, :-1]
        mask = mask & ~x["done"].unsqueeze(1)
        mask[:, 0] = x["done"]
        return mask

    def _leaves(self, x: Any) -> Tensor:
        """Nodes that may have been added last, bool ``(B, N)``: without children; the first only where it is alone."""
        has_child = torch.zeros(len(x["done"]), self.max_fragments + 1, dtype=torch.bool, device=x["done"].device)
        place = torch.where(x["parent"] >= 0, x["parent"], self.max_fragments)
        has_child = has_child.scatter(1, place, True)[:, :-1]
        leaf = (x["block"] >= 0) & ~has_child
        if self.start is not None:
            leaf = leaf & (x["parent"] >= 0)
        return leaf

    def step(self, x: Any, action: Tensor) -> dict[str, Tensor]:
        parent, site, block = self._decoded(action)
        size = self.size(x)
        index = torch.arange(self.max_fragments, device=action.device)
        depth_of = x["depth"].gather(1, parent.unsqueeze(1))
        later = (x["parent"] == parent.unsqueeze(1)) & (x["site"] > site.unsqueeze(1))
        behind = (x["depth"] <= depth_of) | later
        behind = (index > parent.unsqueeze(1)) & (index < size.unsqueeze(1)) & behind
        spot = torch.where(behind, index, size.unsqueeze(1)).amin(-1, keepdim=True)  # (B, 1)
        source = (index - (index > spot).long()).clamp_min(0)
        moved = {n: x[n].gather(1, source) for n in ("block", "parent", "site", "depth")}
        moved["parent"] = moved["parent"] + (moved["parent"] >= spot).long()
        is_first = (size == 0).unsqueeze(1)
        new = {
            "block": block.unsqueeze(1),
            "parent": torch.where(is_first, -1, parent.unsqueeze(1)),
            "site": torch.where(is_first, -1, site.unsqueeze(1)),
            "depth": torch.where(is_first, 0, depth_of + 1),
        }
        stops = (action == 0).unsqueeze(1)
        made = {n: torch.where(stops, x[n], torch.where(index == spot, new[n], v)) for n, v in moved.items()}
        return {**made, "done": x["done"] | (action == 0)}

    def undo(self, x: Any, action: Tensor) -> dict[str, Tensor]:
        parent, site, _ = self._decoded(action)
        index = torch.arange(self.max_fragments, device=action.device)
        is_it = (x["parent"] == parent.unsqueeze(1)) & (x["site"] == site.unsqueeze(1))
        spot = torch.where(is_it, index, self.max_fragments).amin(-1, keepdim=True)
        spot = torch.where((self.size(x) == 1).unsqueeze(1), 0, spot)
        source = index + (index >= spot).long()
        empty = source >= self.max_fragments
        moved = {
            n: torch.where(empty, -1, x[n].gather(1, source.clamp_max(self.max_fragments - 1)))
            for n in ("block", "parent", "site", "depth")
        }
        moved["parent"] = moved["parent"] - (moved["parent"] > spot).long()
        ends = (action == 0).unsqueeze(1)
        return {**{n: torch.where(ends, x[n], v) for n, v in moved.items()}, "done": x["done"] & (action != 0)}

    def action(self, x: Any, y: Any) -> Tensor:
        differs = (x["block"] != y["block"]) | (x["parent"] != y["parent"]) | (x["site"] != y["site"])
        spot = differs.to(torch.uint8).argmax(-1, keepdim=True)
        parent, site, block = (y[n].gather(1, spot).squeeze(1).clamp_min(0) for n in ("parent", "site", "block"))
        added = 1 + (parent * self.sites + site) * self.rest + block.clamp_max(self.rest - 1)
        return torch.where(differs.any(-1), added.clamp_max(self.actions - 1), 0)

    def _decoded(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        number = (action - 1).clamp_min(0)
        place = number // self.rest
        return place // self.sites, place % self.sites, number % self.rest

    def _on(self, x: Any) -> dict[str, Tensor]:
        device = x["done"].device
        if device not in self._moved:
            self._moved[device] = {n: v.to(device) for n, v in self.tables.items()}
        return self._moved[device]

    def observe(self, x: Any) -> Tensor:
        parts = [x["block"], x["parent"], x["site"], x["done"].unsqueeze(1).long()]
        return torch.cat(parts, 1).to(torch.get_default_dtype())

    def key(self, x: Any) -> Tensor:
        """A number for every state, int64: exact for vocabularies so small that it fits, a hash of 63 bits for others."""
        bases = [len(self.vocabulary) + 1, self.max_fragments + 1, self.sites + 1]
        fits = (bases[0] * bases[1] * bases[2]) ** self.max_fragments < 2**62
        total = x["done"].long()
        for i in range(self.max_fragments):
            for n, base in zip(("block", "parent", "site"), bases, strict=True):
                total = (
                    total * (base if fits else 6364136223846793005) + x[n][:, i] + 1
                )  # wraps around where it is a hash
        return total

    def log_paths(self, x: Any) -> Tensor:
        r"""Number of orders in which a tree can be built, :math:`n! / \prod_v |subtree(v)|`, as a logarithm ``(B,)``."""
        parent, there = x["parent"], x["block"] >= 0
        below = there.to(torch.get_default_dtype())  # size of every subtree, from the last node to the first
        for i in range(self.max_fragments - 1, 0, -1):
            up = parent[:, i : i + 1].clamp_min(0)
            below = below.scatter_add(1, up, torch.where(parent[:, i : i + 1] >= 0, below[:, i : i + 1], 0.0))
        if self.start is not None:
            below, there = below[:, 1:], there[:, 1:]
        counted = torch.where(there, below.clamp_min(1), 1.0)
        return torch.lgamma(there.sum(-1) + 1.0) - counted.log().sum(-1)

    # ------------------------------------------------------------------------------------------------- molecules

    def rows(self, x: Any) -> Tensor:
        return torch.cat([x["block"], x["parent"], x["site"]], 1)

    def to_mols(self, x: Any) -> list[Any]:
        sizes = self.size(x).tolist()
        columns = [x[n].tolist() for n in ("block", "parent", "site")]
        return [
            self.vocabulary.assemble(*(c[i][:n] for c in columns)) if n else None for i, n in enumerate(sizes)
        ]  # fmt: skip
