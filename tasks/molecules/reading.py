"""Molecules from files: SMILES lists, tables and SDF, plain or gzipped; bad records are named and the rest is kept."""

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from manifoldflow.files import open_bytes
from manifoldflow.tasks.common.tables import plural
from manifoldflow.tasks.molecules.chemistry import (
    canonical,
    heard,
    is_element,
    kept_fragment,
    neutralised,
    parse_smiles,
    rdkit,
    sanitized,
    told,
    without_isotopes,
)

SMILES_NAMES = ("smiles", "canonical_smiles", "isomeric_smiles", "smi", "structure", "molecule", "mol")
ID_NAMES = ("name", "id", "title", "compound", "compound_id", "molecule_chembl_id", "zinc_id", "mol_id")
MISSING = ("", "nan", "na", "n/a", "none", "null", "-")
"""What programs write where there is no number."""
SPECIAL = ("*", "A", "Q", "R", "R#", "L", "D", "T", "LP", "X", "M", "Pol", "Mod")
"""Atom symbols of a molfile that are no elements: attachment points and queries, for the rules or RDKit to judge."""
MOST_BYTES_A_CELL = 2**24
MOST_ATOMS = 200
"""Heavy atoms of the largest molecule that is read unless told otherwise."""


@dataclass(frozen=True)
class Rules:
    """What is taken for a molecule, and what is done to it.

    Args:
        salts: molecules of several parts: ``"keep"`` them, ``"strip"`` all but the largest part, or ``"reject"``.
        charges: ``"keep"``, ``"neutralise"`` where a proton does it, or ``"reject"`` what has a charge in sum.
        isotopes: ``"keep"``, ``"drop"`` the labels, or ``"reject"``.
        radicals: ``"keep"`` or ``"reject"`` unpaired electrons.
        dummies: atoms ``*``: ``"reject"`` (they are no element), or ``"keep"``, as fragments have them.
        max_atoms: most heavy atoms.
        elements: symbols that are known, with commas or as a tuple; all of the periodic table if absent.
    """

    salts: Literal["keep", "strip", "reject"] = "keep"
    charges: Literal["keep", "neutralise", "reject"] = "keep"
    isotopes: Literal["keep", "drop", "reject"] = "keep"
    radicals: Literal["keep", "reject"] = "keep"
    dummies: Literal["reject", "keep"] = "reject"
    max_atoms: int = MOST_ATOMS
    elements: str | tuple[str, ...] | None = None

    def apply(self, mol: Any) -> tuple[Any | None, str]:
        """The molecule under these rules, or None and why not."""
        chem = rdkit()
        if mol.GetNumAtoms() == 0:
            return None, "it has no atoms"
        dummies = sum(a.GetAtomicNum() == 0 for a in mol.GetAtoms())
        if dummies and self.dummies == "reject":
            return None, f"{plural(dummies, 'attachment point')} (*), which is no element: a fragment, not a molecule"
        if len(chem.GetMolFrags(mol)) > 1:
            if self.salts == "reject":
                return None, f"{len(chem.GetMolFrags(mol))} parts: a salt or a mixture"
            mol = kept_fragment(mol) if self.salts == "strip" else mol
        if any(a.GetIsotope() for a in mol.GetAtoms()):
            if self.isotopes == "reject":
                return None, "isotope labels"
            mol = without_isotopes(mol) if self.isotopes == "drop" else mol
        if self.radicals == "reject" and any(a.GetNumRadicalElectrons() for a in mol.GetAtoms()):
            return None, "unpaired electrons: a radical"
        if self.charges == "neutralise" and any(a.GetFormalCharge() for a in mol.GetAtoms()):
            mol = neutralised(mol)
        if self.charges == "reject" and chem.GetFormalCharge(mol):
            return None, f"a charge of {chem.GetFormalCharge(mol):+d}"
        if mol.GetNumHeavyAtoms() > self.max_atoms:
            return None, f"{mol.GetNumHeavyAtoms()} heavy atoms, more than the {self.max_atoms} allowed (max_atoms)"
        if self.elements is not None:
            known = self.elements.split(",") if isinstance(self.elements, str) else self.elements
            other = sorted({a.GetSymbol() for a in mol.GetAtoms()} - {s.strip() for s in known} - {"*"})
            if other:
                return None, f"the element {', '.join(other)} is not among {', '.join(known)}"
        return mol, ""


