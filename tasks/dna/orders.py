"""What one caller wants designed: checked at once, and put into templates of letters that are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from manifoldflow.tasks.dna.alphabet import IUPAC, allowed_letters, decode, encode
from manifoldflow.tasks.dna.flow import DnaConfig, check_length, class_name, sampler
from manifoldflow.tasks.dna.motifs import find_sites

MOST = 100_000
"""Sequences that one call may ask for."""

BATCH = 256
"""Sequences that a call of the model draws at most, unless told otherwise."""

TRIES = 50
"""Times that motifs without a place are thrown anew before they count as too many for the room there is."""

T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """One order of designs, as :func:`make_order` checked it: letters and numbers, so that it may go to another process.

    Attributes:
        n: sequences that are wanted.
        label: class, or None.
        template: a letter for every position that is fixed, N for those that are free.
        motifs: words to keep, each with its start, or None for anywhere.
        gc_range: least and largest share of C and G.
        avoid_sites: IUPAC patterns that lie on neither strand.
        guidance: weight of the class.
        steps: of the sampler.
        temperature: of the letters.
    """

    n: int
    label: str | None
    template: str
    motifs: tuple[tuple[str, int | None], ...] = ()
    gc_range: tuple[float, float] = (0.0, 1.0)
    avoid_sites: tuple[str, ...] = ()
    guidance: float = 1.0
    steps: int = 64
    temperature: float = 1.0

    @property
    def shape(self) -> tuple[int, float, int, float]:
        """What orders must share to be drawn in one call of the model."""
        return len(self.template), self.guidance, self.steps, self.temperature

    @property
    def may_fail(self) -> bool:
        """Whether a sequence can be drawn that does not pass."""
        return bool(self.avoid_sites) or self.gc_range[0] > 0 or self.gc_range[1] < 1


def make_order(
    config: DnaConfig,
    n: int,
    *,
    label: str | None = None,
    guidance: float = 1.0,
    fixed: str | None = None,
    motifs: Sequence[str | tuple[str, int | None]] = (),
    gc_range: tuple[float, float] = (0.0, 1.0),
    avoid_sites: Sequence[str] = (),
    length: int | None = None,
    steps: int = 64,
    temperature: float = 1.0,
) -> Order:
    """Check what is asked of a flow with this configuration; the arguments are those of ``SequenceDesigner.stream``.

    Raises:
        ValueError: it cannot be met; says why.
    """
    if not 1 <= n <= MOST:
        raise ValueError(f"n must lie between 1 and {MOST}, got {n}")
    least, most = gc_range
    if not 0 <= least <= most <= 1:
        raise ValueError(f"gc_range must be two shares 0 <= least <= most <= 1, got {tuple(gc_range)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not math.isfinite(guidance):
        raise ValueError(f"guidance must be a finite number, got {guidance}")
    if guidance != 1 and label is None:
        raise ValueError("guidance strengthens a class: give label= too")
    label = class_name(config, label)
    sampler(config, temperature)
    template = _template(config, fixed, length)
    words = tuple(_word(motif, len(template)) for motif in motifs)
    order = Order(
        n,
        label,
        template,
        words,
        (float(least), float(most)),
        tuple(site.upper() for site in avoid_sites),
        float(guidance),
        # the baseline draws one letter a step
        len(template) if config.representation == "autoregressive" else int(steps),
        float(temperature),
    )
    _check_kept(order)
    _check_share(order)
    return order


def place(order: Order, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Templates with the motifs put in, ``(count, L)``, and which letters are kept.

    Motifs with a place come first, then long ones. Where a motif finds no room any more, all that have no place are thrown anew.

    Raises:
        ValueError: the motifs do not fit beside each other and the fixed letters.
    """
    template, is_fixed, words = _pins(order)
    tokens, kept = template.repeat(count, 1), is_fixed.repeat(count, 1)
    if not words:
        return tokens, kept
    todo = torch.arange(count)
    lost = 0
    for _ in range(TRIES):
        some, held, lacking = _throw(tokens[todo], kept[todo], words, generator)
        fits = lacking < 0
        tokens[todo[fits]], kept[todo[fits]] = some[fits], held[fits]
        lost = int(lacking.max())
        todo = todo[~fits]
        if len(todo) == 0:
            return tokens, kept
    raise ValueError(f"the motif {decode(words[lost][0][None])[0]} finds no room beside what else is to be kept")


