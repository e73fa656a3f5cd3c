"""Sequences from FASTA and tables, plain or gzipped, and back to FASTA."""

import csv
import gzip
import io
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from manifoldflow.tasks.dna.alphabet import Unknown, decode, encode
from manifoldflow.tasks.shared import find_shared

SHARED = {
    "ctcf_pu1": "chipseq_ctcf_pu1_100.csv.gz",
    "promoters": "promoters_251.csv.gz",
    "tata_promoters": "tata_promoters_300.csv.gz",
    "ecoli": "ecoli_promoters_81.csv.gz",
    "enhancers": "enhancers_200.csv.gz",
}
"""Sets of the shared data folder by name."""


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
    """

    names: list[str]
    tokens: Tensor
    mask: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    dropped: int

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, at: Tensor) -> "SequenceSet":
        """Some of the sequences."""
        labels = None if self.labels is None else self.labels[at]
        return replace(
            self, names=[self.names[i] for i in at.tolist()], tokens=self.tokens[at], mask=self.mask[at], labels=labels
        )


def load_set(
    name: str, *, unknown: Unknown = "drop", species: str | None = None, data_folder: str | Path | None = None
) -> SequenceSet:
    """A shared set by name, the embedded one, or a file.

    Args:
        name: one of :data:`SHARED`, "planted" (generated, part of this package), or the path of a FASTA, CSV or TSV file.
        unknown: as for :func:`manifoldflow.tasks.dna.alphabet.encode`.
        species: keep only these rows, where the set has a column ``species``.
        data_folder: folder with ``dna/``; see :func:`manifoldflow.tasks.shared.find_shared`.
    """
    if name == "planted":
        from manifoldflow.tasks.dna.planted import load_planted

        return load_planted()
    if name in SHARED:
        return read_sequences(find_shared(f"dna/{SHARED[name]}", data_folder), unknown=unknown, species=species)
    if not Path(name).exists():
        raise FileNotFoundError(f"no set and no file {name!r}; the sets are {', '.join(SHARED)}, planted")
    return read_sequences(name, unknown=unknown, species=species)


def read_sequences(
    path: str | Path,
    *,
    column: str | None = None,
    label_column: str | None = None,
    unknown: Unknown = "error",
    species: str | None = None,
    seed: int = 0,
) -> SequenceSet:
    """Read FASTA, CSV or TSV, also gzipped; which one is told by the content.

    FASTA: the name is the first word of a header, the class ``label=...`` in it, or its second word. Tables need a header; the
    column is found by its name (sequence, seq), that of the classes too (label, class).

    Args:
        path: of the file.
        column, label_column: of a table, if they have other names.
        unknown: what to do with codes for several letters, see :func:`manifoldflow.tasks.dna.alphabet.encode`.
        species: keep only rows with this value in the column ``species``.
        seed: of the draws of ``unknown="random"``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: columns asked of a FASTA file, no sequences, no such column, or a letter that is no code; says where.
    """
    path = Path(path)
    text = _text_of(path)
    if not text.strip():
        raise ValueError(f"{path} is empty")
    if text.lstrip().startswith(">"):
        for option, value in (("column", column), ("label_column", label_column), ("species", species)):
            if value is not None:
                raise ValueError(f"{path} is FASTA, which has no columns; leave {option}={value!r} out")
        names, sequences, labels = _read_fasta(path, text)
    else:
        try:
            names, sequences, labels = _read_table(path, text, column, label_column, species)
        except csv.Error as error:
            raise ValueError(f"{path} is no whole table: {error}; long sequences are better kept as FASTA") from None
    if not sequences:
        raise ValueError(f"{path} holds no sequences")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        warnings.warn(f"{path}: {len(repeated)} names occur more than once, first {repeated[0]!r}", stacklevel=2)
    try:
        tokens, mask, kept = encode(sequences, unknown=unknown, generator=torch.Generator().manual_seed(seed))
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
    return SequenceSet(kept_names, tokens, mask, numbers, classes, len(sequences) - len(kept))


def _text_of(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither text nor a whole gzip file: {error}") from None


def _read_fasta(path: Path, text: str) -> tuple[list[str], list[str], list[str]]:
    names, sequences, labels = [], [], []
    for number, record in enumerate(text.lstrip()[1:].split("\n>")):
        header, _, body = record.partition("\n")
        sequence = "".join(body.split()).rstrip("*")
        words = header.split()
        if not sequence:
            raise ValueError(f"{path}: record {number + 1} ({header.strip()[:40]!r}) holds no sequence")
        found = re.search(r"\blabel=(\S+)", header)
        names.append(words[0] if words else str(number))
        sequences.append(sequence)
        labels.append(found.group(1) if found else (words[1] if len(words) == 2 else ""))
    if not all(labels):  # a second word here and there is a description, not a class
        labels = [""] * len(labels)
    return names, sequences, labels


def _read_table(
    path: Path, text: str, column: str | None, label_column: str | None, species: str | None
) -> tuple[list[str], list[str], list[str]]:
    header = text.split("\n", 1)[0]
    delimiter = "\t" if header.count("\t") > header.count(",") else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    there = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = there

    def find(wanted: str | None, usual: Sequence[str], what: str, must: bool) -> str | None:
        if wanted is not None:
            if wanted not in there:
                raise ValueError(f"{path} has no column {wanted!r}; it has {', '.join(there)}")
            return wanted
        for name in there:
            if name.lower() in usual:
                return name
        if must:
            raise ValueError(f"{path} has no column of {what} ({' or '.join(usual)}); it has {', '.join(there)}")
        return None

    letters = find(column, ("sequence", "seq"), "sequences", True)
    label = find(label_column, ("label", "class"), "classes", False)
    name = find(None, ("id", "name"), "names", False)
    if species is not None and "species" not in there:
        raise ValueError(f"{path} has no column 'species'; it has {', '.join(there)}")
    names, sequences, labels = [], [], []
    for number, row in enumerate(reader):
        if species is not None and row["species"] != species:
            continue
        value = (row[letters] or "").strip()  # type: ignore[index]
        if not value:
            raise ValueError(f"{path}, row {number + 2}: no sequence")
        names.append(row[name] if name and row[name] else str(number))
        sequences.append(value)
        labels.append((row[label] or "").strip() if label else "")
    if species is not None and not sequences:
        raise ValueError(f"{path} has no rows of species {species!r}")
    return names, sequences, labels


def write_fasta(
    path: str | Path, tokens: Tensor, *, mask: Tensor | None = None, names: Sequence[str] | None = None
) -> Path:
    """Write tokens ``(B, L)`` as FASTA; the file appears when it is complete.

    Raises:
        ValueError: a name that is empty or spans lines, an empty sequence, or as many names as there are not sequences.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sequences = decode(tokens, mask)
    titles = names if names is not None else [f"sample_{i:05d}" for i in range(len(sequences))]
    if len(titles) != len(sequences):
        raise ValueError(f"{len(titles)} names for {len(sequences)} sequences")
    if bad := [title for title in titles if not title.strip() or len(title.splitlines()) != 1]:
        raise ValueError(f"a name in FASTA is one line that is not empty, got {bad[0]!r}")
    if "" in sequences:
        raise ValueError(f"sequence {sequences.index('')} is empty")
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text("".join(f">{title}\n{letters}\n" for title, letters in zip(titles, sequences, strict=True)))
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path