class Record(NamedTuple):
    """A molecule that was read.

    Attributes:
        smiles: canonical.
        name: as the file has it; empty if it has none.
        where: number of its line (of its record, in SDF), from 1.
        properties: other columns or SDF properties as text; None is missing.
        mol: RDKit's molecule. That of SDF keeps its conformers, and its hydrogens if they are in the file.
    """

    smiles: str
    name: str
    where: int
    properties: dict[str, str | None]
    mol: Any


class Rejected(NamedTuple):
    """What could not be read: where, the text (its beginning), and why."""

    where: int
    text: str
    why: str


@dataclass(frozen=True)
class MoleculeSet:
    """The molecules of a file, and what was left out.

    Args:
        source: the file.
        kind: what its entries are called, ``"line"`` or ``"record"``.
        records, rejected: in the order of the file.
    """

    source: str
    kind: str
    records: list[Record] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def smiles(self) -> list[str]:
        """Canonical SMILES, one a record."""
        return [record.smiles for record in self.records]

    @property
    def distinct(self) -> list[str]:
        """Canonical SMILES, each once, in the order of the file: conformers of one molecule count once."""
        return list(dict.fromkeys(self.smiles))

    def numbers(self, name: str) -> list[float | None]:
        """A property as numbers; what is missing is None.

        Raises:
            ValueError: no such property, or a value that is no number; says where.
        """
        if self.records and not any(name in r.properties for r in self.records):
            known = ", ".join(dict.fromkeys(k for r in self.records for k in r.properties)) or "none"
            raise ValueError(f"{self.source}: no column or property {name!r}; there are: {known}")
        made: list[float | None] = []
        for record in self.records:
            text = record.properties.get(name)
            try:
                made.append(None if text is None or text.lower() in MISSING else float(text))
            except ValueError:
                raise ValueError(
                    f"{self.source}, {self.kind} {record.where}: {name} is {text!r}, expected a number"
                ) from None
        return made

    def summary(self, most: int = 5) -> str:
        """What was read and what was not, in as many lines as there are reasons to tell."""
        several = len(self) - len(self.distinct)
        lines = [
            f"{self.source}: {plural(len(self), 'molecule')}" + (f", {len(self.distinct)} distinct" if several else "")
        ]
        lines += [f"  {self.kind} {bad.where}: left out, {bad.why}: {bad.text}" for bad in self.rejected[:most]]
        if len(self.rejected) > most:
            lines.append(f"  and {len(self.rejected) - most} more left out")
        return "\n".join(lines)


