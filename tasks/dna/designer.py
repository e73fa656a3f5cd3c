"""Sequence design in one call: a class or an oracle to aim at, letters and motifs to keep, sites to avoid."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.guidance import ClassifierFree, Oracle
from manifoldflow.tasks.dna.alphabet import decode, encode
from manifoldflow.tasks.dna.flow import (
    DEFAULT_CHECKPOINT,
    DnaConfig,
    check_length,
    class_name,
    load_flow,
    sampler,
    to_state,
    to_tokens,
)
from manifoldflow.tasks.dna.metrics import gc_content
from manifoldflow.tasks.dna.motifs import find_sites
from manifoldflow.tasks.dna.orders import BATCH, Order, Progress, make_order, place


@dataclass(frozen=True)
class Design:
    """One designed sequence.

    Attributes:
        sequence: letters.
        label: the class it was drawn for, or None.
        kept: places ``[start, end)`` of fixed letters and motifs, from 0.
        gc: share of C and G.
    """

    sequence: str
    label: str | None
    kept: tuple[tuple[int, int], ...]
    gc: float


class SequenceDesigner:
    """Designs sequences with a trained flow, and scores sequences by it.

    Args:
        flow: of :func:`manifoldflow.tasks.dna.flow.build`, any representation.
        config: its configuration.
    """

    def __init__(self, flow: mf.Flow, config: DnaConfig) -> None:
        self.flow, self.config = flow.eval(), config

    @classmethod
    def load(cls, checkpoint: str | Path = DEFAULT_CHECKPOINT) -> "SequenceDesigner":
        """A designer from a model file, a run folder, or the name of an embedded model."""
        return cls(*load_flow(checkpoint))

    def design(self, n: int, **options: Any) -> list[Design]:
        """``n`` sequences; the options are those of :meth:`stream`."""
        return list(self.stream(n, **options))

    def stream(
        self,
        n: int,
        *,
        label: str | None = None,
        guidance: float = 1.0,
        oracle: Callable[[Tensor], Tensor] | None = None,
        oracle_scale: float = 1.0,
        fixed: str | None = None,
        motifs: Sequence[str | tuple[str, int | None]] = (),
        gc_range: tuple[float, float] = (0.0, 1.0),
        avoid_sites: Sequence[str] = (),
        length: int | None = None,
        steps: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        rounds: int = 20,
        batch_size: int = BATCH,
    ) -> Iterator[Design]:
        """Yield designs as they are found.

        Letters and motifs are pinned while the flow fills in the rest; GC content and sites are checked afterwards, and what
        fails is drawn again.

        Args:
            n: how many.
            label: class; guidance: its weight, 1 for the conditional model as it is.
            oracle: a score of probabilities ``(B, L, 4)``, such as a motif's expected score; oracle_scale: its weight.
            fixed: a template of the length of the sequences, letters where they are fixed and N where they are free.
            motifs: words of letters to keep; a place of their start (from 0) with each, or one is drawn for every sequence.
            gc_range: least and largest share of C and G.
            avoid_sites: IUPAC patterns, such as GAATTC, that may lie on neither strand.
            length: of the sequences; that of the training by default, which that of the template must be too unless this says
                otherwise.
            steps: sampling steps; the autoregressive baseline takes one for every letter, whatever this says.
            temperature: of the letters, for representations by tokens.
            seed: of everything: the same call gives the same sequences.
            rounds: calls of the model of which none brings a new design before giving up.
            batch_size: sequences at once.

        Raises:
            ValueError: what is asked cannot be met: a class that the flow does not know, a template of another length, motifs
                that do not fit, a fixed part that holds a site to avoid, a GC share that what is kept rules out.
            RuntimeError: too few sequences pass; says how many of how many did.
        """
        if batch_size < 1 or rounds < 1:
            raise ValueError(f"batch_size and rounds must be at least 1, got {batch_size} and {rounds}")
        order = make_order(
            self.config,
            n,
            label=label,
            guidance=guidance,
            fixed=fixed,
            motifs=motifs,
            gc_range=gc_range,
            avoid_sites=avoid_sites,
            length=length,
            steps=steps,
            temperature=temperature,
        )
        generator = torch.Generator().manual_seed(seed)
        progress = Progress(order, rounds, batch_size)
        while not progress.is_done:
            rows = progress.wanted
            made = self.draw([order], [rows], generator=generator, oracle=oracle, oracle_scale=oracle_scale)[0]
            if isinstance(made, ValueError):
                raise made
            yield from progress.take(made, rows)

    def draw(
        self,
        orders: Sequence[Order],
        rows: Sequence[int],
        *,
        generator: torch.Generator,
        oracle: Callable[[Tensor], Tensor] | None = None,
        oracle_scale: float = 1.0,
    ) -> list[list[Design] | ValueError]:
        """Draw sequences for several orders in one call of the model; of each, those that pass.

        Args:
            orders: of :func:`manifoldflow.tasks.dna.orders.make_order`, all of one ``shape``.
            rows: sequences to draw for each.
            generator: of every draw.
            oracle, oracle_scale: as for :meth:`stream`, of all of them.

        Returns:
            For each order its designs, or the error of one whose motifs find no room; the others do not suffer from it.

        Raises:
            ValueError: orders of several shapes.
        """
        if len({order.shape for order in orders}) != 1 or len(orders) != len(rows):
            raise ValueError("orders that are drawn together need one length, guidance, steps and temperature")
        length, guidance, steps, temperature = orders[0].shape
        out: list[list[Design] | ValueError] = [[] for _ in orders]
        parts, owner = [], []
        for number, (order, count) in enumerate(zip(orders, rows, strict=True)):
            try:
                parts.append(place(order, count, generator))
                owner += [number] * count
            except ValueError as error:
                out[number] = error
        if not parts:
            return out
        tokens, kept = torch.cat([t for t, _ in parts]), torch.cat([k for _, k in parts])
        is_kept = bool(kept.any())
        flow = ClassifierFree(self.flow, guidance) if guidance != 1 else self.flow
        state = (Oracle(flow, oracle, oracle_scale) if oracle is not None else flow).sample(
            (len(tokens), length),
            steps=steps,
            method=sampler(self.config, temperature),
            cond=self._classes([orders[i].label for i in owner]),
            known=to_state(self.flow, tokens) if is_kept else None,
            known_mask=kept if is_kept else None,
            generator=generator,
        )
        made = to_tokens(state)
        share = gc_content(made)
        passes = _passes(made, share, [orders[i] for i in owner])
        found = passes.nonzero().squeeze(1)
        columns = (found.tolist(), decode(made[found]), _runs(kept[found]), share[found].tolist())
        for row, letters, runs, gc in zip(*columns, strict=True):
            designs = out[owner[row]]
            assert isinstance(designs, list)
            designs.append(Design(letters, orders[owner[row]].label, runs, gc))
        return out

    def score(
        self,
        sequences: Sequence[str],
        *,
        label: str | Sequence[str | None] | None = None,
        samples: int = 64,
        seed: int = 0,
    ) -> list[float]:
        """A lower bound on the log-probability of every sequence, nats per letter: larger is more like the training data.

        Args:
            sequences: letters of equal length, that of the training (or one of several).
            label: class under which to score, or one for every sequence.
            samples: times that the bound is averaged over.
            seed: of the noise.

        Raises:
            ValueError: a letter that is no DNA, other lengths, or a representation without a bound.
        """
        labels = [label] * len(sequences) if label is None or isinstance(label, str) else list(label)
        if len(labels) != len(sequences):
            raise ValueError(f"{len(labels)} labels for {len(sequences)} sequences: give one label, or one for each")
        check_scorable(self.config, sequences, labels)
        if not sequences:
            return []
        tokens = encode(sequences)[0]
        value = self.flow.elbo(
            tokens,
            samples=samples,
            cond=self._classes(labels),
            generator=torch.Generator().manual_seed(seed),
        )
        return (value / tokens.shape[1]).tolist()

    def _classes(self, labels: Sequence[str | None]) -> Tensor | None:
        """The condition of rows of which some may have none: theirs is the number that the networks keep for hidden classes."""
        if all(label is None for label in labels):
            return None
        number: dict[str | None, int] = {name: i for i, name in enumerate(self.config.class_names)}
        number[None] = len(number)
        return torch.tensor([number[class_name(self.config, label)] for label in labels])


def check_scorable(config: DnaConfig, sequences: Sequence[str], labels: Sequence[str | None]) -> None:
    """Whether a flow of this configuration can score these sequences under these classes.

    Raises:
        ValueError: it cannot; says why.
    """
    if not can_score(config):
        raise ValueError(f"scores need a flow of tokens (masking or uniform); {config.representation} has no bound yet")
    for label in dict.fromkeys(labels):
        class_name(config, label)
    if sequences:
        tokens, mask, _ = encode(sequences)
        if not bool(mask.all()):
            lengths = sorted({len(sequence) for sequence in sequences})
            raise ValueError(
                f"sequences to score must have one length, these have {lengths[0]} to {lengths[-1]} letters"
            )
        check_length(config, tokens.shape[1], "the sequences to score have")


def can_score(config: DnaConfig) -> bool:
    """Whether flows of this configuration have a bound on the probability of a sequence."""
    return config.representation in ("masking", "uniform", "autoregressive")


def _passes(made: Tensor, share: Tensor, orders: Sequence[Order]) -> Tensor:
    """Which rows have the GC share and none of the sites of their order, bool ``(B,)``."""
    least, most = torch.tensor([order.gc_range for order in orders]).unbind(-1)
    passes = (share >= least - 1e-6) & (share <= most + 1e-6)
    for site in dict.fromkeys(site for order in dict.fromkeys(orders) for site in order.avoid_sites):
        rows = torch.tensor([i for i, order in enumerate(orders) if site in order.avoid_sites])
        passes[rows] &= ~find_sites(made[rows], site).any(1)
    return passes


def _runs(kept: Tensor) -> list[tuple[tuple[int, int], ...]]:
    """Runs of True in every row of ``(B, L)`` as ``[start, end)``."""
    edge = torch.nn.functional.pad(kept.int(), (1, 1)).diff()
    runs: list[list[tuple[int, int]]] = [[] for _ in range(len(kept))]
    for (row, start), end in zip((edge == 1).nonzero().tolist(), (edge == -1).nonzero()[:, 1].tolist(), strict=True):
        runs[row].append((start, end))
    return [tuple(some) for some in runs]
