"""Vocabularies of fragments: blocks with attachment points, read from SMILES with ``*`` or from the JSON of the published one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifoldflow.checkpoint import data_path
from manifoldflow.files import open_text
from manifoldflow.tasks.molecules.chemistry import parse_smiles, parsed, rdkit
from manifoldflow.tasks.molecules.reading import Rules, read_molecules

OWN = "own"
"""Name of the embedded vocabulary."""
MOST_SITES = 12


@dataclass(frozen=True)
class Block:
    """A fragment.

    Args:
        name: as the file has it.
        smiles: without attachment points.
        sites: atoms of the SMILES at which something can be attached, each as often as it has room; the block itself is
            attached by the first.
        needed: whether a site must be filled before the molecule is done; none if absent.
    """

    name: str
    smiles: str
    sites: tuple[int, ...]
    needed: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """Blocks of which molecules are built: trees in which a bond joins two sites.

    Args:
        blocks: all of them, K.
        source: where they come from.

    Raises:
        ValueError: a block without attachment point, with one at no atom, or at an atom without a hydrogen to give.
    """

    blocks: tuple[Block, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError(f"{self.source}: a vocabulary needs at least one block")
        for number, block in enumerate(self.blocks, 1):
            where = f"{self.source}: block {number} ({block.name}, {block.smiles})"
            mol, why = parse_smiles(block.smiles)
            if mol is None:
                raise ValueError(f"{where}: {why}")
            if not block.sites:
                raise ValueError(f"{where}: has no attachment point; mark one with * in its SMILES, or leave it out")
            if len(block.sites) > MOST_SITES:
                raise ValueError(f"{where}: {len(block.sites)} attachment points, at most {MOST_SITES} are possible")
            for atom in block.sites:
                if not 0 <= atom < mol.GetNumAtoms():
                    raise ValueError(f"{where}: attachment at atom {atom}, it has {mol.GetNumAtoms()}")
            try:
                _filled(mol, block.sites)
            except ValueError as error:
                raise ValueError(f"{where}: its attachment points cannot all be filled ({error})") from None

    def __len__(self) -> int:
        return len(self.blocks)

    @cached_property
    def most_sites(self) -> int:
        """S, the largest number of sites."""
        return max(len(block.sites) for block in self.blocks)

    @cached_property
    def site_count(self) -> Tensor:
        """Number of sites of every block, ``(K,)``."""
        return torch.tensor([len(block.sites) for block in self.blocks])

    @cached_property
    def needed(self) -> Tensor:
        """Which sites must be filled, bool ``(K, S)``."""
        rows = [[*block.needed, *[False] * (self.most_sites - len(block.needed))] for block in self.blocks]
        return torch.tensor(rows, dtype=torch.bool)

    @cached_property
    def has_ring(self) -> Tensor:
        """Which blocks hold a ring, bool ``(K,)``."""
        return torch.tensor([mol.GetRingInfo().NumRings() > 0 for mol in self.mols])

    @cached_property
    def atom_count(self) -> Tensor:
        """Number of heavy atoms of every block, ``(K,)``."""
        return torch.tensor([mol.GetNumHeavyAtoms() for mol in self.mols])

    @cached_property
    def mols(self) -> tuple[Any, ...]:
        """RDKit molecules of the blocks, their hydrogens counted at every atom that has a site."""
        return tuple(rdkit().RWMol(parsed(block.smiles)) for block in self.blocks)

    @cached_property
    def features(self) -> Tensor:
        """What a network may know of every block besides its number, ``(K, F)``: size, rings, elements, charge, sites."""
        rows = []
        for block, mol in zip(self.blocks, self.mols, strict=True):
            symbols = [a.GetSymbol() for a in mol.GetAtoms()]
            rings = mol.GetRingInfo()
            aromatic = sum(a.GetIsAromatic() for a in mol.GetAtoms())
            first = mol.GetAtomWithIdx(block.sites[0])
            rows.append([
                len(symbols) / 10, rings.NumRings() / 2, aromatic / 6, rdkit().GetFormalCharge(mol), len(block.sites) / 3,
                *(symbols.count(s) / 3 for s in ("N", "O", "S", "P")),
                sum(symbols.count(s) for s in ("F", "Cl", "Br", "I")) / 3,
                float(first.GetSymbol() == "C"), float(first.GetSymbol() == "N"), float(first.GetIsAromatic()),
            ])  # fmt: skip
        return torch.tensor(rows, dtype=torch.float32)

    def with_block(self, block: Block) -> "Vocabulary":
        """The same with one more, the last."""
        return Vocabulary((*self.blocks, block), self.source)

    def assemble(self, numbers: Sequence[int], parents: Sequence[int], sites: Sequence[int]) -> Any:
        """The molecule of a tree of blocks, which is valid whatever the tree, as bonds take the place of hydrogens.

        Args:
            numbers: of the blocks, parents before children.
            parents: for every block that to which it is attached; -1 for the first.
            sites: the site of the parent at which it is.
        """
        chem = rdkit()
        made, start = chem.RWMol(), []
        for number in numbers:
            start.append(made.GetNumAtoms())
            made.InsertMol(self.mols[number])
        for child, (parent, site) in enumerate(zip(parents, sites, strict=True)):
            if parent < 0:
                continue
            a = start[parent] + self.blocks[numbers[parent]].sites[site]
            b = start[child] + self.blocks[numbers[child]].sites[0]
            made.AddBond(a, b, chem.BondType.SINGLE)
            for index in (a, b):
                atom = made.GetAtomWithIdx(index)
                if atom.GetNumExplicitHs():
                    atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
        mol = made.GetMol()
        chem.SanitizeMol(mol)
        return mol

    def stable_bonds(self) -> Tensor:
        """Which bonds chemists would make, bool ``(K, S, K)``: block and site of the parent, block of the child.

        Not those between two heteroatoms (but N or O on sulfonyl), of halogens and nitriles to anything but carbon without a
        heteroatom, between two carbonyls or sulfonyls, and of a heteroatom to a carbon that is between two already.
        """
        kinds = [[_kind(mol, atom) for atom in block.sites] for block, mol in zip(self.blocks, self.mols, strict=True)]
        rest = [[False] * len(self)]  # of sites that a block does not have
        return torch.tensor(
            [
                [[_stable(a, other[0]) for other in kinds] for a in own] + rest * (self.most_sites - len(own))
                for own in kinds
            ]
        )

    def bonds_without(self, patterns: Sequence[str]) -> Tensor:
        """Which bonds make none of the SMARTS patterns that was not in either block before, bool ``(K, S, K)``, by trying all.

        A block that holds a pattern itself is never allowed. What only three blocks together make is not seen here: the reward
        of such molecules is 0 (:class:`manifoldflow.tasks.molecules.FragmentEnv`).
        """
        queries = smarts(patterns)
        whole = [not any(mol.HasSubstructMatch(q) for q in queries) for mol in map(_checked, self.mols)]

        def fits(k: int, s: int, j: int) -> bool:
            if s >= len(self.blocks[k].sites) or not (whole[k] and whole[j]):
                return False
            pair = self.assemble([k, j], [-1, 0], [-1, s])
            return not any(pair.HasSubstructMatch(q) for q in queries)

        every = range(len(self))
        return torch.tensor([[[fits(k, s, j) for j in every] for s in range(self.most_sites)] for k in every])

    def blocks_without(self, patterns: Sequence[str]) -> Tensor:
        """Which blocks hold none of the patterns, bool ``(K,)``."""
        queries = smarts(patterns)
        return torch.tensor([not any(m.HasSubstructMatch(q) for q in queries) for m in map(_checked, self.mols)])


@lru_cache(maxsize=64)
def _smarts(pattern: str) -> Any:
    return rdkit().MolFromSmarts(pattern)


def smarts(patterns: Sequence[str]) -> list[Any]:
    """Queries of SMARTS patterns.

    Raises:
        ValueError: one that cannot be parsed.
    """
    queries = [_smarts(p) for p in patterns]
    for pattern, query in zip(patterns, queries, strict=True):
        if query is None:
            raise ValueError(f"{pattern!r} is no SMARTS pattern")
    return queries


def load_fragments(source: str | Path = OWN) -> Vocabulary:
    """A vocabulary: the embedded one by the name ``own``, a JSON of the published layout, or a list of SMILES with ``*``.

    A site written ``[1*]`` must be filled before a molecule is done (a lone sulfonyl is no drug). JSON: ``block_name``,
    ``block_smi`` and ``block_r``, lists or dicts by number. Of a list of SMILES every ``*`` is a site; the
    block is attached by that numbered 1 (``[*:1]``), or if none is numbered, by each that symmetry does not make equal.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a block that is none; names it.
    """
    if source == OWN:
        return _own()
    path = Path(source)
    with open_text(path) as file:
        head = file.read(100).lstrip()
    return _from_json(path) if head.startswith(("{", "[")) else _from_smiles(path)


@lru_cache(maxsize=1)
def _own() -> Vocabulary:
    return _from_smiles(data_path("molecules/fragments.smi"))


def _from_json(path: Path) -> Vocabulary:
    with open_text(path) as file:
        try:
            table = json.load(file)
            columns = {key: table[key] for key in ("block_name", "block_smi", "block_r")}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a JSON table of block_name, block_smi and block_r ({error})") from None
    lists = {k: [v[i] for i in sorted(v, key=int)] if isinstance(v, dict) else list(v) for k, v in columns.items()}
    names, smiles, sites = lists["block_name"], lists["block_smi"], lists["block_r"]
    if not len(names) == len(smiles) == len(sites):
        raise ValueError(f"{path}: {len(names)} names, {len(smiles)} SMILES and {len(sites)} lists of attachment atoms")
    blocks = (Block(n, s, tuple(map(int, r))) for n, s, r in zip(names, smiles, sites, strict=True))
    return Vocabulary(tuple(blocks), str(path))


def _from_smiles(path: Path) -> Vocabulary:
    blocks: list[Block] = []
    for record in read_molecules(path, rules=Rules(dummies="keep"), strict=True).records:
        blocks += blocks_of(record.mol, record.name or record.smiles, f"{path}, line {record.where}")
    return Vocabulary(tuple(blocks), str(path))


def blocks_of(mol: Any, name: str, where: str, *, every: bool = False) -> list[Block]:
    """The blocks of a molecule with atoms ``*``: one for every way of attaching it.

    Args:
        mol: the molecule.
        name: theirs.
        where: it was read, for messages.
        every: only one block, whose first site is no special one: what a molecule is begun with.
    """
    chem = rdkit()
    if len(chem.GetMolFrags(mol)) > 1:
        raise ValueError(f"{where}: {name} has several parts, a block has one")
    bare = chem.RWMol(mol)
    points = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() == 0]
    if not points:
        raise ValueError(f"{where}: {name} has no attachment point; mark one with * in its SMILES, or leave it out")
    numbers: dict[int, list[int]] = {}
    must: dict[int, list[bool]] = {}
    for point in points:
        atom = mol.GetAtomWithIdx(point)
        (bond,) = atom.GetBonds() if atom.GetDegree() == 1 else (None,)
        if bond is None or bond.GetBondType() != chem.BondType.SINGLE:
            raise ValueError(f"{where}: {name}: an attachment point must hang on one atom by a single bond")
        neighbour = bond.GetOtherAtom(atom)
        numbers.setdefault(neighbour.GetIdx(), []).append(atom.GetAtomMapNum())
        must.setdefault(neighbour.GetIdx(), []).append(atom.GetIsotope() == 1)
        kept = bare.GetAtomWithIdx(neighbour.GetIdx())
        if kept.GetNoImplicit() or (kept.GetIsAromatic() and kept.GetSymbol() != "C"):
            kept.SetNumExplicitHs(kept.GetNumExplicitHs() + 1)
    order = [(m, a, need) for a in numbers for m, need in zip(numbers[a], must[a], strict=True)]
    for point in sorted(points, reverse=True):
        bare.RemoveAtom(point)
    plain = bare.GetMol()
    chem.SanitizeMol(plain)
    smiles = chem.MolToSmiles(plain)
    places = list(plain.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])
    shift = {a: a - sum(p < a for p in points) for a in numbers}
    order.sort()
    sites, needed = [places.index(shift[a]) for _, a, _ in order], [need for _, _, need in order]
    ranks = list(chem.CanonicalRankAtoms(plain, breakTies=False))
    if every or any(m for m, _, _ in order):
        return [Block(name, smiles, tuple(sites), tuple(needed))]
    made = sorted({ranks[places[s]]: i for i, s in reversed(list(enumerate(sites)))}.values())

    def turned(i: int, values: list[Any]) -> tuple[Any, ...]:
        return (values[i], *values[:i], *values[i + 1 :])

    titles = [f"{name}_{i + 1}" if len(made) > 1 else name for i in made]
    return [Block(t, smiles, turned(i, sites), turned(i, needed)) for i, t in zip(made, titles, strict=True)]


def start_block(smiles: str) -> Block:
    """What molecules are begun with: a scaffold, whose sites are its ``*``, or a lead, which can grow at every atom that symmetry
    does not make equal to another and that has a hydrogen.

    Raises:
        ValueError: no molecule, no site, or too many.
    """
    mol, why = parse_smiles(smiles)
    if mol is None:
        raise ValueError(f"start {smiles!r}: {why}")
    chem = rdkit()
    if any(a.GetAtomicNum() == 0 for a in mol.GetAtoms()):
        return blocks_of(mol, "start", "start", every=True)[0]
    if len(chem.GetMolFrags(mol)) > 1:
        raise ValueError(f"start {smiles!r}: several parts, expected one; leave out the counter-ion")
    written = chem.MolToSmiles(mol)
    mol = rdkit().MolFromSmiles(written)
    ranks = list(chem.CanonicalRankAtoms(mol, breakTies=False))
    first = {rank: i for i, rank in reversed(list(enumerate(ranks)))}
    sites = [i for i in sorted(first.values()) if mol.GetAtomWithIdx(i).GetTotalNumHs() > 0]
    if not sites:
        raise ValueError(f"start {smiles!r}: has no attachment point, as no atom has a hydrogen to give")
    if len(sites) > MOST_SITES:
        raise ValueError(
            f"start {smiles!r}: {len(sites)} atoms could be attached to, at most {MOST_SITES} are possible; "
            "mark those meant with *"
        )
    return Block("start", written, tuple(sites))


def _filled(mol: Any, sites: Sequence[int]) -> None:
    """Put a methyl at every site; ValueError if that is no molecule."""
    chem = rdkit()
    made = chem.RWMol(mol)
    for site in sites:
        atom = made.GetAtomWithIdx(site)
        if atom.GetNumExplicitHs():
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
        made.AddBond(site, made.AddAtom(chem.Atom(6)), chem.BondType.SINGLE)
    chem.SanitizeMol(made)


def _checked(mol: Any) -> Any:
    made = mol.GetMol()
    rdkit().SanitizeMol(made)
    return made


def _kind(mol: Any, index: int) -> str:
    """What an atom is to a bond: halogen, hetero, sulfonyl, acyl (a carbon with a double bond to a heteroatom), acid (one
    of a carboxylic acid), geminal (a saturated carbon with a heteroatom), nitrile, carbon."""
    atom = mol.GetAtomWithIdx(index)
    symbol = atom.GetSymbol()
    if symbol in ("F", "Cl", "Br", "I"):
        return "halogen"
    double = [b.GetOtherAtom(atom).GetSymbol() for b in atom.GetBonds() if b.GetBondTypeAsDouble() in (2.0, 3.0)]
    if symbol in ("S", "P") and "O" in double:
        return "sulfonyl"
    if symbol != "C":
        return "hetero"
    if any(b.GetBondTypeAsDouble() == 3.0 for b in atom.GetBonds()):
        return "nitrile"
    if not atom.GetIsAromatic() and any(s in ("O", "N", "S") for s in double):
        return "acid" if any(n.GetSymbol() == "O" and n.GetTotalNumHs() for n in atom.GetNeighbors()) else "acyl"
    saturated = not atom.GetIsAromatic() and not double
    if saturated and any(n.GetSymbol() in ("N", "O", "S") for n in atom.GetNeighbors()):
        return "geminal"
    return "carbon"


def _stable(a: str, b: str) -> bool:
    pair = {a, b}
    if pair == {"hetero", "sulfonyl"}:
        return True
    polar = {"halogen", "hetero", "sulfonyl", "nitrile"}
    if a in polar and b in polar:
        return False
    if "acyl" in pair and pair & {"halogen", "sulfonyl", "nitrile"}:
        return False
    if pair <= {"acyl", "acid"} or ("acid" in pair and pair & polar):
        return False
    return not ("geminal" in pair and pair & polar)
