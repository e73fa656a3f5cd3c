"""Position weight matrices: reading, scanning with all of them at once, thresholds, and sites of a pattern."""

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from manifoldflow.tasks.dna.alphabet import LETTERS, allowed_letters

CELLS = 2**24
"""Numbers that a scan holds at once; results do not depend on it."""


@dataclass(frozen=True)
class Motif:
    """Counts, or probabilities, of the letters at every place of a binding site.

    Args:
        name: such as CTCF.
        identifier: such as MA0139.1.
        counts: one tuple (A, C, G, T) a place, not negative.
    """

    name: str
    identifier: str
    counts: tuple[tuple[float, float, float, float], ...]

    def __post_init__(self) -> None:
        # "not >= 0" instead of "< 0": it holds for NaN too.
        if not self.counts or any(
            len(row) != 4 or not all(v >= 0 for v in row) or not 0 < sum(row) < math.inf for row in self.counts
        ):
            raise ValueError(f"motif {self.identifier} {self.name}: every place needs four counts, not all of them 0")

    def __len__(self) -> int:
        return len(self.counts)

    def probabilities(self, pseudocount: float = 0.5) -> Tensor:
        """``(W, 4)`` in float64: (count + pseudocount) / total."""
        table = torch.tensor(self.counts, dtype=torch.float64) + pseudocount
        return table / table.sum(-1, keepdim=True)

    def log_odds(self, pseudocount: float = 0.5, background: Sequence[float] = (0.25,) * 4) -> Tensor:
        """:math:`\\log_2 (p / b)`, ``(W, 4)`` in bits and float64.

        Raises:
            ValueError: a letter of probability 0, whose score would be minus infinity.
        """
        if pseudocount < 0 or (pseudocount == 0 and min(map(min, self.counts)) == 0):
            raise ValueError(f"motif {self.identifier} has counts of 0: pseudocount must be above 0, got {pseudocount}")
        if len(background) != 4 or min(background) <= 0 or abs(sum(background) - 1) > 1e-6:
            raise ValueError(f"background must be four frequencies above 0 of sum 1, got {tuple(background)}")
        return torch.log2(self.probabilities(pseudocount) / torch.tensor(background, dtype=torch.float64))

    def reverse_complement(self) -> "Motif":
        """The same site read on the other strand."""
        return Motif(self.name, self.identifier, tuple(row[::-1] for row in self.counts[::-1]))  # type: ignore[misc]