def read_molecules(
    path: str | Path,
    *,
    rules: Rules = Rules(),
    column: str | int | None = None,
    conformers: Literal["records", "merge"] = "records",
    remove_hydrogens: bool = True,
    strict: bool = False,
) -> MoleculeSet:
    """Read molecules from a list of SMILES, a table with a header, or an SDF.

    The kind is told by the name (.smi, .smiles, .txt; .csv, .tsv; .sdf, .sd, .mol; also with .gz), and by the content where the
    name says nothing. Lines that begin with ``#`` and empty ones are passed over; a SMILES may be followed by a name.

    Args:
        path: the file.
        rules: what is taken for a molecule, and what is done to it.
        column: of a table: name or number (from 1) of the SMILES; found by its name if absent.
        conformers: of an SDF: records that follow each other with the same name and graph stay ``"records"`` of their own, or
            are ``"merge"``-d to one molecule with several conformers.
        remove_hydrogens: of an SDF: leave out explicit hydrogens (those of the SMILES are always implicit).
        strict: raise at the first bad record instead of going on.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a table without SMILES, a file without a single molecule, or with ``strict`` any bad record.
    """
    path = Path(path)
    kind = _kind(path)
    made = MoleculeSet(str(path), "record" if kind == "sdf" else "line")
    entries = (
        _sdf(path, remove_hydrogens) if kind == "sdf" else _table(path, column) if kind == "table" else _list(path)
    )
    for where, text, name, properties, mol, why in entries:
        if mol is None and not why:
            mol, why = parse_smiles(text)
        if mol is not None:
            mol, why = rules.apply(mol)
        if mol is None:
            shown = text if len(text) <= 60 else text[:57] + "..."
            if strict:
                raise ValueError(f"{path}, {made.kind} {where}: {why}: {shown}")
            made.rejected.append(Rejected(where, shown, why))
            continue
        smiles = canonical(rdkit().RemoveHs(mol, sanitize=False) if kind == "sdf" and not remove_hydrogens else mol)
        last = made.records[-1] if made.records else None
        if conformers == "merge" and kind == "sdf" and last and (last.smiles, last.name) == (smiles, name):
            if _add_conformer(last.mol, mol):
                continue
        made.records.append(Record(smiles, name, where, properties, mol))
    if not made.records:
        why = "".join(f"; {made.kind} {bad.where}: {bad.why}" for bad in made.rejected[:3])
        more = f"; and {len(made.rejected) - 3} more" if len(made.rejected) > 3 else ""
        raise ValueError(f"{path}: no molecule in it{why}{more}")
    return made


Entry = tuple[int, str, str, dict[str, str | None], Any, str]


