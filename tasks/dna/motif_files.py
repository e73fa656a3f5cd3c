"""Motifs from the files in which people have them: JASPAR, MEME, TRANSFAC, HOMER, cluster-buster, ENCODE, CIS-BP, and others.

Text is read line by line into blocks of numbers with what stands above them; :mod:`manifoldflow.tasks.dna.layouts` decides
how a block is to be read and refuses what makes no sense. (Biopython's readers of these formats skip lines that they do not
know and round MEME's probabilities to whole counts; the tests hold both beside each other.) XML of MEME, XMS, AlignACE and
aligned sites are read by :mod:`Bio.motifs`.
"""

import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manifoldflow.tasks.dna.alphabet import IUPAC, LETTERS
from manifoldflow.tasks.dna.headers import read_text
from manifoldflow.tasks.dna.layouts import Block, Row, columns_of, disagreements, matrix_of, row_of
from manifoldflow.tasks.dna.matrices import SITES, Motif

TEXTS = "JASPAR, MEME, TRANSFAC, HOMER, cluster-buster, CIS-BP, UniPROBE, ENCODE, or matrices with four rows or four columns"
OTHERS = "XML of MEME, XMS, AlignACE, aligned sites"


def read_motifs(path: str | Path) -> list[Motif]:
    """Motifs of a file, also gzipped; the format is told by the content: JASPAR, MEME (text or XML), TRANSFAC, HOMER,
    cluster-buster, CIS-BP, UniPROBE, ENCODE, XMS, AlignACE, aligned sites, and matrices with four rows or four columns.

    Log-odds against letters of 1/4 each become probabilities. A motif without a matrix is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: none of the formats, no motifs in it, or a motif whose numbers make no sense; says which, and why.
        ImportError: a format that Biopython reads, which is not installed.

    Warns:
        UserWarning: motifs without a matrix, by name.
    """
    path = Path(path)
    text = read_text(path)
    try:
        made = _parse(text, path.name.split(".")[0])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    motifs, empty = [motif for motif in made if isinstance(motif, Motif)], [m for m in made if isinstance(m, str)]
    if not motifs:
        also = f"; {', '.join(empty[:5])} come without a matrix" if empty else ""
        raise ValueError(f"{path} holds no motifs that can be read; tried were {TEXTS}; {OTHERS}{also}")
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        warnings.warn(f"{path}: {', '.join(empty[:5])}{more} left out, without a matrix", stacklevel=2)
    return motifs


def _parse(text: str, title: str) -> list[Motif | str]:
    """Motifs, and the names of those that have no matrix; ``title`` is the name of those that have none."""
    for mark, name, read in _MARKED:
        if re.search(mark, text[:100_000], re.MULTILINE):
            try:
                return read(text)
            except (AssertionError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"damaged {name} ({type(error).__name__}: {error})") from None
    if _is_alignment(text):
        return _read_sites(text)
    blocks = _blocks(text)
    for number, block in enumerate(blocks):
        block.identifier = block.identifier or (title if len(blocks) == 1 else f"{title}_{number + 1}")
    return [_motif(block, "motif") if block.rows else block.identifier for block in blocks]


def _motif(block: Block, kind: str) -> Motif:
    try:
        table = matrix_of(block)
    except ValueError as error:
        raise ValueError(f"{kind} {block.identifier}: {error}") from None
    if block.consensus and (wrong := disagreements(table, block.consensus)):
        warnings.warn(f"{kind} {block.identifier}: its consensus {block.consensus} says {wrong[0]}", stacklevel=4)
    if block.sites is not None:
        table = table * block.sites
    rows = tuple(tuple(float(v) for v in row) for row in table)
    return Motif(block.name or block.identifier, block.identifier, rows)  # type: ignore[arg-type]


