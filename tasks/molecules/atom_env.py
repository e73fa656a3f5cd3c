"""Molecules built of atoms and bonds: an atom is added by a bond, or a ring is closed; valences are never exceeded."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.tasks.molecules.chemistry import parse_smiles, rdkit
from manifoldflow.tasks.molecules.molecule_env import MoleculeEnv, Score

VALENCE = {
    "B": 3, "C": 4, "N": 3, "O": 2, "F": 1, "Si": 4, "P": 3, "S": 2, "Cl": 1, "Br": 1, "I": 1, "N+": 4, "O-": 1, "S+": 3,
}  # fmt: skip
"""Bonds that an atom has at most; hydrogens fill what is free."""
ORDERS = 3


class AtomEnv(MoleculeEnv):
    """Graphs of atoms. Action 0 ends the molecule; others add an atom to one that is there by a single, double or triple bond, or
    close a ring between two that are not bonded yet.

    The state is a dict: ``atom`` ``(B, N)``, numbers of the kinds, -1 where none is; ``bond`` ``(B, N, N)``, symmetric orders;
    ``done`` ``(B,)``. Atoms stand in the order in which they were added, so each but the first is bonded to one before it; a
    molecule is as many states as it has such orders. Undone may be the last atom, if it has one bond, and every bond between two
    atoms of which the later one has another bond to an earlier atom: exactly what may have led here.

    Args:
        reward: SMILES -> rewards; see :class:`FragmentEnv`.
        atoms: kinds, of those in ``VALENCE``.
        max_atoms: N.
        max_rings: most rings to close.
        start: SMILES that every molecule grows from: at its ``*``, or at all atoms that have a hydrogen.
        exponent, forbidden, smallest, partial: as in :class:`FragmentEnv`. Patterns are for the reward only; small rings are
            forbidden by ``["[r3]", "[r4]"]``.

    Raises:
        ValueError: a kind that is not known, or a start that does not fit.
    """

    def __init__(
        self,
        reward: Score | Sequence[Score] | None = None,
        *,
        atoms: Sequence[str] = ("C", "N", "O", "F"),
        max_atoms: int = 9,
        max_rings: int = 3,
        start: str | None = None,
        exponent: float = 1.0,
        forbidden: Sequence[str] = (),
        smallest: float = 1e-4,
        partial: Score | Sequence[Score] | None = None,
    ) -> None:
        super().__init__(reward, exponent=exponent, forbidden=forbidden, smallest=smallest, partial=partial)
        for kind in atoms:
            if kind not in VALENCE:
                raise ValueError(f"no valence is known for the atom {kind!r}; there are {', '.join(VALENCE)}")
        if max_atoms < 1 or max_rings < 0:
            raise ValueError(f"max_atoms must be at least 1 and max_rings 0, got {max_atoms} and {max_rings}")
        self.atoms, self.max_atoms, self.max_rings, self.start = tuple(atoms), max_atoms, max_rings, start
        self.kinds = len(self.atoms)
        self._begin = self._started(start)
        fixed = int((self._begin["atom"] >= 0).sum())
        self.fixed = fixed
        closed = int((self._begin["bond"] > 0).sum()) // 2 - max(fixed - 1, 0)
        self._closed = closed
        self.horizon = max_atoms - fixed + max_rings + 1
        self.pairs = torch.triu_indices(max_atoms, max_atoms, 1)
        self.adds = max(max_atoms - 1, 1) * self.kinds * ORDERS
        self.actions = 1 + self.adds + self.pairs.shape[1] * ORDERS
        self.observed = max_atoms + self.pairs.shape[1] + 1
        self.valence = torch.tensor([VALENCE[a] for a in self.atoms])

    def _started(self, start: str | None) -> dict[str, Tensor]:
        n = self.max_atoms
        atom, bond = torch.full((n,), -1), torch.zeros(n, n, dtype=torch.long)
        free = torch.full((n,), 99)
        if start is not None:
            mol, why = parse_smiles(start)
            if mol is None:
                raise ValueError(f"start {start!r}: {why}")
            chem = rdkit()
            if len(chem.GetMolFrags(mol)) > 1:
                raise ValueError(f"start {start!r}: several parts, expected one")
            chem.Kekulize(mol, clearAromaticFlags=True)
            points = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 0]
            order = _connected_order(mol, points)
            if len(order) > n:
                raise ValueError(f"start {start!r} has {len(order)} heavy atoms, more than max_atoms = {n}")
            place = {a: i for i, a in enumerate(order)}
            for a in order:
                item = mol.GetAtomWithIdx(a)
                charge = {1: "+", -1: "-"}.get(item.GetFormalCharge(), "")
                kind = item.GetSymbol() + charge
                if kind not in self.atoms:
                    raise ValueError(f"start {start!r}: the atom {kind} is not among {', '.join(self.atoms)}")
                atom[place[a]] = self.atoms.index(kind)
                if points:
                    free[place[a]] = sum(x.GetIdx() in points for x in item.GetNeighbors())
            for b in mol.GetBonds():
                ends = (b.GetBeginAtomIdx(), b.GetEndAtomIdx())
                if ends[0] in place and ends[1] in place:
                    i, j = place[ends[0]], place[ends[1]]
                    bond[i, j] = bond[j, i] = int(b.GetBondTypeAsDouble())
            used = bond.sum(-1)
            limit = torch.tensor([VALENCE[self.atoms[a]] for a in atom[: len(order)].tolist()])
            if bool((used[: len(order)] > limit).any()):
                raise ValueError(f"start {start!r}: an atom has more bonds than the {VALENCE} that are known here")
        used = bond.sum(-1)
        return {"atom": atom, "bond": bond, "most": used + free}

    # ------------------------------------------------------------------------------------------------------ states

    def initial(self, n: int, *, device: torch.device | str | None = None) -> dict[str, Tensor]:
        atom, bond = self._begin["atom"].to(device), self._begin["bond"].to(device)
        done = torch.zeros(n, dtype=torch.bool, device=device)
        return {"atom": atom.repeat(n, 1), "bond": bond.repeat(n, 1, 1), "done": done}

    def is_done(self, x: Any) -> Tensor:
        return x["done"]

    def size(self, x: Any) -> Tensor:
        return (x["atom"] >= 0).sum(-1)

    def rings(self, x: Any) -> Tensor:
        """Number of rings that were closed, ``(B,)``."""
        bonds = (x["bond"] > 0).flatten(1).sum(-1) // 2
        return bonds - (self.size(x) - 1).clamp_min(0) - self._closed

    def free(self, x: Any) -> Tensor:
        """Bonds that every atom can still have, ``(B, N)``."""
        there = x["atom"] >= 0
        device = there.device
        used = x["bond"].sum(-1)
        left = self.valence.to(device)[x["atom"].clamp_min(0)] - used
        return torch.where(there, torch.minimum(left, self._begin["most"].to(device) - used), 0).clamp_min(0)

    def forward_mask(self, x: Any) -> Tensor:
        device = x["done"].device
        free, size = self.free(x), self.size(x)
        order = torch.arange(1, ORDERS + 1, device=device)
        places = max(self.max_atoms - 1, 1)
        own = free[:, :places].unsqueeze(-1) >= order  # (B, N - 1, O)
        other = self.valence.to(device).unsqueeze(-1) >= order  # (K, O)
        add = own.unsqueeze(2) & other & (size < self.max_atoms).view(-1, 1, 1, 1)
        first = torch.zeros_like(add)
        first[:, 0, :, 0] = True
        add = torch.where((size == 0).view(-1, 1, 1, 1), first, add)
        i, j = self.pairs.to(device)
        room = torch.minimum(free[:, i], free[:, j])
        close = (room.unsqueeze(-1) >= order) & (x["bond"][:, i, j] == 0).unsqueeze(-1)
        close &= (x["atom"][:, j] >= 0).unsqueeze(-1) & (self.rings(x) < self.max_rings).view(-1, 1, 1)
        stop = (size > 0).unsqueeze(1)
        return torch.cat([stop, add.flatten(1), close.flatten(1)], 1) & ~x["done"].unsqueeze(1)

    def backward_mask(self, x: Any) -> Tensor:
        device, batch = x["done"].device, len(x["done"])
        bonded = x["bond"] > 0
        size = self.size(x)
        earlier = bonded.tril(-1).sum(-1)  # bonds to atoms before, (B, N)
        i, j = self.pairs.to(device)
        order = x["bond"][:, i, j]
        loose = (order > 0) & (earlier[:, j] > 1) & (j >= self.fixed)
        # within the start no bond goes; from a start atom to a start atom a ring may have been closed
        begun = self._begin["bond"].to(device)[i, j]
        loose = loose | ((order > 0) & (j < self.fixed) & (begun == 0))
        close = torch.zeros(batch, len(i), ORDERS, dtype=torch.bool, device=device)
        close = close.scatter(2, (order - 1).clamp_min(0).unsqueeze(-1), loose.unsqueeze(-1))
        last = (size - 1).clamp_min(0).unsqueeze(1)
        degree = bonded.sum(-1).gather(1, last).squeeze(1)
        able = (size > self.fixed) & (degree <= 1)
        to = bonded.gather(1, last.unsqueeze(-1).expand(-1, 1, self.max_atoms)).squeeze(1)
        to = to.to(torch.uint8).argmax(-1)  # its neighbour; 0 of the first atom
        level = x["bond"].gather(1, last.unsqueeze(-1).expand(-1, 1, self.max_atoms)).squeeze(1).amax(-1).clamp_min(1)
        kind = x["atom"].gather(1, last).squeeze(1).clamp_min(0)
        place = (to * self.kinds + kind) * ORDERS + level - 1
        add = torch.zeros(batch, self.adds + 1, dtype=torch.bool, device=device)
        add = add.scatter(1, torch.where(able, place.clamp_max(self.adds - 1), self.adds).unsqueeze(1), True)[:, :-1]
        rest = torch.cat([add, close.flatten(1)], 1) & ~x["done"].unsqueeze(1)
        return torch.cat([x["done"].unsqueeze(1), rest], 1)

    def _decoded(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Whether an atom is added; to which, of which kind; else the pair; the order."""
        number = (action - 1).clamp_min(0)
        is_add = (action > 0) & (number < self.adds)
        added = number.clamp_max(self.adds - 1)
        ring = (number - self.adds).clamp_min(0)
        i, j = self.pairs.to(action.device)
        pair = (ring // ORDERS).clamp_max(max(len(i) - 1, 0))
        order = torch.where(is_add, added % ORDERS, ring % ORDERS) + 1
        to, kind = added // (ORDERS * self.kinds), added // ORDERS % self.kinds
        if len(i) == 0:
            return is_add, to, kind, torch.zeros_like(to), torch.zeros_like(to), order
        return is_add, to, kind, i[pair], j[pair], order

    def step(self, x: Any, action: Tensor) -> dict[str, Tensor]:
        is_add, to, kind, i, j, order = self._decoded(action)
        size = self.size(x)
        moves = action > 0
        index = torch.arange(self.max_atoms, device=action.device)
        new = (index == size.unsqueeze(1)) & is_add.unsqueeze(1)
        atom = torch.where(new, kind.unsqueeze(1), x["atom"])
        low = torch.where(is_add, to, i)
        high = torch.where(is_add, size.clamp_max(self.max_atoms - 1), j)
        has_bond = moves & ~(is_add & (size == 0))
        bond = self._with_bond(x["bond"], low, high, torch.where(has_bond, order, 0), has_bond)
        return {"atom": atom, "bond": bond, "done": x["done"] | ~moves}

    def undo(self, x: Any, action: Tensor) -> dict[str, Tensor]:
        is_add, to, _, i, j, _ = self._decoded(action)
        last = (self.size(x) - 1).clamp_min(0)
        moves = action > 0
        index = torch.arange(self.max_atoms, device=action.device)
        gone = (index == last.unsqueeze(1)) & is_add.unsqueeze(1)
        atom = torch.where(gone, -1, x["atom"])
        low, high = torch.where(is_add, to, i), torch.where(is_add, last, j)
        bond = self._with_bond(x["bond"], low, high, torch.zeros_like(low), moves & (low != high))
        return {"atom": atom, "bond": bond, "done": x["done"] & moves}

    def _with_bond(self, bond: Tensor, low: Tensor, high: Tensor, order: Tensor, changed: Tensor) -> Tensor:
        index = torch.arange(self.max_atoms, device=bond.device)
        at_low, at_high = index == low.unsqueeze(1), index == high.unsqueeze(1)
        here = at_low.unsqueeze(2) & at_high.unsqueeze(1)
        here = (here | here.transpose(1, 2)) & changed.view(-1, 1, 1)
        return torch.where(here, order.view(-1, 1, 1), bond)

    def action(self, x: Any, y: Any) -> Tensor:
        device = x["done"].device
        grown = self.size(y) > self.size(x)
        last = self.size(x).clamp_max(self.max_atoms - 1).unsqueeze(1)
        kind = y["atom"].gather(1, last).squeeze(1).clamp_min(0)
        row = y["bond"].gather(1, last.unsqueeze(-1).expand(-1, 1, self.max_atoms)).squeeze(1)
        to, level = row.argmax(-1), row.amax(-1).clamp_min(1)
        add = 1 + ((to * self.kinds + kind) * ORDERS + level - 1).clamp_max(self.adds - 1)
        i, j = self.pairs.to(device)
        if len(i) == 0:
            return torch.where(grown, add, 0)
        differs = x["bond"][:, i, j] != y["bond"][:, i, j]
        pair = differs.to(torch.uint8).argmax(-1)
        order = y["bond"][:, i, j].gather(1, pair.unsqueeze(1)).squeeze(1).clamp_min(1)
        close = 1 + self.adds + pair * ORDERS + order - 1
        return torch.where(grown, add, torch.where(differs.any(-1), close, 0))

    def observe(self, x: Any) -> Tensor:
        i, j = self.pairs.to(x["done"].device)
        parts = [x["atom"], x["bond"][:, i, j], x["done"].unsqueeze(1).long()]
        return torch.cat(parts, 1).to(torch.get_default_dtype())

    def key(self, x: Any) -> Tensor:
        """A number for every state, int64: exact where it fits, a hash of 63 bits else."""
        i, j = self.pairs.to(x["done"].device)
        numbers = torch.cat([x["atom"] + 1, x["bond"][:, i, j], x["done"].unsqueeze(1).long()], 1)
        base = max(self.kinds + 1, ORDERS + 1)
        fits = base ** numbers.shape[1] < 2**62
        total = torch.zeros_like(numbers[:, 0])
        for column in numbers.unbind(1):
            total = total * (base if fits else 6364136223846793005) + column
        return total

    # ------------------------------------------------------------------------------------------------- molecules

    def rows(self, x: Any) -> Tensor:
        i, j = self.pairs.to(x["done"].device)
        return torch.cat([x["atom"], x["bond"][:, i, j]], 1)

    def to_mols(self, x: Any) -> list[Any]:
        chem = rdkit()
        types = [chem.BondType.SINGLE, chem.BondType.DOUBLE, chem.BondType.TRIPLE]
        made: list[Any] = []
        for kinds, orders in zip(x["atom"].tolist(), x["bond"].tolist(), strict=True):
            mol = chem.RWMol()
            for kind in kinds:
                if kind >= 0:
                    name = self.atoms[kind]
                    atom = chem.Atom(name.rstrip("+-"))
                    atom.SetFormalCharge({"+": 1, "-": -1}.get(name[-1], 0))
                    mol.AddAtom(atom)
            count = mol.GetNumAtoms()
            for i in range(count):
                for j in range(i):
                    if orders[i][j]:
                        mol.AddBond(j, i, types[orders[i][j] - 1])
            if not count:
                made.append(None)
                continue
            chem.SanitizeMol(mol)
            made.append(mol.GetMol())
        return made


class AtomPolicy(nn.Module):
    """Scores the actions of an :class:`AtomEnv`: messages along bonds and between all atoms, then a score of atoms and pairs.

    Args:
        env: the environment.
        width, depth: of the atoms' states; rounds of messages.
        flows: also the flow of the state.
    """

    def __init__(self, env: AtomEnv, width: int = 64, depth: int = 4, *, flows: bool = False) -> None:
        super().__init__()
        self.size, self.kinds, self.places = env.max_atoms, env.kinds, max(env.max_atoms - 1, 1)
        self.register_buffer("pairs", env.pairs, persistent=False)
        self.atom = nn.Embedding(env.kinds + 1, width)
        self.by_order = nn.ModuleList(nn.Linear(width, ORDERS * width) for _ in range(depth))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(3 * width), nn.Linear(3 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
            )
            for _ in range(depth)
        )
        self.add = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, env.kinds * ORDERS)
        )
        self.close = nn.Sequential(
            nn.LayerNorm(3 * width), nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, ORDERS)
        )
        self.whole = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1 + flows))

    def forward(self, seen: Tensor) -> Tensor:
        """What ``env.observe`` returns, ``(B, observed)`` -> ``(B, outputs)``."""
        whole = seen.round().long()
        i, j = self.pairs  # type: ignore[misc]
        atom, bonds = whole[:, : self.size], whole[:, self.size : self.size + len(i)]
        there = atom >= 0
        full = torch.zeros(len(seen), self.size, self.size, dtype=torch.long, device=seen.device)
        full[:, i, j] = bonds
        full = full + full.transpose(1, 2)
        edges = nn.functional.one_hot(full, ORDERS + 1)[..., 1:].to(self.atom.weight.dtype)
        h = self.atom(torch.where(there, atom, self.kinds))
        count = there.sum(-1, keepdim=True).clamp_min(1).to(h.dtype)
        for by_order, layer in zip(self.by_order, self.layers, strict=True):
            sent = by_order(h).unflatten(-1, (ORDERS, -1))  # (B, N, O, W)
            heard = torch.einsum("bijo,bjow->biw", edges, sent)
            mean = ((h * there.unsqueeze(-1)).sum(1) / count).unsqueeze(1).expand_as(h)
            h = h + layer(torch.cat([h, heard, mean], -1))
        pooled = (h * there.unsqueeze(-1)).sum(1) / count + torch.where(there[:, :1], 0.0, h[:, 0])
        spread = pooled.unsqueeze(1)
        add = self.add(torch.cat([h[:, : self.places], spread.expand(-1, self.places, -1)], -1))
        a, b = h[:, i], h[:, j]
        close = self.close(torch.cat([a + b, a * b, spread.expand_as(a)], -1))
        ends = self.whole(pooled)
        return torch.cat([ends[:, :1], add.flatten(1), close.flatten(1), ends[:, 1:]], 1)


def _connected_order(mol: Any, points: Sequence[int]) -> list[int]:
    """Atoms without the attachment points, each but the first bonded to one before it."""
    wanted = [a.GetIdx() for a in mol.GetAtoms() if a.GetIdx() not in points]
    order = wanted[:1]
    for a in order:  # grows while it is walked
        order += [
            n.GetIdx() for n in mol.GetAtomWithIdx(a).GetNeighbors() if n.GetIdx() in wanted and n.GetIdx() not in order
        ]
    return order