def _kind(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    last = suffixes[-1] if suffixes else ""
    if last in (".sdf", ".sd", ".mol", ".mdl"):
        return "sdf"
    if last in (".csv", ".tsv", ".tab"):
        return "table"
    named_list = last in (".smi", ".smiles", ".ism", ".can", ".txt")
    head = list(itertools.islice(_lines(path), 400))
    if not named_list and any(line.startswith(("$$$$", "M  END")) for line in head):
        return "sdf"
    first = next((line for line in head if line.strip() and not line.startswith("#")), "")
    names = [_plain(word) for word in re.split("[,;\t]", first)]
    is_table = not set(names).isdisjoint(SMILES_NAMES) and (len(names) > 1 or first.startswith('"'))
    if named_list and names[0] in SMILES_NAMES and "\t" in first:
        is_table = False  # a list with a heading, in which names may hold anything
    return "table" if is_table else "list"


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends: UTF-8, with or without a mark in front, or Latin-1 where a line is not."""
    with open_bytes(path) as file:
        for number, line in enumerate(file):
            if number == 0 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise ValueError(f"{path}: is UTF-16 text; write it as UTF-8")
            try:
                text = line.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError:
                text = line.decode("latin-1")
            if "\r" in text[:-2]:  # old Macintosh files end their lines with it alone
                yield from io.StringIO(text, newline="")
            else:
                yield text


def _list(path: Path) -> Iterator[Entry]:
    """SMILES, then white space and a name, if any; a heading is passed over."""
    for number, line in enumerate(_lines(path), 1):
        words = line.split(None, 1)
        if not words or words[0].startswith("#") or words[0].lower() in SMILES_NAMES:
            continue
        rest = (
            re.sub(r"^\|[^|]*\|", "", words[1].strip()).strip() if len(words) > 1 else ""
        )  # without ChemAxon's extension
        yield number, words[0], rest, {}, None, ""


def _table(path: Path, column: str | int | None) -> Iterator[Entry]:
    """The rows of a table with a header; quoted cells may hold anything, line breaks too."""
    text = "".join(_lines(path))
    head = next((n for n in io.StringIO(text, newline="") if n.strip() and not n.startswith("#")), "")
    separator = max("\t,;", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    place, title, end = 0, None, 0
    while True:
        number = end + 1
        try:
            row = _next_row(reader)
        except csv.Error as error:
            end = reader.line_num
            why = "a cell is not quoted as a table's cells are"
            if "end of data" in str(error):
                why = f"a quoted cell does not end, and the {plural(end - number, 'line')} below it cannot be told from it"
            if not names:
                raise ValueError(f"{path}: its header cannot be read: {error}") from None
            yield number, text.splitlines()[number - 1], "", {}, None, why
            continue
        if row is None:
            return
        end = reader.line_num
        if not "".join(row).strip() or row[0].startswith("#"):
            continue
        if not names:
            names = [n.strip() for n in row]
            place = _column(path, names, column)
            title = next((i for i, n in enumerate(names) if _plain(n) in ID_NAMES and i != place), None)
            continue
        if len(row) != len(names):
            why = f"{plural(len(row), 'cell')} where the header has {len(names)}"
            yield number, separator.join(row), "", {}, None, why
            continue
        cells = [c.strip() for c in row]
        rest = {n: c or None for i, (n, c) in enumerate(zip(names, cells, strict=True)) if i not in (place, title)}
        name = cells[title] if title is not None else ""
        yield number, cells[place], name, rest, None, "" if cells[place] else "no SMILES"


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, None at the end. The most that a cell may hold is one number for the whole process: it is put back."""
    before = csv.field_size_limit(MOST_BYTES_A_CELL)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _plain(name: str) -> str:
    """The name of a column, the same for ``Canonical SMILES`` and ``canonical_smiles``."""
    return re.sub(r"[\s_-]+", "_", name.strip().strip("\"'").strip()).lower()


def _column(path: Path, names: Sequence[str], wanted: str | int | None) -> int:
    if isinstance(wanted, int) or (isinstance(wanted, str) and wanted.isdecimal() and wanted not in names):
        if not 1 <= int(wanted) <= len(names):
            raise ValueError(f"{path}: there is no column {wanted}, the table has {len(names)}: {', '.join(names)}")
        return int(wanted) - 1
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{path}: there is no column {wanted!r}; the columns are {', '.join(names)}")
        return names.index(wanted)
    plain = [_plain(n) for n in names]
    for known in SMILES_NAMES:
        if known in plain:
            return plain.index(known)
    if len(some := [i for i, n in enumerate(plain) if "smiles" in n]) == 1:
        return some[0]
    raise ValueError(
        f"{path}: no column is called {' or '.join(SMILES_NAMES[:3])}; say which holds the SMILES (--column), they are "
        f"{', '.join(names) or 'none'}"
    )


# ------------------------------------------------------------------------------------------------------------- SDF


def _sdf(path: Path, remove_hydrogens: bool) -> Iterator[Entry]:
    for number, block in enumerate(_blocks(_lines(path)), 1):
        if len(block) > 4 and not block[0].strip() and _COUNTS.match(block[4]) and not _COUNTS.match(block[3]):
            block = block[1:]  # an empty line behind the last record
        title = block[0].strip() if block else ""
        end = next((i for i, n in enumerate(block) if n.startswith("M  END")), None)
        properties = _properties(block[end + 1 :] if end is not None else [])
        mol, why = _mol_block(block if end is None else block[: end + 1], remove_hydrogens)
        yield number, title or f"record {number}", title, properties, mol, why


def _blocks(lines: Iterator[str]) -> Iterator[list[str]]:
    """Records, without the line of four dollars that ends each; the last may lack it."""
    block: list[str] = []
    for line in lines:
        line = line.rstrip("\r\n")
        if line.startswith("$$$$"):
            yield block
            block = []
        else:
            block.append(line)
    if any(line.strip() for line in block):
        yield block


def _properties(lines: Sequence[str]) -> dict[str, str | None]:
    """``> <name>``, then the value, of as many lines as there are up to an empty one.

    A line of a value may begin with ``>`` as well: a name stands behind an empty line, or where the last has no value yet.
    """
    found: dict[str, str | None] = {}
    name: str | None = None
    value: list[str] = []
    for line in [*lines, "", "> <>"]:
        tag = re.search(r"<(.*)>", line[1:]) if line.startswith(">") else None
        if line.startswith(">") and (name is None or (tag if not value else not value[-1].strip())):
            if name:
                while value and not value[-1].strip():
                    value.pop()
                found[name] = "\n".join(value) or None
            name, value = tag[1] if tag else line[1:].strip(), []
        else:
            value.append(line)
    return found


_COUNTS = re.compile(r"[ \d]{3}[ \d]{3}.*V[23]000\s*$")


def _mol_block(lines: Sequence[str], remove_hydrogens: bool) -> tuple[Any | None, str]:
    chem = rdkit()
    if len(lines) < 4:
        return None, f"cut off after {plural(len(lines), 'line')}"
    if not lines[-1].startswith("M  END"):
        return None, "it has no line 'M  END': cut off, or not written whole"
    if "V3000" not in lines[3] and (why := _fault_of_block(lines)):
        return None, why
    with heard() as log:
        try:
            rough = chem.MolFromMolBlock("\n".join(lines) + "\n", sanitize=False, removeHs=False)
        except (ValueError, RuntimeError) as error:
            return None, f"not a structure ({' '.join(str(error).split())[:120]})"
    if rough is None:
        return None, f"not a structure ({told(log) or 'it cannot be parsed'})"
    mol, why = sanitized(rough)
    if mol is None:
        return None, why
    if mol.GetNumConformers() and mol.GetConformer().Is3D():
        chem.AssignStereochemistryFrom3D(mol)
    else:
        chem.AssignChiralTypesFromBondDirs(mol)
        chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return chem.RemoveHs(mol) if remove_hydrogens else mol, ""


def _fault_of_block(lines: Sequence[str]) -> str:
    """What is wrong with a V2000 block, in the words of its own lines; empty if nothing is seen."""
    try:
        atoms, bonds = int(lines[3][:3]), int(lines[3][3:6])
    except ValueError:
        return f"its fourth line is no counts line: {lines[3][:30]!r}"
    says = f"the counts line says {plural(atoms, 'atom')} and {plural(bonds, 'bond')}"
    body = [n for n in lines[4:-1] if not n.startswith(("M  ", "S  "))]
    if len(body) < atoms + bonds:
        return f"{says}, and there are {plural(len(body), 'line')}"
    for i, line in enumerate(body[:atoms], 1):
        symbol = line[31:34].strip()
        if len(line.split()) < 4 or not all(_is_number(line[at : at + 10]) for at in (0, 10, 20)):
            return f"{says}, but line {i} of the atoms is none: {line.strip()[:30]!r}"
        if symbol not in SPECIAL and not is_element(symbol):
            return f"atom {i} is {symbol!r}, which is no element"
    for i, line in enumerate(body[atoms : atoms + bonds], 1):
        ends = [line[:3].strip(), line[3:6].strip(), line[6:9].strip()]
        if not all(end.isdecimal() for end in ends):
            return f"{says}, but line {i} of the bonds is none: {line.strip()[:30]!r}"
        if not all(1 <= int(end) <= atoms for end in ends[:2]):
            return f"bond {i} is between atoms {ends[0]} and {ends[1]}, of {atoms}"
    if over := [n for n in body[atoms + bonds :] if re.fullmatch(r"[ \d]{9,21}\s*", n)]:
        return f"{says}, and there are more: {over[0].strip()[:30]!r}"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _add_conformer(first: Any, other: Any) -> bool:
    """Give the first molecule the other's conformers, its atoms put into the first one's order; False if they do not match."""
    match = other.GetSubstructMatch(first)
    if len(match) != first.GetNumAtoms() or other.GetNumAtoms() != first.GetNumAtoms():
        return False
    moved = rdkit().RenumberAtoms(other, list(match))
    for conformer in moved.GetConformers():
        first.AddConformer(conformer, assignId=True)
    return True