def _blocks(text: str) -> list[Block]:
    """Blocks of numbers; one without rows is a header that no numbers follow."""
    found: list[Block] = []
    block: Block | None = None  # under way
    above: list[str] = []  # lines of words since the last block
    is_transfac = re.search(r"^P[O0]\s", text, re.MULTILINE) is not None
    for line in text.split("\n"):
        words = line.strip()
        is_comment = words.startswith(("#", ";"))
        columns = None if words.startswith(">") else columns_of(words.lstrip("#;"))
        row = None if columns or is_comment or words.startswith(">") else row_of(words)
        if is_transfac and re.match(r"P[O0]\s", words) and columns is None:
            raise ValueError(f"TRANSFAC matrix with the columns {' '.join(words.split()[1:])}, expected A, C, G and T")
        if columns is not None:
            if block is None or block.rows:
                block = Block()
                found.append(block)
            block.order, block.is_numbered = columns
        elif row is not None:
            if is_transfac and (block is None or not block.order):
                continue  # of a section that is no matrix, such as lists of sites
            if block is None:
                block = Block()
                found.append(block)
            if not block.rows:
                _name(block, above)
                above = []
            block.rows.append(row)
        elif words.startswith(">"):
            block, above = _titled(words[1:].strip()), []
            found.append(block)
        elif is_comment:
            continue
        else:  # what is no row ends the rows before it; words name those that follow
            if block is not None and block.rows:
                block = None
            if words == "//":
                above, block = [], None
            elif words and words != "XX":
                above.append(words)
    return [block for block in found if block.rows or block.identifier]


def _titled(title: str) -> Block:
    """A block with the words of a line that begins with >."""
    fields = title.split("\t")
    words = title.split()
    if len(words) >= 3 and set(words[0].upper()) <= set(IUPAC) and re.match(r"[-+.\d]", words[2]):  # HOMER
        return Block(words[1], re.split(r"[(/]", words[1])[0] or words[1], consensus=words[0])
    if len(fields) > 1 and fields[0].strip():
        return Block(fields[0].strip(), " ".join(fields[1:]).strip())
    first, _, rest = title.partition(" ")
    return Block(first, rest.strip())


def _name(block: Block, above: list[str]) -> None:
    """Take the names from lines such as ``AC  MA0001.1``, ``Motif  M1734_0.90`` or ``Protein: Foo``."""
    known: dict[str, str] = {}
    for line in above:
        pair = (
            re.match(r"(\w[\w ]*):\s+(.+)", line)
            or re.match(r"([^\t]+)\t\s*(.+)", line)
            or re.match(r"(\w+)\s+(.+)", line)
        )
        if pair:
            known.setdefault(pair.group(1).strip().lower(), pair.group(2).split("\t")[0].strip())
    first = next((known[k] for k in ("ac", "motif", "id", "de", "gene", "na", "name", "protein") if k in known), "")
    second = next((known[k] for k in ("id", "na", "tf name", "name", "gene", "tf", "protein") if k in known), "")
    if not first and above:
        first, _, rest = above[-1].partition(" ")
        second = second or rest.strip()
    block.identifier = block.identifier or (first.split() or [""])[0]
    block.name = block.name or second


def _read_meme(text: str) -> list[Motif | str]:
    made: list[Motif | str] = []
    for record in re.split(r"^\s*MOTIF[ \t]+", text, flags=re.MULTILINE)[1:]:
        words = record.split("\n", 1)[0].split()
        identifier = words[0] if words else "without a name"
        whole = " ".join(words[:2]) or identifier
        start = re.search(r"letter-probability matrix:([^\n]*)\n", record)
        if start is None:
            made.append(whole)
            continue
        says = dict(re.findall(r"(\w+)\s*=\s*([-+.\deE]+)", start.group(1)))
        if int(float(says.get("alength", 4))) != 4:
            raise ValueError(f"MEME motif {identifier} has an alphabet of {says['alength']} letters; DNA has four")
        has_name = len(words) > 1 and words[1:3] != ["width", "="]
        block = Block(identifier, words[1] if has_name else identifier, LETTERS)
        for line in record[start.end() :].split("\n"):
            row = row_of(line)
            if row is None or row.lead or row.tail:
                if block.rows:
                    break
                continue
            block.rows.append(row)
        if not block.rows:
            made.append(whole)
            continue
        if "w" in says and int(float(says["w"])) != len(block.rows):
            raise ValueError(f"MEME motif {identifier} says w= {says['w']} and has {len(block.rows)} rows")
        sites = float(says.get("nsites", 0))
        block.sites = sites if sites > 0 else SITES
        motif = _motif(block, "MEME motif")
        total = max(sum(row) for row in motif.counts)
        if total > 1.1 * block.sites:
            raise ValueError(f"MEME motif {identifier}: its letter-probability matrix holds no probabilities")
        made.append(motif)
    return made


