"""Train a sequence flow on a split, and an independent classifier that judges its samples."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import manifoldflow as mf
from manifoldflow.tasks.common.splits import chosen_rows, drawn_batches
from manifoldflow.tasks.dna.alphabet import reverse_complement
from manifoldflow.tasks.dna.flow import DnaConfig, build, to_state
from manifoldflow.tasks.dna.sequences import SequenceSet
from manifoldflow.training import TrainConfig, fit

VALIDATION_ROWS = 1024
"""Sequences, with fixed times and noise, of the score that the weights are chosen by."""


def fit_flow(
    train: SequenceSet,
    val: SequenceSet,
    config: DnaConfig,
    training: TrainConfig,
    out: str | Path,
    *,
    batch_size: int = 128,
    both_strands: bool = False,
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> mf.Flow:
    """Train a flow; its weights are those with the least validation loss.

    Args:
        train, val: sequences of the two parts.
        config: of the flow; its length must be that of the sequences, its classes theirs.
        training: as in :func:`manifoldflow.training.fit`.
        out: folder of the run.
        batch_size: sequences in a batch.
        both_strands: show every other sequence as its reverse complement.
        resume: continue the run in ``out``.
        facts: kept in the checkpoint.
    """
    torch.manual_seed(training.seed)
    flow = build(config)
    use_labels = bool(config.class_names)
    return fit(
        flow,
        batches(flow, train, batch_size, training.seed, use_labels, both_strands),
        training,
        out=out,
        score=validation_score(val, use_labels),
        resume=resume,
        facts=facts,
    )


def batches(
    flow: mf.Flow, data: SequenceSet, size: int, seed: int, use_labels: bool, both_strands: bool
) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """Rows drawn with replacement, the draws of a step depending on the seed and the step alone."""
    is_full = bool(data.mask.all())

    def make(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        tokens, mask = data.tokens[rows], data.mask[rows]
        if both_strands:
            turned = torch.rand(size, 1, generator=generator) < 0.5
            tokens = torch.where(turned, reverse_complement(tokens, mask), tokens)
        batch = {"x": to_state(flow, tokens)}
        if not is_full:
            batch["mask"] = mask
        if use_labels and data.labels is not None:
            batch["cond"] = data.labels[rows]
        return batch

    return drawn_batches(len(data), size, seed, make)


def validation_score(val: SequenceSet, use_labels: bool) -> Callable[[mf.Flow], float]:
    """The cross-entropy of validation sequences, with the same times and noise every time."""
    rows = chosen_rows(len(val), VALIDATION_ROWS)

    def score(flow: mf.Flow) -> float:
        generator = torch.Generator().manual_seed(1)
        some = val.rows(rows)
        mask = None if bool(some.mask.all()) else some.mask
        total = 0.0
        for part in torch.arange(len(some)).split(256):
            cond = some.labels[part] if use_labels and some.labels is not None else None
            real = None if mask is None else mask[part]
            with torch.no_grad():
                loss = flow.loss(to_state(flow, some.tokens[part]), mask=real, cond=cond, generator=generator)
            total += float(loss) * len(part)
        return total / len(some)

    return score


class Classifier(nn.Module):
    """Convolutions and a maximum over places: the judge of samples, trained on real sequences only.

    Args:
        classes: number of classes.
        width: number of motifs that the first layer looks for.
    """

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Conv1d(4, width, 15, padding=7)
        self.second = nn.Conv1d(width, width, 7, padding=3)
        self.hidden, self.last = nn.Linear(2 * width, width), nn.Linear(width, classes)

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, width)`` from tokens ``(B, L)`` or probabilities ``(B, L, 4)``; padding counts for nothing."""
        hot = x if x.is_floating_point() else nn.functional.one_hot(x, 4).to(self.last.weight.dtype)
        keep = None if mask is None else mask.unsqueeze(1).to(hot.dtype)
        value = hot.mT
        for layer in (self.first, self.second):
            value = nn.functional.gelu(layer(value if keep is None else value * keep))
        if keep is None or mask is None:
            most, mean = value.amax(-1), value.mean(-1)
        else:
            most = value.masked_fill(~mask.unsqueeze(1), -torch.inf).amax(-1)
            mean = (value * keep).sum(-1) / keep.sum(-1)
        return nn.functional.gelu(self.hidden(torch.cat([most, mean], -1)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ``(B, classes)``."""
        return self.last(self.features(x, mask))

    def loss_of(self, tokens: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """The cross-entropy of classes ``(B,)``, nats."""
        return nn.functional.cross_entropy(self(tokens, mask), labels)


def fit_classifier(
    train: SequenceSet, val: SequenceSet, *, steps: int = 1500, batch_size: int = 128, seed: int = 0, width: int = 64
) -> tuple[Classifier, float]:
    """A classifier of real sequences, on both strands, and its validation accuracy (the best of the run is kept).

    Raises:
        ValueError: the sequences have no classes.
    """
    if train.labels is None or val.labels is None:
        raise ValueError("a classifier needs sequences with classes")
    torch.manual_seed(seed)
    net = Classifier(len(train.classes), width)
    labels, marks = train.labels, val.labels

    def make(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        mask = _mask(train, rows)
        turned = torch.rand(batch_size, 1, generator=generator) < 0.5
        tokens = train.tokens[rows]
        tokens = torch.where(turned, reverse_complement(tokens, mask), tokens)
        batch = {"tokens": tokens, "labels": labels[rows]}
        return batch if mask is None else batch | {"mask": mask}

    best = 0.0

    def errors(net: Classifier) -> float:
        nonlocal best
        right = accuracy(net, val, marks)
        best = max(best, right)
        return 1 - right

    config = TrainConfig(
        max_steps=steps,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=steps // 5,
        ema=0.99,
        precision="32-true",
        validate_every=max(1, steps // 5),
        log_every=min(50, steps),
        checkpoint_every=steps,
        seed=seed,
        progress=False,
    )
    net = fit(net, drawn_batches(len(train), batch_size, seed, make), config, out=None, score=errors)
    return net, best


@torch.no_grad()
def accuracy(net: Classifier, data: SequenceSet, labels: Tensor) -> float:
    """Share of sequences whose class ``labels`` the classifier calls right."""
    parts = torch.arange(len(data)).split(512)
    called = torch.cat([net(data.tokens[part], _mask(data, part)).argmax(-1) for part in parts])
    return float((called == labels).float().mean())


@torch.no_grad()
def features_of(net: Classifier, data: SequenceSet) -> Tensor:
    """The classifier's features of all sequences, ``(N, width)``."""
    parts = torch.arange(len(data)).split(512)
    return torch.cat([net.features(data.tokens[part], _mask(data, part)) for part in parts])


def _mask(data: SequenceSet, rows: Tensor) -> Tensor | None:
    """The real positions of some rows; None where all are."""
    mask = data.mask[rows]
    return None if bool(mask.all()) else mask