@dataclass
class Progress:
    """How far an order is: how many to draw next, and when to give up.

    Args:
        order: what is wanted.
        rounds: calls that bring nothing before giving up; each draws more than the one before.
        batch_size: sequences that a call draws at most.
    """

    order: Order
    rounds: int = 20
    batch_size: int = BATCH
    found: int = field(default=0, init=False)
    drawn: int = field(default=0, init=False)
    idle: int = field(default=0, init=False)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to draw."""
        return self.found >= self.order.n

    @property
    def wanted(self) -> int:
        """Sequences to draw in the next call."""
        left = self.order.n - self.found
        if self.order.may_fail and self.drawn:
            left = math.ceil(
                left * (self.drawn + 2) / (self.found + 1)
            )  # as many as should be enough by what passed so far
        return min(left, self.batch_size)

    def take(self, passed: Sequence[T], drawn: int) -> list[T]:
        """Those that are still wanted of what passed of ``drawn`` sequences.

        Raises:
            RuntimeError: it is time to give up; says how many of how many passed.
        """
        kept = list(passed[: self.order.n - self.found])
        self.found += len(kept)
        self.drawn += drawn
        self.idle = 0 if kept else self.idle + 1
        if self.idle >= self.rounds and not self.is_done:
            least, most = self.order.gc_range
            asked, advice = [], []
            if least > 0 or most < 1:
                asked.append(f"a GC share of {least:g} to {most:g}")
                advice.append("widen gc_range")
            if sites := ", ".join(self.order.avoid_sites):
                asked.append(f"no site {sites}")
                advice.append("avoid fewer sites")
            raise RuntimeError(
                f"only {self.found} of {self.drawn} sequences had {' and '.join(asked)}; {' or '.join(advice)}, ask for "
                "another label, or try longer (rounds= in Python)"
            )
        return kept


def _template(config: DnaConfig, fixed: str | None, length: int | None) -> str:
    size = length if length is not None else (len(fixed) if fixed is not None else config.length)
    if length is not None and not 1 <= size <= config.length:
        raise ValueError(f"length must lie between 1 and {config.length}, got {size}")
    if fixed is None:
        return "N" * size
    if len(fixed) != size:
        raise ValueError(f"fixed has {len(fixed)} letters, but the sequences have {size}; fill it up with N")
    if length is None:
        try:
            check_length(config, size, "fixed has")
        except ValueError as error:
            raise ValueError(f"{error}; fill it up with N, or say length={size} to design such short ones") from None
    is_free = [c in "Nn" for c in fixed]
    letters = decode(encode(["".join("A" if f else c for c, f in zip(fixed, is_free, strict=True))])[0])[0]
    return "".join("N" if f else c for c, f in zip(letters, is_free, strict=True))


def _word(motif: str | tuple[str, int | None], length: int) -> tuple[str, int | None]:
    letters, start = (motif, None) if isinstance(motif, str) else motif
    if not letters:
        raise ValueError("a motif to keep is empty")
    word = decode(encode([letters])[0])[0]
    last = length - len(word)
    if last < 0 or (start is not None and not 0 <= start <= last):
        where = "" if start is None else f" at {start}"
        raise ValueError(f"motif {letters} of {len(word)} letters does not fit{where} into {length}")
    return word, start


def _check_kept(order: Order) -> None:
    template, is_fixed, words = _pins(order)
    for site in order.avoid_sites:
        allowed_letters(site)
        if bool(find_sites(template[None], site, mask=is_fixed[None]).any()):
            raise ValueError(f"the fixed letters hold the site {site} that is to be avoided")
        for word, _ in words:
            if bool(find_sites(word[None], site).any()):
                raise ValueError(f"the motif {decode(word[None])[0]} holds the site {site} that is to be avoided")


def _check_share(order: Order) -> None:
    """Whether any sequence at all can have the GC share, with the letters that are kept and the sites that are avoided."""
    length, (least, most) = len(order.template), order.gc_range
    template, is_fixed, words = _pins(order)
    template, is_fixed = template.clone(), is_fixed.clone()
    loose = []  # without a place, so beside all others
    for word, start in words:
        if start is None:
            loose.append(word)
        else:
            template[start : start + len(word)] = word
            is_fixed[start : start + len(word)] = True
    held = torch.cat([template[is_fixed], *loose])
    count = int(((held == 1) | (held == 2)).sum())
    free = length - len(held)
    banned = {letter for site in order.avoid_sites if len(site) == 1 for letter in IUPAC[site]}
    banned |= {"TGCA"["ACGT".index(letter)] for letter in banned}  # on either strand
    if free > 0 and len(banned) == 4:
        raise ValueError(f"avoid_sites {', '.join(order.avoid_sites)} leave no letter for the {free} free places")
    lowest = count + (free if banned >= {"A", "T"} else 0)
    highest = count + (0 if banned >= {"C", "G"} else free)
    first = math.ceil((least - 1e-6) * length)
    last = math.floor((most + 1e-6) * length)
    if first > last:
        raise ValueError(
            f"gc_range {least:g} to {most:g} holds no share that {length} letters can have (the next are {last / length:.4g} and "
            f"{first / length:.4g}); widen it"
        )
    if last < lowest or first > highest:
        raise ValueError(
            f"gc_range {least:g} to {most:g} cannot be met: with the letters to keep and the sites to avoid, the share lies "
            f"between {lowest / length:.3g} and {highest / length:.3g}; change gc_range or what is kept"
        )


@lru_cache(maxsize=512)
def _pins(order: Order) -> tuple[Tensor, Tensor, list[tuple[Tensor, int | None]]]:
    """The template's tokens and what of it is fixed, ``(L,)``, and the words in the order in which they are put in."""
    free = torch.tensor([c == "N" for c in order.template])
    tokens = encode([order.template.replace("N", "A")])[0][0]
    words = [(encode([letters])[0][0], start) for letters, start in order.motifs]
    return tokens, ~free, sorted(words, key=lambda w: (w[1] is None, -len(w[0])))


def _throw(
    tokens: Tensor, kept: Tensor, words: Sequence[tuple[Tensor, int | None]], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and kept letters with all words put in, and the number of the word without room, or -1, ``(B,)``."""
    tokens, kept = tokens.clone(), kept.clone()
    lacking = torch.full((len(tokens),), -1)
    for number, (word, start) in enumerate(words):
        width = len(word)
        overlap = kept.unfold(1, width, 1)
        if start is None:
            room = ~overlap.any(-1)
        else:
            clash = (overlap & (tokens.unfold(1, width, 1) != word)).any(-1)
            room = torch.zeros_like(clash)
            room[:, start] = ~clash[:, start]
        has_room = room.any(-1)
        lacking = torch.where((lacking < 0) & ~has_room, number, lacking)
        chance = torch.where(has_room[:, None], room, True).double()  # rows without room are thrown away
        at = torch.multinomial(chance, 1, generator=generator) + torch.arange(width)
        tokens.scatter_(1, at, word.expand(len(tokens), -1))
        kept.scatter_(1, at, torch.ones_like(at, dtype=torch.bool))
    return tokens, kept, lacking
