"""CIF files: their grammar, and the crystal in a data block.

Own code and not a library's, because libraries guess where a reader must not: they read half-occupied sites as atoms, the
first data block though it is empty, ``1.234(5)`` in some columns only, and one origin of two where the file does not say.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.crystals.elements import SYMBOLS, species_number
from manifoldflow.tasks.crystals.reading_symmetry import (
    MOST_OPERATIONS,
    Operations,
    expand,
    fits_cell,
    hall_settings,
    hermann_mauguin,
    leaves,
    operations_of,
    parse_operations,
)
from manifoldflow.tasks.crystals.structure import Crystal, cell_vectors

MOST_ATOMS = 10_000
"""Atoms in a cell beyond which a file is refused: comparing all pairs needs memory that grows with the square."""
LONGEST_LINE = 100_000
"""Characters; the format allows 2,048."""
UNKNOWN = ("?", ".", "")

_TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<comment>\#[^\n]*)"""
    r"""|'(?P<single>(?:[^'\n]|'(?=[^\s]))*)'(?=\s|$)"""
    r"""|"(?P<double>(?:[^"\n]|"(?=[^\s]))*)"(?=\s|$)"""
    r"""|(?P<word>\S+)"""
)


@dataclass
class Block:
    """A data block: single values and loops by tag, tags in lower case with ``_`` for ``.``"""

    name: str
    values: dict[str, str] = field(default_factory=dict)
    loops: dict[str, list[str]] = field(default_factory=dict)
    loop_of: dict[str, int] = field(default_factory=dict)
    torn: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Tags that the block gives twice, and not the same: what is said of them."""

    def put(self, tag: str, value: str) -> None:
        """A single value."""
        if self.values.get(tag, value) != value:
            self.torn[tag] = (self.values[tag], value)
        self.values[tag] = value

    def put_column(self, tag: str, column: list[str], loop: int) -> None:
        """A column of a loop, of which each has a number."""
        if self.loops.get(tag, column) != column:
            self.torn[tag] = (f"{len(self.loops[tag])} values", f"{len(column)} others")
        self.loops[tag] = column
        self.loop_of[tag] = loop

    def get(self, *tags: str) -> str | None:
        """The value of the first of these tags that says something."""
        for tag in tags:
            value = self.values.get(tag)
            if value is None and len(self.loops.get(tag, ())) == 1:
                value = self.loops[tag][0]
            if value is not None and value.strip() not in UNKNOWN:
                return value
        return None

    def column(self, *tags: str) -> list[str] | None:
        """The column of the first of these tags that is there; a single value is a column of one."""
        for tag in tags:
            if tag in self.loops:
                return self.loops[tag]
            if tag in self.values:
                return [self.values[tag]]
        return None


def _tokens(text: str) -> list[tuple[str, bool]]:
    """Words of a CIF file and whether they are quoted."""
    found: list[tuple[str, bool]] = []
    pieces = re.split(r"(?m)^;", text)  # a text field stands between lines that begin with a semicolon
    for number, piece in enumerate(pieces):
        if number % 2:
            if number == len(pieces) - 1:
                raise ValueError("a text field that begins with ';' does not end")
            found.append((piece.removesuffix("\n"), True))
            continue
        for match in _TOKEN.finditer(piece):
            kind = match.lastgroup
            if kind == "word":
                found.append((match[0], False))
            elif kind in ("single", "double"):
                found.append((match[kind], True))
    return found


def parse_cif(text: str) -> list[Block]:
    """The data blocks of a CIF file.

    Lines may end in any way; tags and keywords may be of any case; ``_atom_site.fract_x`` is ``_atom_site_fract_x``.

    Raises:
        ValueError: not a CIF file, or one cut short in a loop.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\x1a\0\n ")
    if "\n" not in text and "\\n" in text:  # a table or a JSON string whose ends of line were escaped
        text = text.replace("\\r", "").replace("\\n", "\n").replace("\\t", "\t")
    if max(map(len, text.split("\n"))) > LONGEST_LINE:
        raise ValueError(f"not a CIF file: a line is longer than {LONGEST_LINE:,} characters")
    if not text.lstrip().startswith(("#", "_", "loop_")) and (first := re.search(r"(?mi)^data_", text)):
        text = text[first.start() :]  # behind what a site or a mail has put in front
    blocks: list[Block] = []
    tokens = _tokens(text)
    at, loops = 0, 0
    while at < len(tokens):
        word, quoted = tokens[at]
        lower = word.lower()
        if not quoted and lower.startswith("data_"):
            blocks.append(Block(word[5:]))
            at += 1
        elif not quoted and lower == "loop_":
            at, loops = at + 1, loops + 1
            tags: list[str] = []
            while at < len(tokens) and not tokens[at][1] and tokens[at][0].startswith("_"):
                tag = _tag(tokens[at][0])
                if tags and tag.split("_")[1:2] != tags[0].split("_")[1:2]:
                    break  # another category: the loop had no values at all
                tags.append(tag)
                at += 1
            values = []
            while at < len(tokens) and (tokens[at][1] or not _is_syntax(tokens[at][0])):
                values.append(tokens[at][0])
                at += 1
            if not tags:
                continue
            block = _last(blocks)
            if len(values) % len(tags):
                kind = "atom sites" if any(tag.startswith("_atom_site_fract") for tag in tags) else tags[0]
                raise ValueError(
                    f"the loop of {kind} has {len(tags)} columns but {len(values)} values; a row is not whole (cut short?)"
                )
            for column, tag in enumerate(tags):
                block.put_column(tag, values[column :: len(tags)], loops)
        elif not quoted and word.startswith("_"):
            if at + 1 < len(tokens) and (tokens[at + 1][1] or not _is_syntax(tokens[at + 1][0])):
                _last(blocks).put(_tag(word), tokens[at + 1][0])
                at += 2
            else:
                _last(blocks).values.setdefault(_tag(word), "?")
                at += 1
        else:
            if (
                not quoted and lower.startswith("save_") and len(lower) > 5
            ):  # a frame of a dictionary, up to the next save_
                end = (i for i in range(at + 1, len(tokens)) if tokens[i][0].lower() == "save_" and not tokens[i][1])
                at = next(end, at)
            elif not blocks:
                shown = text.strip().splitlines()[0][:60] if text.strip() else ""
                raise ValueError(f"not a CIF file: it begins with {shown!r}, expected 'data_...'")
            at += 1  # stop_, or a stray word
    if not blocks:
        raise ValueError("not a CIF file: it is empty or holds comments only")
    return blocks


