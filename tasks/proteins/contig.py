"""Contigs: which residues of a structure a design keeps, and how many free ones lie between, as RFdiffusion's users write them.

Parts stand from the N to the C terminus with ``/`` (or ``,``) between them:

* ``A10-30``, ``A17``, ``H52A-54``, ``A-5--1``, ``AA3-10``: residues of a chain, by number and insertion code. A range takes
  all residues from the first to the last in the order of the file, inserted ones (52A) too.
* ``12``: free residues; ``5-15``: a number of them that is drawn for every design. What starts with a digit is always free.
* ``1:4-20``: residues of a chain whose name is a number, or is to be told apart from another.
* ``/0 `` before the next part, or a blank: a new chain begins.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from manifoldflow.tasks.proteins.structure import Chain

_RANGE = re.compile(r"(-?\d+)([A-Za-z]?)(?:-(-?\d+)([A-Za-z]?))?")
_FREE = re.compile(r"(\d+)(?:-(\d+))?")
MOST = 10_000  # residues; a longer design is a slip of the pen


@dataclass(frozen=True)
class Free:
    """Residues to design, ``low`` to ``high`` of them."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True)
class Kept:
    """Residues of a structure: rows ``begin`` to ``end`` (not included) of a chain."""

    text: str
    chain: Chain
    begin: int
    end: int

    def __len__(self) -> int:
        return self.end - self.begin

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class NewChain:
    """The chain of the design ends here and another begins."""

    def __str__(self) -> str:
        return "/0 "


Part = Free | Kept | NewChain


