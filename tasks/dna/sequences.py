"""A set of sequences and what is known of them."""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class SequenceSet:
    """Sequences and what is known of them.

    Attributes:
        names: one per sequence.
        tokens: ``(N, L)`` int64, 0 at padding.
        mask: bool ``(N, L)``, real positions.
        labels: class numbers ``(N,)``, or None.
        classes: their names.
        dropped: sequences left out for codes of several letters.
        note: what was taken for sequences and classes, in words.
    """

    names: list[str]
    tokens: Tensor
    mask: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    dropped: int
    note: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, at: Tensor) -> "SequenceSet":
        """Some of the sequences."""
        labels = None if self.labels is None else self.labels[at]
        return replace(
            self, names=[self.names[i] for i in at.tolist()], tokens=self.tokens[at], mask=self.mask[at], labels=labels
        )