def _tag(word: str) -> str:
    return word.lower().replace(".", "_")


def _is_syntax(word: str) -> bool:
    lower = word.lower()
    return word.startswith("_") or lower in ("loop_", "stop_", "global_") or lower.startswith(("data_", "save_"))


def _last(blocks: list[Block]) -> Block:
    if not blocks:
        blocks.append(Block(""))  # tags before the first data_ line
    return blocks[-1]


_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?)(?:\s*\(\s*\d*\s*\))?")


def number(text: str, what: str) -> float:
    """A number, its standard uncertainty in brackets left out; ``1/3`` too.

    Raises:
        ValueError: not one.
    """
    word = text.strip().replace("−", "-")  # the minus of typesetters
    found = _NUMBER.fullmatch(word)
    if found:
        return float(found[1].lower().replace("d", "e"))
    if ratio := re.fullmatch(r"([+-]?\d+)/(\d+)", word):
        if int(ratio[2]):
            return int(ratio[1]) / int(ratio[2])
    raise ValueError(f"{what} is {text!r}, expected a number")


def has_atoms(block: Block) -> bool:
    """Whether a data block lists atom sites."""
    return any(block.column(tag) for tag in ("_atom_site_fract_x", "_atom_site_cartn_x"))


def element_of(symbol: str | None, label: str | None, where: str) -> int:
    """The species of a site from its type symbol (``Fe3+``), or where that is missing from its label (``Fe1``).

    Raises:
        ValueError: neither names an element.
    """
    text = symbol if symbol is not None and symbol.strip() not in UNKNOWN else None
    if group := _GROUP.match((text if text is not None else label or "").strip()):
        raise ValueError(f"{where}: {group[1]!r} is a group of atoms and no element; its atoms are not listed")
    if text is not None:
        found = re.fullmatch(r"\d*([A-Za-z]{1,2})(?:\d*\.?\d*[+-]\d*\.?\d*|[+-]?\d+[+-]?|\s.*|[(_].*)?", text.strip())
        if found:
            try:
                return species_number(found[1].capitalize())
            except ValueError:
                pass
        else:  # a type symbol may carry a label: 'Fe_a', 'OW1'
            return _from_label(text, f"{where}: type symbol {text!r}")
        raise ValueError(f"{where}: {text!r} is no element (a dummy or an unknown species)")
    if label is None or label.strip() in UNKNOWN:
        raise ValueError(f"{where}: neither a type symbol nor a label says which element it is")
    return _from_label(label, f"{where}: label {label!r}")