def read_motifs(path: str | Path) -> list[Motif]:
    """Motifs of a JASPAR (.pfm), MEME or TRANSFAC file, also gzipped; which one is told by the content.

    Raises:
        FileNotFoundError: no such file.
        ValueError: none of the formats, or no motifs in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    raw = path.read_bytes()
    try:
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither text nor a whole gzip file: {error}") from None
    try:
        found = _parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not found:
        raise ValueError(f"{path} holds no motifs")
    return found


def _parse(text: str) -> list[Motif]:
    if re.search(r"^MEME\s", text, re.MULTILINE):  # the output of the program begins with a line of asterisks
        return _read_meme(text)
    if re.search(r"^P[O0]\s", text, re.MULTILINE):
        return _read_transfac(text)
    if text.lstrip().startswith(">"):
        return _read_jaspar(text)
    raise ValueError("no JASPAR, MEME or TRANSFAC file")


def _numbers(line: str) -> list[float]:
    return [float(v) for v in re.findall(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", line)]


def _read_jaspar(text: str) -> list[Motif]:
    made = []
    for record in text.lstrip()[1:].split("\n>"):
        head, *rows = record.strip().split("\n")
        identifier, _, name = head.strip().partition("\t" if "\t" in head else " ")
        table: dict[str, list[float]] = {}
        for order, row in enumerate(line for line in rows if line.strip()):
            letter = row.strip()[0].upper()
            known = letter in LETTERS
            if not known and order > 3:
                raise ValueError(f"JASPAR motif {identifier} has more than four rows of counts")
            table[letter if known else LETTERS[order]] = _numbers(row.strip()[1:] if known else row)
        if set(table) != set(LETTERS) or len({len(row) for row in table.values()}) != 1:
            have = ", ".join(f"{c} {len(row)}" for c, row in table.items()) or "none"
            raise ValueError(f"JASPAR motif {identifier} needs rows A, C, G, T of one length; it has {have}")
        made.append(_motif(name.strip() or identifier, identifier, zip(*(table[c] for c in LETTERS), strict=True)))
    return made


def _read_meme(text: str) -> list[Motif]:
    made = []
    for record in re.split(r"^MOTIF\s+", text, flags=re.MULTILINE)[1:]:
        words = record.split("\n", 1)[0].split()
        matrix = re.search(r"letter-probability matrix:[^\n]*\n((?:[ \t]*[\d.].*\n?)+)", record)
        if matrix is None:
            raise ValueError(f"MEME motif {words[0]} has no letter-probability matrix")
        sites = re.search(r"nsites\s*=\s*(\d+)", record)
        count = float(sites.group(1)) if sites and float(sites.group(1)) > 0 else 20.0
        rows = [[count * v for v in _numbers(line)] for line in matrix.group(1).strip().split("\n")]
        width = re.search(r"\bw\s*=\s*(\d+)", record)
        if width and int(width.group(1)) != len(rows):
            raise ValueError(f"MEME motif {words[0]} says w= {width.group(1)} and has {len(rows)} rows")
        made.append(_motif(words[1] if len(words) > 1 else words[0], words[0], rows))
    return made


def _read_transfac(text: str) -> list[Motif]:
    made = []
    for record in re.split(r"^//\s*$", text, flags=re.MULTILINE):
        rows = [_numbers(line.split(maxsplit=1)[1])[:4] for line in record.split("\n") if re.match(r"\d+\s", line)]
        if not rows:
            continue
        head = re.search(r"^P[O0]\s+(.*)$", record, re.MULTILINE)
        order = head.group(1).upper().split()[:4] if head else list(LETTERS)
        if sorted(order) != sorted(LETTERS):
            raise ValueError(f"TRANSFAC matrix with the columns {' '.join(order)}, expected A, C, G and T")
        if short := [i for i, row in enumerate(rows) if len(row) < 4]:
            raise ValueError(f"TRANSFAC matrix whose row {short[0] + 1} has fewer than four counts")
        rows = [[row[order.index(letter)] for letter in LETTERS] for row in rows]
        field = {key: value for key, value in re.findall(r"^(AC|ID|NA)\s+(\S.*?)\s*$", record, re.MULTILINE)}
        identifier = field.get("AC", field.get("ID", ""))
        made.append(_motif(field.get("ID", identifier), identifier, rows))
    return made


def _motif(name: str, identifier: str, rows: object) -> Motif:
    return Motif(name, identifier, tuple(tuple(float(v) for v in row) for row in rows))  # type: ignore[attr-defined, misc]


def find_motif(motifs: Sequence[Motif], name: str) -> Motif:
    """The motif with this name or identifier.

    Raises:
        ValueError: none, with those that are near.
    """
    wanted = name.lower()
    for motif in motifs:
        if wanted in (motif.name.lower(), motif.identifier.lower(), motif.identifier.split(".")[0].lower()):
            return motif
    near = [f"{m.identifier} {m.name}" for m in motifs if wanted[:3] in m.name.lower()][:8]
    raise ValueError(f"no motif {name!r} among {len(motifs)}" + (f"; near: {', '.join(near)}" if near else ""))


class Hits(NamedTuple):
    """The best place of every motif in every sequence.

    Attributes:
        score: bits, ``(B, M)``; minus infinity where a sequence is shorter than the motif.
        start: first position of the site, counted on the strand as given, ``(B, M)``.
        on_reverse: bool ``(B, M)``.
    """

    score: Tensor
    start: Tensor
    on_reverse: Tensor


def kernels(motifs: Sequence[Motif], *, pseudocount: float = 0.5, background: Sequence[float] = (0.25,) * 4) -> Tensor:
    """Log-odds of all motifs ``(M, 4, W)`` in float32, short ones padded with 0 at the end.

    Raises:
        ValueError: no motifs.
    """
    if not motifs:
        raise ValueError("a scan needs at least one motif, got none")
    width = max(map(len, motifs))
    made = torch.zeros(len(motifs), 4, width)
    for row, motif in zip(made, motifs, strict=True):
        row[:, : len(motif)] = motif.log_odds(pseudocount, background).T
    return made


def score_all(
    x: Tensor,
    motifs: Sequence[Motif],
    *,
    mask: Tensor | None = None,
    pseudocount: float = 0.5,
    background: Sequence[float] = (0.25,) * 4,
) -> Tensor:
    """Scores of all motifs at all places, bits ``(B, M, L)``: of the site that starts there.

    One convolution. Differentiable in probabilities, where the score is that expected of independent letters.

    Args:
        x: tokens ``(B, L)``, or probabilities of the letters ``(B, L, 4)``.
        motifs: to look for.
        mask: bool ``(B, L)`` of real positions.
        pseudocount, background: of the log-odds.

    Returns:
        Minus infinity where a site would reach beyond the end.
    """
    hot = x if x.is_floating_point() else torch.nn.functional.one_hot(x, 4).float()
    weight = kernels(motifs, pseudocount=pseudocount, background=background).to(hot)
    padded = torch.nn.functional.pad(hot.mT, (0, weight.shape[-1] - 1))
    score = torch.nn.functional.conv1d(padded, weight)
    length = torch.full((len(x),), x.shape[1], device=x.device) if mask is None else mask.sum(-1)
    width = torch.tensor([len(m) for m in motifs], device=x.device)
    place = torch.arange(x.shape[1], device=x.device)
    reaches = place + width[None, :, None] > length[:, None, None]
    return score.masked_fill(reaches, -torch.inf)


def best_hits(
    tokens: Tensor,
    motifs: Sequence[Motif],
    *,
    both_strands: bool = True,
    mask: Tensor | None = None,
    pseudocount: float = 0.5,
    background: Sequence[float] = (0.25,) * 4,
    cells: int = CELLS,
) -> Hits:
    """The best site of every motif in every sequence, on either strand.

    Args:
        tokens: ``(B, L)``.
        motifs: to look for.
        both_strands: also look for their reverse complements, at the same places.
        mask: bool ``(B, L)``.
        pseudocount, background: of the log-odds.
        cells: bound on memory.
    """
    if not motifs or tokens.shape[1] == 0:
        raise ValueError(f"nothing to scan: {len(motifs)} motifs, sequences of {tokens.shape[1]} letters")
    if len(tokens) == 0:
        none = torch.zeros(0, len(motifs), dtype=torch.int64, device=tokens.device)
        return Hits(none.float(), none, none.bool())
    strands = [list(motifs)] + ([[m.reverse_complement() for m in motifs]] if both_strands else [])
    swapped = (background[3], background[2], background[1], background[0])
    size = max(1, cells // (len(motifs) * tokens.shape[1]))
    parts = []
    for at in range(0, len(tokens), size):
        some, real = tokens[at : at + size], None if mask is None else mask[at : at + size]
        best = []
        for some_motifs, law in zip(strands, (background, swapped), strict=False):
            score = score_all(some, some_motifs, mask=real, pseudocount=pseudocount, background=law)
            best.append(score.max(-1))
        forward = best[0]
        if not both_strands:
            parts.append((forward.values, forward.indices, torch.zeros_like(forward.indices, dtype=torch.bool)))
            continue
        turned = best[1].values > forward.values
        values = torch.where(turned, best[1].values, forward.values)
        parts.append((values, torch.where(turned, best[1].indices, forward.indices), turned))
    return Hits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def threshold(
    motif: Motif,
    p_value: float,
    *,
    pseudocount: float = 0.5,
    background: Sequence[float] = (0.25,) * 4,
    bins_per_bit: int = 1000,
) -> float:
    """The score in bits that a random site of background letters reaches with probability at most ``p_value``.

    By the exact law of the score, rounded to ``1 / bins_per_bit`` a place: the convolution of the laws of the places (Touzet &
    Varre 2007). Rounding moves the score of a site by at most W / 2 bins, which is added, so that ``p_value`` is never exceeded.
    The chance is that of one place on one strand.

    Raises:
        ValueError: ``p_value`` is not between 0 and 1.
    """
    if not 0 < p_value < 1:
        raise ValueError(f"p_value must lie between 0 and 1, got {p_value}")
    table = np.rint(motif.log_odds(pseudocount, background).numpy() * bins_per_bit).astype(int)
    low = table.min(1)
    law = np.ones(1)
    for row, least in zip(table, low, strict=True):
        longer = np.zeros(len(law) + int(row.max() - least))
        for letter in range(4):
            shift = int(row[letter] - least)
            longer[shift : shift + len(law)] += background[letter] * law
        law = longer
    tail = law[::-1].cumsum()[::-1]  # chance of at least this score
    first = int(np.argmax(tail <= p_value * (1 + 1e-9))) if tail[-1] <= p_value else len(tail)
    # Sites that must not pass have a rounded score of at most first - 1, and a score of at most W / 2 more.
    return float(first - 1 + low.sum() + (len(table) + 1) / 2) / bins_per_bit


def hit_rate(
    tokens: Tensor, motif: Motif, least: float, *, mask: Tensor | None = None, both_strands: bool = True
) -> float:
    """Share of the sequences with a site of at least ``least`` bits."""
    return float((best_hits(tokens, [motif], mask=mask, both_strands=both_strands).score[:, 0] >= least).float().mean())


def position_profile(
    tokens: Tensor, motif: Motif, least: float, *, mask: Tensor | None = None, both_strands: bool = False
) -> Tensor:
    """Share of the sequences with a site of at least ``least`` bits at every start, ``(L,)``."""
    score = score_all(tokens, [motif], mask=mask)[:, 0]
    if both_strands:
        score = score.maximum(score_all(tokens, [motif.reverse_complement()], mask=mask)[:, 0])
    return (score >= least).float().mean(0)


def find_sites(tokens: Tensor, pattern: str, *, both_strands: bool = True, mask: Tensor | None = None) -> Tensor:
    """Where an IUPAC pattern such as GAATTC starts, bool ``(B, L)``.

    Args:
        tokens: ``(B, L)``.
        pattern: letters and codes.
        both_strands: also where it lies on the other strand.
        mask: bool ``(B, L)``.
    """
    allowed = allowed_letters(pattern).to(tokens.device)
    found = _matches(tokens, allowed, mask)
    return found | _matches(tokens, allowed.flip(0, 1), mask) if both_strands else found


def _matches(tokens: Tensor, allowed: Tensor, mask: Tensor | None) -> Tensor:
    width, length = len(allowed), tokens.shape[1]
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    found = torch.zeros_like(real)
    if width > length:
        return found
    windows = tokens.unfold(1, width, 1)
    fits = allowed[torch.arange(width, device=tokens.device), windows].all(-1)
    found[:, : length - width + 1] = fits & real.unfold(1, width, 1).all(-1)
    return found
