"""FASTA: sequences by their headers, and classes in the headers where they are some."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from manifoldflow.files import open_text

NO_CLASSES = "none"
"""As ``label_column``: take no classes, whatever the file holds."""

KEYS = ("label", "class")
"""Keys of headers whose values are classes without being asked: ``>name label=ctcf``."""

_PLACE = re.compile(
    r"(chr)?\d*[XYM]?\d*([:_]\d+([-_.]+\d+)?)?(\([-+.]\))?|[-+.]|[-+]?[\d.eE]+|len(gth)?[=:]?\d+", re.IGNORECASE
)
"""What a second word often is and never a class: chromosomes, intervals, strands, numbers, lengths."""


@dataclass
class Records:
    """What a file holds, as text.

    Args:
        names, sequences: one per record.
        labels: classes, all empty if there are none.
        note: what was taken for them, in words.
    """

    names: list[str]
    sequences: list[str]
    labels: list[str]
    note: str = ""


def read_text(path: str | Path) -> str:
    """The text of a file, plain or gzipped; lines end as they do on Unix, whatever wrote it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no text, or no whole gzip file.
    """
    try:
        with open_text(path) as file:
            return file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder, expected a file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from None


def read_fasta(text: str, label_column: str | None = None) -> Records:
    """The records of FASTA text.

    Classes are the values of ``label=`` or ``class=`` in the headers, or their second words where these are classes: see
    :func:`are_classes`.

    Args:
        text: with at least one ``>``.
        label_column: take the values of this key (``gene`` for ``gene=G0``), "word2" for the second word (any number), or
            "none".

    Raises:
        ValueError: a record without letters, or without the class that was asked for.
    """
    names, sequences, headers = [], [], []
    for number, record in enumerate(text.lstrip()[1:].split("\n>")):
        header, _, body = record.partition("\n")
        sequence = "".join(line for line in body.split() if not line.startswith(";")).rstrip("*")
        if not sequence:
            raise ValueError(f"record {number + 1} ({header.strip()[:40]!r}) holds no sequence")
        names.append((header.split() or [str(number)])[0])
        sequences.append(sequence)
        headers.append(header)
    labels, note = _labels(headers, names, label_column)
    return Records(names, sequences, labels, note)


def _labels(headers: Sequence[str], names: Sequence[str], asked: str | None) -> tuple[list[str], str]:
    none = [""] * len(headers)
    if asked == NO_CLASSES:
        return none, ""
    if asked is not None:
        found = _words(headers, int(asked[4:])) if re.fullmatch(r"word[2-9]", asked) else _values(headers, asked)
        if "" in found:
            raise ValueError(
                f"{found.count('')} headers have no {asked!r}, first {names[found.index('')]!r}; give label_column= a key that "
                "all have, as in '>name label=ctcf', or word2 for the second word"
            )
        return found, f"classes from {asked} in the headers"
    for key in KEYS:
        found = _values(headers, key)
        if any(found):
            if missing := found.count(""):
                raise ValueError(f"{missing} headers have no {key}=, first {names[found.index('')]!r}")
            if len(found) > 10 and len(set(found)) == len(found):
                return none, f"no classes: {key}= is another in every header"
            return found, f"classes from {key}= in the headers"
    seconds = [words[1] if len(words) == 2 else "" for words in (header.split() for header in headers)]
    if are_classes(seconds):
        return seconds, "classes from the second words of the headers (label_column none leaves them out)"
    is_told = any(len(header.split()) > 1 for header in headers)
    return none, "no classes: the headers name none (label_column takes a key of theirs, or word2)" if is_told else ""


def are_classes(words: Sequence[str]) -> bool:
    """Whether words that may be anything look like classes: a few that come again, and no places, strands or numbers.

    That is at least two of them, each at least twice, at most as many as the root of the number of words, and every record
    has one.
    """
    counts = Counter(words)
    return (
        "" not in counts
        and 2 <= len(counts) <= max(2.0, len(words) ** 0.5)
        and min(counts.values()) >= 2
        and not any("=" in word or _PLACE.fullmatch(word) for word in counts)
    )


def _values(headers: Sequence[str], key: str) -> list[str]:
    pattern = re.compile(rf"(?<![\w.]){re.escape(key)}[=:]\s*(\"[^\"]+\"|[^\s;,|]+)")
    found = [pattern.search(header) for header in headers]
    return [match.group(1).strip('"') if match else "" for match in found]


def _words(headers: Sequence[str], number: int) -> list[str]:
    split = [header.split() for header in headers]
    return [words[number - 1] if len(words) >= number else "" for words in split]