_GROUP = re.compile(r"([HD]2O|O[HD]2|[HD]3O|NH[234]|BH4|CH[34]|NO[23]|[SP]O[34]|ClO4|BF4|PF6|SCN|Wat|WAT|HOH)(?![a-z])")
"""Not CO3 and ND4, which are the third cobalt and the fourth neodymium where a file is in upper case."""


def _from_label(label: str, where: str) -> int:
    letters = re.match(r"\d*([A-Za-z]*)", label.strip())
    run = letters[1] if letters else ""
    for guess in (
        run if len(run) <= 2 else "",
        run[:2] if len(run) > 2 and run[:2].istitle() and run[2].isupper() else "",
    ):
        if (guess and guess.capitalize() in SYMBOLS) or guess in ("D", "T"):
            return species_number(guess.capitalize())
    if 0 < len(run) <= 2 and run[0].upper() in SYMBOLS and run[0].isupper() and run.capitalize() not in _DUMMIES:
        return species_number(run[0])  # OW and OH are oxygens
    raise ValueError(f"{where} names no element (a dummy or an unknown species)")


_DUMMIES = ("Du", "Xx", "Va", "Me", "Ln", "Re", "Vc")


def _cell_of(block: Block) -> NDArray[np.float64]:
    values = []
    for part, what in zip(("a", "b", "c", "alpha", "beta", "gamma"), ("length",) * 3 + ("angle",) * 3, strict=True):
        tag = f"_cell_{what}_{part}"
        text = block.get(tag)
        if text is None and what == "angle" and block.values.get(tag, ".").strip() == ".":
            text = "90"  # what the dictionary of the format says of an angle that is not there
        if text is None:
            raise ValueError(f"it has no cell: {tag} is missing or unknown")
        values.append(number(text, tag))
    return cell_vectors(*values)


@dataclass
class _Site:
    species: int
    frac: NDArray[np.float64]
    occupancy: float
    name: str
    group: str

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.species]

    @property
    def place(self) -> str:
        return "(" + ", ".join(f"{value:.4g}" for value in self.frac + 0.0) + ")"


def _sites_of(block: Block, cell: NDArray[np.float64]) -> list[_Site]:
    axes = ("x", "y", "z")
    columns = [block.column(f"_atom_site_fract_{axis}") for axis in axes]
    is_cartesian = any(column is None for column in columns)
    if is_cartesian:
        columns = [block.column(f"_atom_site_cartn_{axis}") for axis in axes]
    if any(column is None for column in columns):
        raise ValueError("a coordinate column of _atom_site is missing")
    count = len(columns[0] or ())
    symbols = block.column("_atom_site_type_symbol")
    labels = block.column("_atom_site_label", "_atom_site_label_atom_id", "_atom_site_id")
    occupancies = block.column("_atom_site_occupancy")
    groups = block.column("_atom_site_disorder_group")
    flags = block.column("_atom_site_calc_flag")
    attached = block.column("_atom_site_attached_hydrogens")
    sites = []
    for i in range(count):
        if flags is not None and i < len(flags) and flags[i].strip().lower() == "dum":
            continue  # marked as no atom
        label = labels[i] if labels is not None and i < len(labels) else None
        name = label if label not in (None, *UNKNOWN) else f"{i + 1}"
        where = f"site {name}"
        occupancy = 1.0
        if occupancies is not None and i < len(occupancies) and occupancies[i] not in UNKNOWN:
            occupancy = number(occupancies[i], f"{where}: occupancy")
        if occupancy == 0:
            continue
        if attached is not None and i < len(attached) and attached[i] not in UNKNOWN:
            if hydrogens := number(attached[i], f"{where}: attached hydrogens"):
                raise ValueError(f"{where}: {hydrogens:g} attached hydrogens are not listed: atoms are missing")
        species = element_of(symbols[i] if symbols is not None and i < len(symbols) else None, label, where)
        values = []
        for axis, column in zip(axes, columns, strict=True):
            assert column is not None
            if i >= len(column) or column[i] in UNKNOWN:
                raise ValueError(f"{where} ({SYMBOLS[species]}): its coordinate {axis} is unknown")
            values.append(number(column[i], f"{where}: coordinate {axis}"))
        frac = np.array(values)
        if is_cartesian:
            frac = frac @ np.linalg.inv(cell)
        group = groups[i] if groups is not None and i < len(groups) else "."
        sites.append(_Site(species, frac, occupancy, str(name), group if group not in (*UNKNOWN, "0") else ""))
    if not sites:
        raise ValueError("it lists no atoms")
    return sites


