"""Which atoms belong to one chain where the chain id does not say: by segment, by TER, by numbers that start again."""

import itertools
import string
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.proteins.conventions import is_amino_acid
from manifoldflow.tasks.proteins.records import Atoms
from manifoldflow.tasks.proteins.structure import MAX_PEPTIDE_BOND


def name_chains(atoms: Atoms) -> NDArray[Any]:
    """The chain of each atom, ``(A,)`` strings.

    One chain id is one chain unless it is blank, holds a residue twice, or changes its segment where no peptide bond
    leads on. The parts are called by their segment where that tells them apart; else the first keeps its id and the
    others get the next free letters.
    """
    result = atoms.chain.astype(object)
    taken = set(atoms.chain.tolist())
    for chain in dict.fromkeys(atoms.chain.tolist()):
        rows = np.flatnonzero(atoms.chain == chain)
        keys = _parts(atoms, rows, chain == "")
        parts = list(dict.fromkeys(keys))
        if len(parts) < 2 and (chain != "" or not (parts and isinstance(parts[0], str) and parts[0])):
            continue
        names = dict(zip(parts, _names(parts, chain, taken), strict=True))
        taken |= set(names.values())
        result[rows] = [names[key] for key in keys]
    return result.astype("U")


def _parts(atoms: Atoms, rows: NDArray[np.int64], is_blank: bool) -> list[Hashable]:
    """A key for each of the rows, equal where the chain is the same."""
    one: list[Hashable] = [0] * len(rows)
    segments: list[Hashable] = [str(s) for s in atoms.segment[rows]]
    blocks: list[Hashable] = [int(b) for b in atoms.block[rows]]
    mixed: list[Hashable] = [s or b for s, b in zip(segments, blocks, strict=True)]
    if is_blank:
        if not _repeats(atoms, rows, mixed):
            return mixed
    elif not _repeats(atoms, rows, one):
        several = len(set(segments)) > 1
        return segments if several and not _bonded(atoms, rows, segments) else one
    both = list(zip(segments, blocks, strict=True))
    # Files of many chains begin the alphabet again: A, B, ..., Z, A.
    stretches = np.concatenate([[0], (np.diff(rows) > 1).cumsum()]).tolist()
    for keys in (segments, blocks, both, stretches, list(_restarts(atoms, rows))):
        if not _repeats(atoms, rows, keys):
            return list(keys)
    return mixed if is_blank else one


def _repeats(atoms: Atoms, rows: NDArray[np.int64], keys: list[Any]) -> bool:
    """Whether an atom of a residue comes twice in one part."""
    fields = (atoms.number, atoms.icode, atoms.resname, atoms.altloc, atoms.atom, atoms.rank)
    columns = [keys, *(f[rows].tolist() for f in fields)]
    # Ligands may repeat as they like: where a program numbers its solvent, it wraps.
    wanted = (atoms.atom[rows] < 3) & np.array([is_amino_acid(str(name)) for name in atoms.resname[rows]], bool)
    seen = [item for item, use in zip(zip(*columns, strict=True), wanted, strict=True) if use]
    return len(set(seen)) < len(seen)


def _bonded(atoms: Atoms, rows: NDArray[np.int64], keys: list[Any]) -> bool:
    """Whether a peptide bond leads from one part to the next anywhere."""
    at = np.flatnonzero([a != b for a, b in itertools.pairwise(keys)])
    for i in at:
        before, after = rows[: i + 1], rows[i + 1 :]
        c, n = before[atoms.atom[before] == 2], after[atoms.atom[after] == 0]
        if len(c) and len(n) and np.linalg.norm(atoms.coord[c[-1]] - atoms.coord[n[0]]) <= MAX_PEPTIDE_BOND:
            return True
    return False


def _restarts(atoms: Atoms, rows: NDArray[np.int64]) -> Iterator[int]:
    """Numbers a part by how often the residue numbers fell back to ones that were there before."""
    place = list(zip(atoms.number[rows].tolist(), atoms.icode[rows].tolist(), strict=True))
    part = np.zeros(len(rows), int)
    seen: dict[Any, int] = {}
    begin, fall, current = 0, 0, None
    for i, here in enumerate(place):
        if here == current:
            continue
        if current is not None and here[0] < current[0]:
            fall = i
        if here in seen and seen[here] >= begin:
            if fall <= begin:  # no earlier place where a chain could have ended
                fall = i
            part[fall:] += 1
            begin = fall
        seen[here], current = i, here
    yield from part.tolist()


def _names(parts: list[Hashable], chain: str, taken: set[str]) -> list[str]:
    labels = [part if isinstance(part, str) else part[0] if isinstance(part, tuple) else "" for part in parts]
    if all(labels) and len(set(labels)) == len(labels) and not set(map(str, labels)) & (taken - {chain}):
        return [str(label) for label in labels]
    free = (letter for letter in string.ascii_uppercase + string.ascii_lowercase + string.digits if letter not in taken)
    result = [chain] if chain else []
    for _ in range(len(parts) - len(result)):
        result.append(next(free, f"{chain}{len(result) + 1}"))
    return result
