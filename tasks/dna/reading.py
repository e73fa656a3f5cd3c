"""Sequences from FASTA and tables, plain or gzipped, and back to FASTA."""

import csv
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from manifoldflow.files import write_text
from manifoldflow.tasks.dna.alphabet import Unknown, decode, encode
from manifoldflow.tasks.dna.headers import Records, read_fasta, read_text
from manifoldflow.tasks.dna.sequences import SequenceSet
from manifoldflow.tasks.dna.tables import read_table

__all__ = ["SequenceSet", "read_sequences", "write_fasta"]


def read_sequences(
    path: str | Path,
    *,
    column: str | None = None,
    label_column: str | None = None,
    unknown: Unknown = "error",
    species: str | None = None,
    seed: int = 0,
) -> SequenceSet:
    """Read FASTA or a table, also gzipped; which one is told by the content. The set's ``note`` says what was taken.

    FASTA: the name is the first word of a header, the class ``label=...`` or ``class=...`` in it, or its second word where
    the second words are classes (:func:`manifoldflow.tasks.dna.headers.are_classes`). Tables: commas, tabs, semicolons, bars
    or spaces between the columns; that of the sequences is found by its name (sequence, seq) or its letters, that of the
    classes by its name (label, class, tag).

    Args:
        path: of the file.
        column: of the sequences in a table, by name or by number from 1.
        label_column: where the classes are: a column of a table, a key in the headers of FASTA (``gene`` for ``gene=G0``),
            "word2" for their second words, or "none" for no classes.
        unknown: what to do with codes for several letters, see :func:`manifoldflow.tasks.dna.alphabet.encode`.
        species: keep only rows with this value in the column ``species``.
        seed: of the draws of ``unknown="random"``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: columns asked of a FASTA file, no sequences, no such column, or a letter that is no code; says where.

    Warns:
        UserWarning: names that occur more than once; labels that were left out because they are no classes.
    """
    path = Path(path)
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path} is empty")
    try:
        records = _records(path, text, column, label_column, species)
    except csv.Error as error:
        raise ValueError(f"{path} is no whole table: {error}; long sequences are better kept as FASTA") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names, labels = records.names, records.labels
    if not records.sequences:
        raise ValueError(f"{path} holds no sequences")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        warnings.warn(f"{path}: {len(repeated)} names occur more than once, first {repeated[0]!r}", stacklevel=2)
    try:
        tokens, mask, kept = encode(records.sequences, unknown=unknown, generator=torch.Generator().manual_seed(seed))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(kept) == 0:
        raise ValueError(f"{path}: every sequence holds codes for several letters; choose unknown='random'")
    chosen = [labels[i] for i in kept.tolist()]
    classes = tuple(sorted({label for label in chosen if label}))
    numbers = None
    if classes:
        if missing := [i for i, label in enumerate(chosen) if not label]:
            raise ValueError(f"{path}: {len(missing)} sequences have no class, first {names[int(kept[missing[0]])]!r}")
        numbers = torch.tensor([classes.index(label) for label in chosen])
    kept_names = [names[i] for i in kept.tolist()]
    return SequenceSet(kept_names, tokens, mask, numbers, classes, len(names) - len(kept), records.note)


def _records(path: Path, text: str, column: str | None, label_column: str | None, species: str | None) -> Records:
    if not text.lstrip().startswith(">"):
        return read_table(text, column, label_column, species)
    for option, value in (("column", column), ("species", species)):
        if value is not None:
            raise ValueError(f"this is FASTA, which has no columns; leave {option}={value!r} out")
    return read_fasta(text, label_column)


def write_fasta(
    path: str | Path, tokens: Tensor, *, mask: Tensor | None = None, names: Sequence[str] | None = None
) -> Path:
    """Write tokens ``(B, L)`` as FASTA; the file appears when it is complete.

    Raises:
        ValueError: a name that is empty or spans lines, an empty sequence, or as many names as there are not sequences.
    """
    sequences = decode(tokens, mask)
    titles = names if names is not None else [f"sample_{i:05d}" for i in range(len(sequences))]
    if len(titles) != len(sequences):
        raise ValueError(f"{len(titles)} names for {len(sequences)} sequences")
    if bad := [title for title in titles if not title.strip() or len(title.splitlines()) != 1]:
        raise ValueError(f"a name in FASTA is one line that is not empty, got {bad[0]!r}")
    if "" in sequences:
        raise ValueError(f"sequence {sequences.index('')} is empty")
    return write_text(path, "".join(f">{title}\n{letters}\n" for title, letters in zip(titles, sequences, strict=True)))