def _check_order(sites: list[_Site], cell: NDArray[np.float64]) -> None:
    """Raise for shared and partly occupied sites and for disorder groups; name the site and who shares it."""
    frac = np.stack([site.frac for site in sites])
    for site in sites:
        if abs(site.occupancy - 1) <= 5e-3 and not (site.group and len({s.group for s in sites if s.group}) > 1):
            continue
        between = frac - site.frac
        between -= np.rint(between)
        here = [sites[int(i)] for i in np.flatnonzero(np.linalg.norm(between @ cell, axis=1) < 0.5)]
        if len(here) > 1:
            parts = [f"{s.symbol} {s.occupancy:g}" for s in here]
            raise ValueError(f"disorder: site {site.place} is shared by {', '.join(parts[:-1])} and {parts[-1]}")
        if site.occupancy > 1:
            raise ValueError(f"site {site.place}: {site.symbol} has the occupancy {site.occupancy:g}, more than 1")
        if site.occupancy < 0:
            raise ValueError(f"site {site.place}: {site.symbol} has the occupancy {site.occupancy:g}")
        if abs(site.occupancy - 1) > 5e-3:
            raise ValueError(f"disorder: site {site.place} is occupied by {site.symbol} to {site.occupancy:g} only")
        raise ValueError(f"disorder: site {site.name} at {site.place} belongs to the disorder group {site.group}")


_OPERATIONS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_space_group_symop_magn_operation_xyz",
)
_CENTRINGS = ("_space_group_symop_magn_centering_xyz",)
_HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_NAMES = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_symmetry_space_group_name_h-m_full",
)
_INT = ("_space_group_it_number", "_symmetry_int_tables_number")


def _operations_of(block: Block, cell: NDArray[np.float64], sites: list[_Site]) -> Operations:
    metric = cell @ cell.T
    listed = block.column(*_OPERATIONS) or []
    texts = [text for text in [*listed, *(block.column(*_CENTRINGS) or ())] if text.strip() not in UNKNOWN]
    if len(texts) > MOST_OPERATIONS:
        raise ValueError(f"{len(texts):,} symmetry operations, more than {MOST_OPERATIONS:,}")
    if texts:
        operations = parse_operations(texts, most=192 * max(1, len(texts) - len(listed)))
        if not leaves(operations, metric):
            raise ValueError("the cell does not have the symmetry of the operations that are listed")
        return operations
    for tags, lookup in ((_HALL, hall_settings), (_NAMES, hermann_mauguin), (_INT, hermann_mauguin)):
        name = block.get(*tags)
        if name is None:
            continue
        settings = lookup(name)
        if not settings:
            continue
        fitting = [hall for hall in settings if fits_cell(hall, metric)]
        if not fitting:
            raise ValueError(f"the cell does not have the symmetry of its space group {name!r}")
        return _choose(fitting, block, cell, sites, name)
    if block.get(*_HALL) or block.get(*_NAMES):
        name = block.get(*_HALL) or block.get(*_NAMES)
        raise ValueError(f"no symmetry operations are listed, and the space group {name!r} is not known")
    return np.eye(3)[None], np.zeros((1, 3))