class Contig(NamedTuple):
    """A contig that was read."""

    text: str
    parts: tuple[Part, ...]

    @property
    def shortest(self) -> int:
        """Residues of the shortest design."""
        return sum(p.low if isinstance(p, Free) else len(p) for p in self.parts if not isinstance(p, NewChain))

    @property
    def longest(self) -> int:
        """Residues of the longest design."""
        return sum(p.high if isinstance(p, Free) else len(p) for p in self.parts if not isinstance(p, NewChain))

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to draw and one chain: then a longer design goes on after the last part."""
        return self.shortest == self.longest and not any(isinstance(p, NewChain) for p in self.parts)

    def draw(self, length: int | None = None, seed: int | str = 0) -> tuple[Part, ...]:
        """Parts with the free ones drawn, uniformly among all ways to reach ``length``.

        Args:
            length: residues of the whole design; None draws every free part by itself.
            seed: of the draw.

        Raises:
            ValueError: the contig does not reach that length.
        """
        ranges = [p for p in self.parts if isinstance(p, Free)]
        rng = random.Random(f"contig {seed}")
        if length is None:
            drawn = [rng.randint(p.low, p.high) for p in ranges]
        else:
            if self.is_fixed and length >= self.longest:
                return (
                    *self.parts,
                    *([Free(length - self.longest, length - self.longest)] if length > self.longest else []),
                )
            if not self.shortest <= length <= self.longest:
                raise ValueError(
                    f"the motif {self.text!r} spans {_span(self.shortest, self.longest)} residues, "
                    f"which does not fit a length of {length}"
                )
            drawn = _compose(ranges, length - (self.shortest - sum(p.low for p in ranges)), rng)
        numbers = iter(drawn)
        return tuple(Free(n, n) if isinstance(p, Free) and (n := next(numbers)) >= 0 else p for p in self.parts)

    def describe(self) -> str:
        """What the contig was taken for, in one line."""
        words = []
        for part in self.parts:
            if isinstance(part, Kept):
                names = [residue_name(part.chain, row) for row in (part.begin, part.end - 1)]
                words.append(f"{len(part)} of chain {part.chain.chain_id!r} ({' to '.join(dict.fromkeys(names))})")
            else:
                words.append("new chain" if isinstance(part, NewChain) else f"{part} free")
        more = ", then free ones up to the length" if self.is_fixed else ""
        return f"{', '.join(words)}{more}; {_span(self.shortest, self.longest)} residues"


def residue_name(chain: Chain, row: int) -> str:
    """``52A``: number and insertion code."""
    return f"{chain.resnum[row]}{chain.icode[row]}"


def parse_contig(text: str, chains: Sequence[Chain], source: str = "the structure") -> Contig:
    """Read a contig against the chains of a structure.

    Args:
        text: the contig, also with what RFdiffusion's command line puts around it (``contigmap.contigs=[...]``).
        chains: of the structure.
        source: its name, for messages.

    Raises:
        ValueError: it cannot be read, fits two chains, names residues that the structure lacks or names one twice, or
            holds no residues of the structure.
    """
    plain = text.strip()
    if "=" in plain:
        plain = plain.partition("=")[2]
    plain = plain.strip(" '\"[]")
    plain = re.sub(r"\s*,\s*", "/", plain)
    plain = re.sub(r"(?:/\s*0\s+(?=[^\s/]))|(?://0/)", "|", plain)
    plain = re.sub(r"\s*/\s*", "/", plain)
    plain = re.sub(r"\s+", "|", plain.strip())
    parts: list[Part] = []
    for number, stretch in enumerate(plain.split("|")):
        if number:
            parts.append(NewChain())
        for piece in stretch.split("/") if stretch else ():
            if (part := _part(piece, text, chains, source)) is not None:
                parts.append(part)
    kept = [p for p in parts if isinstance(p, Kept)]
    if not kept:
        raise ValueError(
            f"motif {text!r} holds no residues of the structure; name some, such as A92-99{_hint(parts, chains)}"
        )
    seen: set[tuple[str, int]] = set()
    for part in kept:
        for row in range(part.begin, part.end):
            if (part.chain.chain_id, row) in seen:
                raise ValueError(
                    f"motif {text!r}: residue {part.chain.chain_id}{residue_name(part.chain, row)} is named twice"
                )
            seen.add((part.chain.chain_id, row))
    contig = Contig(text, tuple(parts))
    if contig.longest > MOST:
        raise ValueError(f"motif {text!r}: {contig.longest:,} residues are more than {MOST:,}")
    return contig


def _part(piece: str, text: str, chains: Sequence[Chain], source: str) -> Part | None:
    if free := _FREE.fullmatch(piece):
        low, high = int(free[1]), int(free[2] or free[1])
        if low > high:
            raise ValueError(
                f"motif {text!r}: the range {piece} of free residues falls; write the smaller number first"
                f"{_hint([piece], chains)}"
            )
        return Free(low, high) if high else None
    named, colon, rest = piece.rpartition(":")
    fitting: list[tuple[Chain, str]] = []
    for chain in chains:
        name = chain.chain_id
        if colon:
            if named == name:
                fitting.append((chain, rest))
        elif name and piece.startswith(name):
            fitting.append((chain, piece[len(name) :]))
    readable = [(chain, found) for chain, tail in fitting if (found := _range(tail, chain.chain_id))]
    if not readable:
        raise ValueError(f"motif {text!r}: {_unreadable(piece, fitting, chains, source)}")
    problems, parts = [], []
    for chain, ends in readable:
        try:
            parts.append(_find(piece, chain, ends, source))
        except ValueError as error:
            problems.append(str(error))
    if not parts:
        raise ValueError(f"motif {text!r}: {problems[0]}")
    if len(parts) > 1:
        options = " or ".join(f"{p.chain.chain_id}:{piece.removeprefix(p.chain.chain_id)}" for p in parts)
        raise ValueError(f"motif {text!r}: {piece} fits more than one chain; write {options}")
    return parts[0]


Ends = tuple[tuple[int, str], tuple[int, str]]


def _range(text: str, chain_id: str) -> Ends | None:
    """((first, code), (last, code)) of ``10-30``, ``52A-54``, ``-5--1``, ``17``, ``10-A30``."""
    if chain_id and not chain_id.isdigit():
        text = text.replace(f"-{chain_id}", "-", 1)
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    first = (int(found[1]), found[2])
    return first, (int(found[3]), found[4]) if found[3] is not None else first


def _find(piece: str, chain: Chain, ends: Ends, source: str) -> Kept:
    """The rows of a range; every residue in it must be there and bonded to the next."""
    rows = {(int(n), str(i)): row for row, (n, i) in enumerate(zip(chain.resnum, chain.icode, strict=True))}
    where = f"chain {chain.chain_id}" if chain.chain_id else "the chain without a name"
    for number, code in ends:
        if (number, code) not in rows:
            others = [f"{n}{i}" for n, i in rows if n == number]
            hint = f"; it has {', '.join(others)}" if others else f"; it has {_stretches(chain)}"
            raise ValueError(f"{source} lacks residue {number}{code} of {where}{hint}")
    begin, end = rows[ends[0]], rows[ends[1]] + 1
    if begin >= end:
        raise ValueError(
            f"the range {piece} falls: {residue_name(chain, end - 1)} comes before {residue_name(chain, begin)}"
        )
    inside = chain.break_after[begin : end - 1]
    for row in (begin + np.flatnonzero(inside)).tolist():
        step = int(chain.resnum[row + 1]) - int(chain.resnum[row])
        if step > 1:
            missing = f"{chain.resnum[row] + 1}" + (f" to {chain.resnum[row + 1] - 1}" if step > 2 else "")
            raise ValueError(
                f"{source} lacks residue{'s' * (step > 2)} {missing} of {where}, within {piece}; it has {_stretches(chain)}"
            )
        gap = float(np.linalg.norm(chain.coords[row + 1, 0] - chain.coords[row, 2]))
        if gap > 2.5:
            raise ValueError(
                f"{where} of {source} is broken within {piece}: {gap:.1f} A from C of {residue_name(chain, row)} to N of "
                f"{residue_name(chain, row + 1)}; take parts on one side, or put free residues between them"
            )
    return Kept(piece, chain, begin, end)


def _stretches(chain: Chain, most: int = 6) -> str:
    """``1 to 64, 68 to 231``: the residues of a chain, by the gaps of their numbers."""
    step = np.append(np.diff(chain.resnum), 99)
    is_end = chain.break_after & ((step < 0) | (step > 1))
    is_end[-1] = True
    ends = np.flatnonzero(is_end)
    begins = [0, *(ends[:-1] + 1).tolist()]
    shown = [
        f"{residue_name(chain, a)} to {residue_name(chain, b)}" for a, b in zip(begins, ends.tolist(), strict=True)
    ]
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def _unreadable(piece: str, fitting: list[tuple[Chain, str]], chains: Sequence[Chain], source: str) -> str:
    names = ", ".join(repr(c.chain_id) for c in chains)
    looks = re.fullmatch(r"([A-Za-z][A-Za-z0-9]*?):?(-?\d+[A-Za-z]?(?:--?\d+[A-Za-z]?)?)", piece)
    if looks and not fitting:
        return f"{source} has no chain {looks[1]}; it has {names}"
    return (
        f"cannot read {piece!r}; write a chain and a range such as A92-99, H52A-54 or A-5--1, a number of free residues "
        f"such as 16 or a range of them such as 5-15 (the chains of {source}: {names})"
    )


def _hint(parts: Sequence[object], chains: Sequence[Chain]) -> str:
    """How to name residues of a chain that is called by a number, where somebody may have meant to."""
    for part in map(str, parts):
        for chain in chains:
            rest = part.removeprefix(chain.chain_id)
            if chain.chain_id and rest not in (part, "") and _range(rest, chain.chain_id):
                return f" ({part} are free residues; residues of chain {chain.chain_id!r} are written {chain.chain_id}:{rest})"
    return ""


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _compose(ranges: Sequence[Free], total: int, rng: random.Random) -> list[int]:
    """Numbers within the ranges that sum to ``total``, uniform among all such."""
    # ways[i][s]: how the ranges from i on can sum to s
    ways = [[1] + [0] * total]
    for part in reversed(ranges):
        after = ways[0]
        ways.insert(
            0, [sum(after[max(0, s - part.high) : s - part.low + 1]) if s >= part.low else 0 for s in range(total + 1)]
        )
    drawn = []
    for part, after in zip(ranges, ways[1:], strict=True):
        options = range(part.low, min(part.high, total) + 1)
        number = rng.choices(options, [after[total - k] for k in options])[0]
        drawn.append(number)
        total -= number
    return drawn
