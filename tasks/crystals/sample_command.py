"""What ``manifoldflow sample crystals`` runs."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from manifoldflow.tasks.common.tables import plural, share, show
from manifoldflow.tasks.crystals.book import Book
from manifoldflow.tasks.crystals.describe import SYMMETRY, Facts, describe
from manifoldflow.tasks.crystals.elements import SYMBOLS, species_number
from manifoldflow.tasks.crystals.formula import MAX_ATOMS, Composition, charges, parse_units, read_formula
from manifoldflow.tasks.crystals.structure import Crystal, formula_of

Format = Literal["cif", "poscar", "extxyz"]
Rule = Literal["random", "radius", "substitute"]

__all__ = ["sample"]


def sample(
    out: str = "crystals",
    formula: str | None = None,
    z: str = "1",
    num: int = 5,
    num_atoms: str | None = None,
    from_: str | None = None,
    fixed: str | None = None,
    checkpoint: str | None = None,
    rule: Rule | None = None,
    data: str | None = None,
    steps: int = 50,
    choose: int | None = None,
    contact: float = 0.0,
    seed: int = 0,
    space_group: int | None = None,
    energy_above_hull: float | None = None,
    band_gap: float | None = None,
    relax: bool = False,
    relax_steps: int = 200,
    timeout: float = 120.0,
    workers: int = 1,
    symmetrise: float | None = None,
    tolerance: float = SYMMETRY,
    format: Format = "cif",
    max_atoms: int = MAX_ATOMS,
    report: bool = False,
    device: str = "cpu",
) -> None:
    """Generate crystals: of a formula, of a number of atoms, or from a guessed prototype; a file and a row of a table each.

    Structures and rows of `structures.csv` are written as they come. A killed run keeps them, another run into the same folder
    adds to them and overwrites nothing.

    Args:
        out: folder for the files (made if needed).
        formula: what to make, such as SrTiO3, "Ca(OH)2" or "CaSO4*2H2O". Formulas whose charges cannot be balanced are made, and
            flagged.
        z: formula units in the cell: 4, 1..4 or 1,2,4; `num` crystals are made of each.
        num: crystals for each number of formula units, or of atoms.
        num_atoms: make crystals of any composition with so many atoms in the cell: 8, 4..20 or 5,10 (needs a checkpoint that
            was trained for it). With a range the numbers are drawn evenly.
        from_: `--from FILE`: a guessed structure (CIF, POSCAR, extended XYZ) to refine. With `--formula` its elements are
            exchanged first, those of equal counts by how near they are.
        fixed: sublattice of `--from` that stays where it is, with the cell: elements such as Ti,O or numbers of atoms such as
            1-3,5; the other atoms are made anew.
        checkpoint: a model file, a run folder or the name of an embedded one.
        rule: no model but a rule, what models are compared with: random (atoms anywhere in a cube), radius (ideal structure
            types by the radii), substitute (nearest structure of `--data`, elements exchanged).
        data: training set (prepared folder or table): for `--rule substitute`, and for the nearest training structure. Default:
            that of an embedded checkpoint.
        steps: of sampling.
        choose: make so many for each that is kept, and keep those from which the rest is least far (the first is the best single
            guess). Default: 8 for a formula, 1 otherwise.
        contact: draw again, up to eight times, what has a closer contact than so many sums of covalent radii, such as 0.7.
        seed: of the random draws; the same seed gives the same crystals.
        space_group, energy_above_hull, band_gap: conditions, for checkpoints that were trained with them.
        relax: relax each with CHGNet (a learned surrogate of DFT) and write both versions.
        relax_steps: of the optimiser, at most.
        timeout: seconds for the relaxation of one crystal; one that takes longer is stopped and named.
        workers: processes that relax.
        symmetrise: write idealised conventional cells with the symmetry found within this tolerance (angstrom, spglib).
        tolerance: of the space groups in the table, angstrom.
        format: of the files.
        max_atoms: refuse cells with more atoms.
        report: also write `report.html` and `overview.png`.
        device: cpu or cuda.
    """
    for name, value, least in (
        ("num", num, 1),
        ("steps", steps, 1),
        ("choose", choose, 1),
        ("workers", workers, 1),
        ("relax-steps", relax_steps, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if not 0 <= contact < 1.5:
        raise ValueError(f"--contact must be at least 0 and below 1.5 sums of covalent radii, got {contact:g}")
    if max_atoms < 1:
        raise ValueError(f"--max-atoms must be at least 1, got {max_atoms}")
    for name, bound in (("timeout", timeout), ("tolerance", tolerance)):
        if not bound > 0:
            raise ValueError(f"--{name} must be above 0, got {bound:g}")
    if fixed is not None and from_ is None:
        raise ValueError("--fixed names atoms of a structure: give it with --from FILE")
    given = [
        name
        for name, value in (("--formula", formula), ("--num-atoms", num_atoms), ("--from", from_))
        if value is not None
    ]
    if not given:
        raise ValueError("say what to make: --formula SrTiO3, --num-atoms 8, or --from prototype.cif")
    if num_atoms is not None and len(given) > 1:
        other = next(name for name in given if name != "--num-atoms")
        raise ValueError(f"--num-atoms leaves the composition open and cannot be combined with {other}")
    if rule is not None and formula is None:
        raise ValueError(f"--rule {rule} needs a --formula")
    if rule is not None and (checkpoint is not None or from_ is not None):
        raise ValueError(
            f"--rule {rule} uses no model: leave out {'--checkpoint' if checkpoint is not None else '--from'}"
        )
    counts = read_formula(formula) if formula is not None else None
    if counts is not None and (balance := charges(counts)).is_balanced is False:
        print(
            f"note: {formula_of(counts)}: {balance.note}; it is made all the same, and flagged in the table",
            file=sys.stderr,
        )
    conditions = {"space_group": space_group, "energy_above_hull": energy_above_hull, "band_gap": band_gap}
    wanted_conditions = {name: value for name, value in conditions.items() if value is not None}
    if space_group is not None and not 1 <= space_group <= 230:
        raise ValueError(f"--space-group must be the number of a space group, 1 to 230, got {space_group}")

    if rule is not None and counts is not None:
        if wanted_conditions:
            raise ValueError(
                f"--rule {rule} knows no conditions: leave out --{next(iter(wanted_conditions)).replace('_', '-')}"
            )
        units = parse_units(z, counts, max_atoms)
        batches, known = _by_rule(rule, counts, units, num, data, seed), _known(data, None)
        source = f"rule {rule}"
    else:
        model = _Model(checkpoint, device, wanted_conditions, counts if from_ is None else None, z)
        wanted = _wanted(model, counts, z, num, num_atoms, from_, fixed, max_atoms, seed)
        known = _known(data, model.data)
        choose = choose or (8 if wanted[0].species is not None and from_ is None else 1)
        if choose > 1 and wanted[0].species is None:
            raise ValueError("--choose compares crystals of one composition: it needs a --formula or --from")
        batches = model.batches(wanted, steps, seed, choose, contact)
        source = model.name
    book = Book(out, format, symmetrise)
    run = _Run(book, known, relax, relax_steps, timeout, workers, tolerance, seed, keep=report)
    for batch in batches:
        run.add(batch)
    run.tell(source)
    if report:
        run.report(source)


class _Run:
    """Everything after a batch was made: files, relaxation, rows, what is said at the end."""

    def __init__(
        self,
        book: Book,
        known: Any,
        relax: bool,
        steps: int,
        timeout: float,
        workers: int,
        tolerance: float,
        seed: int,
        keep: bool,
    ) -> None:
        self.book, self.known, self.tolerance, self.seed, self.keep = book, known, tolerance, seed, keep
        self.relaxer: Any = None
        self.rows: list[Facts] = []
        self.entries: list[Any] = []
        self.failed: list[str] = []
        if relax:
            from manifoldflow.tasks.crystals.relax import Relaxer

            self.relaxer = Relaxer(steps=steps, timeout=timeout, workers=workers)

    def add(self, batch: Sequence[tuple[Crystal, str]]) -> None:
        """Write a batch, relax it, and add its rows."""
        made = [(crystal, label) for crystal, label in batch if len(crystal) and crystal.volume > 1e-6]
        if gone := len(batch) - len(made):
            self.failed.append(
                f"{plural(gone, 'crystal')} had no cell and {'was' if gone == 1 else 'were'} not written"
            )
        if not made:
            return
        self._remind(made[0][1])
        if self.relaxer is None:
            for crystal, label in made:  # a run that is killed leaves one file without a row at most
                self._rows([crystal], [self.book.write(crystal, label or crystal.formula)], [None])
            return
        crystals = [crystal for crystal, _ in made]
        files = [self.book.write(crystal, label or crystal.formula) for crystal, label in made]
        from rich.progress import Progress

        try:
            with Progress(transient=True) as progress:
                task = progress.add_task("relaxing (CHGNet)", total=len(crystals))
                for i, result in self.relaxer.map(crystals):
                    if result.crystal is not None:
                        self.book.write_relaxed(result.crystal, files[i])
                    if result.fault:
                        self.failed.append(f"{files[i]}: {result.fault}")
                        print(f"note: {files[i]}: {result.fault}", file=sys.stderr)
                    self._rows([crystals[i]], [files[i]], [result])
                    progress.advance(task)
        except BaseException:
            self.relaxer.close()
            raise

    def _remind(self, label: str) -> None:
        """Say once if an earlier run of this seed made the same."""
        twins = [
            row for row in self.book.older if row["seed"] == str(self.seed) and row["file"].startswith(f"{label}_")
        ]
        if twins and not self.rows:
            print(
                f"note: {self.book.folder}/ holds {twins[0]['file']} of seed {self.seed}; "
                "where the rest is the same, so are the new ones (--seed)",
                file=sys.stderr,
            )

    def _rows(self, crystals: list[Crystal], files: list[str], relaxed: list[Any]) -> None:
        above = None
        if self.relaxer is not None:
            from manifoldflow.tasks.crystals.energies import embedded_hull

            energies = [result.energy if result is not None else float("nan") for result in relaxed]
            above = embedded_hull().above(crystals, energies).tolist()
        rows = describe(
            crystals,
            files=files,
            relaxed=relaxed if self.relaxer is not None else None,
            known=self.known,
            above_hull=above,
            tolerance=self.tolerance,
            seed=self.seed,
        )
        self.book.add(rows)
        self.rows += rows
        if self.keep:
            from manifoldflow.tasks.crystals.report import Entry

            self.entries += [Entry(c, f, r) for c, f, r in zip(crystals, rows, relaxed, strict=True)]

    def tell(self, source: str) -> None:
        """The end: what was written, and a table of numbers."""
        if self.relaxer is not None:
            self.relaxer.close()
        if not self.rows:
            raise RuntimeError("no crystal came out: " + ("; ".join(self.failed) or "nothing was asked for"))
        names = [row.file for row in self.rows]
        first = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
        what = f"{plural(len(names), 'crystal')} to {self.book.folder}/ ({first})"
        print(f"wrote {what} and a row of structures.csv each, by {source}")
        if self.book.older:
            stay = "is" if len(self.book.older) == 1 else "are"
            print(f"{plural(len(self.book.older), 'structure')} of earlier runs {stay} still there")
        count = len(self.rows)
        contact = np.array([row.contact for row in self.rows])
        lines: list[tuple[str, str]] = [
            ("closest contact at least 0.7 of the radii", share(float((contact >= 0.7).sum()), count)),
            ("space group above P1", share(sum(row.space_group_number > 1 for row in self.rows), count)),
            ("charges balance", share(sum(row.charges.startswith("yes") for row in self.rows), count)),
        ]
        shifts = np.array([row.shift for row in self.rows])
        if np.isfinite(shifts).any():
            lines.append(
                ("median shift under CHGNet", f"{np.nanmedian(shifts):.3f} A (n = {int(np.isfinite(shifts).sum())})")
            )
        show(("of these structures", ""), lines, notes=self.failed[:20])

    def report(self, source: str) -> None:
        """The page and the picture."""
        from manifoldflow.tasks.common.runs import command_line
        from manifoldflow.tasks.crystals.report import write_overview, write_report

        info = {"made by": source, "seed": self.seed, "symmetry within": f"{self.tolerance:g} Å"}
        formulas = sorted({row.formula for row in self.rows})
        title = f"Crystals of {formulas[0]}" if len(formulas) == 1 else "Generated crystals"
        page = write_report(
            self.entries,
            self.book.folder / "report.html",
            title=title,
            command=command_line(),
            info=info,
            remarks=self.failed,
        )
        picture = write_overview(self.entries, self.book.folder / "overview.png", title=title)
        print(f"wrote {page} and {picture}")


class _Model:
    """A checkpoint and what it can do."""

    def __init__(
        self, checkpoint: str | None, device: str, conditions: dict[str, Any], counts: Any = None, z: str = "1"
    ) -> None:
        import torch

        from manifoldflow.checkpoint import known_checkpoints, read_metadata
        from manifoldflow.tasks.common.runs import load_model
        from manifoldflow.tasks.crystals.flow import BUILDER
        from manifoldflow.tasks.crystals.predicting import fitting

        if checkpoint is None:
            embedded = [name for name in known_checkpoints() if name.startswith("crystals")]
            if not embedded:
                raise FileNotFoundError("no embedded checkpoint of crystals is installed; name one with --checkpoint")
            checkpoint = fitting(embedded, counts if z.strip() == "1" else None)
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"--device {device}: this machine (or this build of torch) has no such GPU; use cpu")
        self.flow, path = load_model(checkpoint, BUILDER, "crystal flow", device=device)
        self.name = f"checkpoint {checkpoint}"
        self.facts = read_metadata(path)["training"]
        self.data = str(self.facts.get("data") or "").partition(".")[0] or None
        self.config: dict[str, Any] = dict(self.flow.config or {})
        self.conditions = conditions
        has = list(self.config.get("conditions") or ())
        if missing := [name for name in conditions if name not in has]:
            able = f"its conditions are {', '.join(has)}" if has else "it was trained without conditions"
            raise ValueError(f"{checkpoint}: has no condition {missing[0]} ({able})")

    @property
    def given_species(self) -> float:
        """Share of its training with given species: 0 for de novo only, 1 for structure prediction only."""
        return float(self.config.get("given_species", 1.0))

    @property
    def from_prototypes(self) -> bool:
        """Whether it was trained to start from prototypes."""
        return bool(self.facts.get("pairs") or self.facts.get("prototypes"))

    def batches(
        self, wanted: Sequence[Any], steps: int, seed: int, choose: int = 1, contact: float = 0.0
    ) -> Iterator[list[tuple[Crystal, str]]]:
        """Crystals batch by batch, with a progress bar."""
        from rich.progress import Progress

        from manifoldflow.tasks.crystals.consensus import chosen
        from manifoldflow.tasks.crystals.metrics import geometry
        from manifoldflow.tasks.crystals.sampling import batches_of, draw

        parts = list(batches_of(wanted, max(1, 64 // choose)))
        for number, rows in enumerate(parts):
            some = [wanted[i] for i in rows]
            every = [one for one in some for _ in range(choose)]
            crystals: list[Crystal] = []
            again = list(range(len(every)))
            with Progress(transient=True) as progress:
                for k in range(1 + (ROUNDS if contact > 0 else 0)):
                    what = f"sampling, batch {number + 1} of {len(parts)}" + (
                        f", {len(again)} of them again" if k else ""
                    )
                    task = progress.add_task(what, total=steps)
                    made = draw(
                        self.flow,
                        [every[i] for i in again],
                        steps=steps,
                        seed=seed,
                        number=number + k * len(parts),
                        from_prototypes=self.from_prototypes,
                        conditions=self.conditions,
                        callback=partial(progress.advance, task),
                    )
                    crystals = crystals or made
                    for i, crystal in zip(again, made, strict=True):
                        crystals[i] = crystal
                    if contact > 0:
                        cells = [i for i, crystal in enumerate(crystals) if len(crystal)]
                        apart = dict(zip(cells, geometry([crystals[i] for i in cells]).contact, strict=True))
                        again = [i for i in range(len(every)) if not apart.get(i, 0.0) >= contact]
                    if contact <= 0 or not again:
                        break
            if choose > 1:
                crystals_kept: list[tuple[Crystal, str]] = []
                draws = iter(crystals)
                for label, group in itertools.groupby(some, key=lambda one: one.label):
                    count = len(list(group))
                    whole = [c for c in itertools.islice(draws, count * choose) if len(c)]  # the others have no cell
                    crystals_kept += [(crystal, label) for crystal in chosen([whole], count)[0]]
                yield crystals_kept
                continue
            yield [(crystal, one.label) for crystal, one in zip(crystals, some, strict=True)]


ROUNDS = 8
"""In which crystals with close contacts are drawn again."""


def _wanted(
    model: _Model,
    counts: Any,
    z: str,
    num: int,
    num_atoms: str | None,
    from_: str | None,
    fixed: str | None,
    max_atoms: int,
    seed: int,
) -> list[Any]:
    """What to make, crystal by crystal."""
    from manifoldflow.tasks.crystals.sampling import Wanted

    if from_ is not None:
        guess = _guess(from_, counts, max_atoms)
        held = None if fixed is None else tuple(sublattice(fixed, guess))
        label = f"{guess.formula}_refined" if held is None else f"{guess.formula}_fixed"
        return [Wanted(len(guess), tuple(guess.species.tolist()), guess, held, label)] * num
    if counts is not None:
        if model.given_species <= 0:
            raise ValueError(
                f"{model.name} generates compositions and cannot be given one; use --num-atoms, or another --checkpoint"
            )
        made = []
        for units in parse_units(z, counts, max_atoms):
            cell = Composition(counts, units)
            made += [Wanted(cell.atoms, tuple(cell.species), label=f"{cell.formula}_Z{units}")] * num
        return made
    if model.given_species >= 1:
        raise ValueError(
            f"{model.name} was trained for structure prediction alone; give it a --formula, or another --checkpoint"
        )
    sizes = parse_sizes(str(num_atoms), max_atoms)
    draw = np.random.default_rng(seed)
    chosen = sorted(int(n) for n in draw.choice(sizes, num)) if len(sizes) > 1 else sizes * num
    return [Wanted(n, label="made") for n in chosen]


def parse_sizes(text: str, max_atoms: int) -> list[int]:
    """Numbers of atoms: ``"8"``, ``"4..20"`` or ``"5,10"``.

    Raises:
        ValueError: not such a range, no atom, or more than ``max_atoms``.
    """
    try:
        sizes = parse_units(text, ((0, 1),), 10_001)
    except ValueError as error:
        raise ValueError(
            str(error).replace("--z", "--num-atoms").replace("formula units", "atoms").replace("formula unit", "atom")
        ) from None
    if max(sizes) > max_atoms:
        raise ValueError(f"--num-atoms {text}: {max(sizes)} atoms are more than the {max_atoms} allowed (--max-atoms)")
    return sizes


def sublattice(text: str, crystal: Crystal) -> list[bool]:
    """Which atoms a sublattice means: elements such as ``Ti,O`` or numbers from 1 such as ``1-3,5``.

    Raises:
        ValueError: no such atom, or none is left to be made.
    """
    held = np.zeros(len(crystal), bool)
    for part in text.split(","):
        word = part.strip()
        first, dash, last = word.partition("-")
        if first.isdigit() and (last.isdigit() or not dash):
            low, high = int(first), int(last or first)
            if not 1 <= low <= high <= len(crystal):
                raise ValueError(f"--fixed {text}: the structure has atoms 1 to {len(crystal)}, got {word}")
            held[low - 1 : high] = True
            continue
        try:
            number = species_number(word)
        except ValueError:
            raise ValueError(f"--fixed {text}: {word!r} is neither an element nor a number of an atom") from None
        if not (crystal.species == number).any():
            there = ", ".join(SYMBOLS[s] for s in sorted(set(crystal.species.tolist())))
            raise ValueError(f"--fixed {text}: the structure has no {word}; it has {there}")
        held |= crystal.species == number
    if held.all():
        raise ValueError(f"--fixed {text}: all {len(crystal)} atoms are held, none is left to be made")
    return held.tolist()


def _guess(path: str, counts: Any, max_atoms: int) -> Crystal:
    """The prototype, with the elements of a formula where one is given."""
    from manifoldflow.tasks.crystals.baselines import Substitution
    from manifoldflow.tasks.crystals.reading import read_crystal

    guess = read_crystal(path)
    if len(guess) > max_atoms:
        raise ValueError(f"{path}: has {len(guess)} atoms in the cell, more than the {max_atoms} allowed (--max-atoms)")
    if counts is None:
        return guess
    wanted = formula_of(counts, int(np.gcd.reduce([n for _, n in counts])))
    if wanted == guess.formula:
        return guess
    whole = int(np.gcd.reduce([n for _, n in counts]))
    anonymous = tuple(sorted(n // whole for _, n in counts))
    if anonymous != guess.anonymous:
        ours, theirs = ":".join(map(str, anonymous)), ":".join(map(str, guess.anonymous))
        raise ValueError(f"{path}: {guess.formula} ({theirs}) cannot become {wanted} ({ours}): the counts differ")
    unit = [s for s, n in counts for _ in range(n // whole)]
    found = Substitution([guess]).candidates(unit, 1, np.zeros(1, bool))
    if not found:
        raise ValueError(f"{path}: {guess.formula} cannot become {wanted}")
    return found[0]


def _by_rule(
    rule: Rule, counts: Any, units: list[int], num: int, data: str | None, seed: int
) -> Iterator[list[tuple[Crystal, str]]]:
    """Crystals of a rule."""
    from manifoldflow.tasks.crystals.baselines import predict
    from manifoldflow.tasks.crystals.store import CrystalDataset

    known = CrystalDataset(data) if data is not None and rule == "substitute" else None
    name = Composition(counts).formula
    if rule != "random" and units != [1]:
        print(f"note: --rule {rule} makes the cells of its prototypes, whatever --z says", file=sys.stderr)
        units = [1]
    for z in units:
        species = Composition(counts, z).species
        made = predict(rule, [species], num, known=known, seed=seed)[0]
        if not made:
            raise ValueError(f"{name}: --rule {rule} knows no structure of these counts")
        if len(made) < num:
            print(f"note: {name}: --rule {rule} knows {plural(len(made), 'structure')}, not {num}", file=sys.stderr)
        yield [(crystal, f"{crystal.formula}_{rule}") for crystal in made]


def _known(data: str | None, trained_on: str | None) -> Any:
    """Training structures to look for the nearest one in; None where there are none."""
    from manifoldflow.tasks.crystals.nearest import Known, embedded_known

    if data is not None:
        from manifoldflow.tasks.crystals.store import CrystalDataset

        dataset = CrystalDataset(Path(data))
        return Known.of([dataset[i] for i in range(len(dataset))])
    return embedded_known(trained_on) if trained_on else None