def _read_json(text: str) -> list[Motif | str]:
    """Profiles as JASPAR hands them out: objects with the rows of A, C, G and T below ``pfm``, alone or in a list."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"damaged JSON: {error}") from None
    content = content.get("results", content) if isinstance(content, dict) else content
    made: list[Motif | str] = []
    for profile in content if isinstance(content, list) else [content]:
        identifier, name = str(profile.get("matrix_id", "motif")), str(profile.get("name", ""))
        rows = [Row(c, [float(v) for v in numbers], is_boxed=True) for c, numbers in profile.get("pfm", {}).items()]
        made.append(_motif(Block(identifier, name, rows=rows), "JASPAR motif") if rows else identifier)
    return made


def _is_alignment(text: str) -> bool:
    """Whether this is FASTA of sites, of which the letters of the motif are upper case."""
    lines = [line.strip() for line in text.strip().split("\n")]
    return (
        len(lines) > 1
        and all(line.startswith(">") for line in lines[::2])
        and len(lines) % 2 == 0
        and all(re.fullmatch(r"[ACGTNacgtn]+", line) for line in lines[1::2])
        and len({sum(c.isupper() for c in line) for line in lines[1::2]}) == 1
    )


def _read_sites(text: str) -> list[Motif | str]:
    title = _titled(text.strip().split("\n", 1)[0][1:].strip())
    (found,) = _bio(text, "sites")
    return [_from_bio(found, title.identifier, title.name.split()[0] if title.name else title.identifier)]


def _bio(text: str, kind: str) -> Any:
    try:
        from Bio import motifs
    except ImportError as error:
        raise ImportError(f"motifs as {kind} need Biopython: pip install 'manifoldflow[dna]'") from error
    return motifs.parse(io.BytesIO(text.encode()) if kind == "meme" else io.StringIO(text), kind)


def _from_bio(found: Any, identifier: str, name: str) -> Motif:
    letters = ["U" if letter == "T" and "U" in found.alphabet else letter for letter in LETTERS]
    numbers = [[float(found.counts[c][i]) for c in letters] for i in range(found.length)]
    return _motif(Block(identifier, name, LETTERS, rows=[Row("", row) for row in numbers]), "motif")


def _by_bio(kind: str) -> Callable[[str], list[Motif | str]]:
    def read(text: str) -> list[Motif | str]:
        made: list[Motif | str] = []
        for number, found in enumerate(_bio(text, kind)):
            name = " ".join(str(found.name or getattr(found, "id", "") or f"motif_{number + 1}").split())
            identifier = str(getattr(found, "alt_id", "") or name)
            made.append(_from_bio(found, identifier, name) if found.length else name)
        return made

    return read


_MARKED: tuple[tuple[str, str, Callable[[str], list[Motif | str]]], ...] = (
    (r"^\s*<MEME\b", "XML of MEME", _by_bio("meme")),
    (r"<motifset\b", "XMS", _by_bio("xms")),
    (r"^AlignACE\s+\d", "AlignACE file", _by_bio("alignace")),
    (r"\A\s*[{\[]\s*[\"{]", "JSON", _read_json),
    (r"^MEME\s|letter-probability matrix:", "MEME file", _read_meme),
)