def _choose(settings: list[int], block: Block, cell: NDArray[np.float64], sites: list[_Site], name: str) -> Operations:
    """The setting that is meant: the only one, or of two the one that gives the formula and the Z that the file states."""
    import spglib

    kinds: list[Any] = [spglib.get_spacegroup_type(hall) for hall in settings]
    numbers, choices = {kind.number for kind in kinds}, [kind.choice[:1] for kind in kinds]
    if len(settings) == 1 or not all(choice in ("1", "2") for choice in choices) or len(numbers) > 1:
        return operations_of(settings[0])
    wanted, units = _stated_counts(block), _stated_units(block)
    fitting: list[tuple[int, int]] = []
    for hall in settings:
        operations = operations_of(hall)
        counts: dict[int, int] = {}
        for site in sites:
            counts[site.species] = counts.get(site.species, 0) + len(expand(site.frac, cell, operations))
        if wanted is None or any(counts == {k: v * z for k, v in wanted.items()} for z in range(1, 65)):
            fitting.append((sum(counts.values()), hall))
    if wanted is not None and units is not None:
        fitting = [item for item in fitting if item[0] == units * sum(wanted.values())] or fitting
    fitting.sort()
    if len(fitting) == 1 or (len(fitting) > 1 and fitting[0][0] < fitting[1][0]):
        return operations_of(fitting[0][1])  # the origin for which the sites are special positions
    raise ValueError(
        f"space group {name!r} has two origins, no symmetry operations are listed, and the formula does not tell which is meant"
    )


def _stated_units(block: Block) -> int | None:
    text = block.get("_cell_formula_units_z")
    try:
        return round(number(text, "Z")) if text is not None else None
    except ValueError:
        return None


def _stated_counts(block: Block) -> dict[int, int] | None:
    text = block.get("_chemical_formula_sum")
    if text is None:
        return None
    counts: dict[int, int] = {}
    for word in re.findall(r"([A-Z][a-z]?)\s*([\d.]*)", text):
        try:
            counts[species_number(word[0])] = counts.get(species_number(word[0]), 0) + round(float(word[1] or 1))
        except ValueError:
            return None
    return counts or None


def _check_modulation(block: Block) -> None:
    dimension = block.get("_cell_modulation_dimension")
    if (dimension is not None and dimension.strip() != "0") or block.column(
        "_space_group_symop_ssg_operation_algebraic", "_space_group_symop_magn_ssg_operation_algebraic"
    ):
        raise ValueError("a modulated structure (of a superspace group): it has no cell that repeats")


def crystal_of(block: Block, name: str = "", labels: dict[str, Any] | None = None) -> Crystal:
    """The crystal of a data block, all atoms of one cell, cell as the file has it.

    Raises:
        ValueError: there is none, or it is not ordered; says why and which site.
    """
    for tag, values in block.torn.items():
        if tag.startswith(("_cell_length", "_cell_angle", "_atom_site_fract", "_atom_site_type", "_atom_site_label")):
            raise ValueError(f"{tag} is given twice: {values[0]} and {values[1]}")
    _check_modulation(block)
    cell = _cell_of(block)
    sites = _sites_of(block, cell)
    _check_order(sites, cell)
    stated = _stated_counts(block) or {}
    if missing := [SYMBOLS[species] for species in stated if not any(site.species == species for site in sites)]:
        formula = block.get("_chemical_formula_sum")
        raise ValueError(f"its formula is {formula!r}, and no site lists {' or '.join(missing)}: atoms are missing")
    operations = _operations_of(block, cell, sites)
    if len(sites) > MOST_ATOMS:
        raise ValueError(f"{len(sites):,} sites, more than {MOST_ATOMS:,}")
    species: list[int] = []
    parts = []
    for site in sites:
        images = expand(site.frac, cell, operations)
        species += [site.species] * len(images)
        parts.append(images)
        if len(species) > MOST_ATOMS:
            raise ValueError(f"more than {MOST_ATOMS:,} atoms in the cell")
    return Crystal(np.array(species, np.int64), np.concatenate(parts), cell, name, dict(labels or {}))
