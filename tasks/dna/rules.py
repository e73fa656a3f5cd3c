"""The trivial baselines of the table: what rules of a page score by the measures that models are judged by."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.tasks.common.splits import Split, chosen_rows
from manifoldflow.tasks.dna.evaluation import P_VALUE, compare_sets
from manifoldflow.tasks.dna.fitting import Classifier
from manifoldflow.tasks.dna.markov import ORDER, MarkovChain, PlantedChain
from manifoldflow.tasks.dna.motifs import Motif, hit_rate, site_score
from manifoldflow.tasks.dna.reading import write_fasta
from manifoldflow.tasks.dna.sequences import SequenceSet

RULES = ("markov", "markov_motif")

LIKELIHOOD = "held-out NLL (nats per letter)"
"""Exact for the rules, a bound from above for flows."""


def fit_rules(
    kind: str, train: SequenceSet, motifs: Sequence[Motif], *, both_strands: bool, order: int = ORDER
) -> list[MarkovChain | PlantedChain]:
    """A trivial law for every class: a Markov chain, with one site of that motif written in which the class has most often.

    Raises:
        ValueError: no motifs to write in.
    """
    assert train.labels is not None
    if kind == "markov_motif" and not motifs:
        raise ValueError("markov_motif writes a motif in: name some by --motifs and --motif")
    laws: list[MarkovChain | PlantedChain] = []
    for number in range(len(train.classes)):
        tokens = train.tokens[train.labels == number]
        chain = MarkovChain.fit(tokens, order, both_strands=both_strands)
        if kind == "markov":
            laws.append(chain)
            continue
        rates = [hit_rate(tokens, motif, site_score(motif, P_VALUE)) for motif in motifs]
        laws.append(PlantedChain(chain, motifs[max(range(len(motifs)), key=rates.__getitem__)]))
    return laws


def score_rule(
    kind: str,
    real: SequenceSet,
    parts: Split,
    motifs: list[Motif],
    judge: Classifier,
    *,
    count: int,
    both_strands: bool,
    collection: Sequence[Motif] = (),
    classifier_steps: int = 1000,
    samples: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything about a trivial law, as for a model; there is nothing to guide."""
    train, test = real.rows(parts.train), real.rows(parts.test)
    assert train.labels is not None and test.labels is not None
    laws = fit_rules(kind, train, motifs, both_strands=both_strands)
    labels = some_labels(train, count, seed)
    tokens, scores = torch.zeros(len(labels), real.tokens.shape[1], dtype=torch.int64), torch.zeros(len(test))
    generator = torch.Generator().manual_seed(seed)
    began = time.process_time()
    for number, law in enumerate(laws):
        here = labels == number
        tokens[here] = law.sample(int(here.sum()), tokens.shape[1], generator=generator)
    seconds = time.process_time() - began
    for number, law in enumerate(laws):
        here = test.labels == number
        scores[here] = law.log_prob(test.tokens[here]).float()
    made = as_set(tokens, labels, real.classes)
    if samples is not None:
        write_set(samples / f"{kind}_plain.fasta", made)
    return {
        "plain": compare_sets(
            made, real, parts, motifs, judge=judge, collection=collection, apart=True, classifier_steps=classifier_steps
        ),
        LIKELIHOOD: float(-scores.mean()) / real.tokens.shape[1],
        "CPU seconds per 1,000": 1000 * seconds / len(labels),
        "samples": [len(made), 0],
    }


def write_set(path: Path, made: SequenceSet) -> None:
    """Samples as FASTA, to be looked at or measured again."""
    assert made.labels is not None
    names = [f"s{i} label={made.classes[k]}" for i, k in enumerate(made.labels.tolist())]
    write_fasta(path, made.tokens, names=names)


def held_out(
    flow: mf.Flow, train: SequenceSet, test: SequenceSet, *, both_strands: bool, rows: int = 256, samples: int = 16
) -> tuple[float, float] | None:
    """The NLL of held-out sequences, nats per letter: a bound from above by a flow, and that of a Markov chain of every class.

    None for a flow without a bound, and for sequences of several lengths.

    Args:
        flow: with the classes of the data, or without.
        train: what the chain is fitted to.
        test: of which some are scored.
        both_strands: whether the chain counts both.
        rows: sequences that are scored at most.
        samples: times that the bound is averaged over.
    """
    if not isinstance(flow.spaces, mf.Tokens) or not bool(train.mask.all() and test.mask.all()):
        return None
    some = test.rows(chosen_rows(len(test), rows))  # files list class after class
    cond = some.labels if (flow.config or {}).get("classes") else None
    with torch.no_grad():
        bound = flow.elbo(some.tokens, samples=samples, cond=cond, generator=torch.Generator().manual_seed(0))
    labels = [torch.zeros(len(s), dtype=torch.int64) if cond is None else s.labels for s in (train, some)]
    total = 0.0
    for number in labels[1].unique().tolist():  # type: ignore[union-attr]
        chain = MarkovChain.fit(train.tokens[labels[0] == number], both_strands=both_strands)
        total -= float(chain.log_prob(some.tokens[labels[1] == number]).sum())
    return float(-bound.mean()) / some.tokens.shape[1], total / some.tokens.numel()


def some_labels(train: SequenceSet, count: int, seed: int) -> Tensor:
    """Classes of samples, as they come in the training part."""
    assert train.labels is not None
    return train.labels[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]]


def as_set(tokens: Tensor, labels: Tensor, classes: tuple[str, ...]) -> SequenceSet:
    """Tokens ``(B, L)`` of these classes as a set."""
    names = [str(i) for i in range(len(tokens))]
    return SequenceSet(names, tokens, torch.ones_like(tokens, dtype=torch.bool), labels, classes, 0)
