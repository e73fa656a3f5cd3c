"""Structures without a model: random atoms, an ideal prototype by radii, the nearest known structure with other elements.

These are the rows beside every number: the published matcher accepts a third of random perovskites, and exchanging elements
solves most of what databases hold.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from manifoldflow.tasks.crystals.elements import COVALENT, ELECTRONEGATIVITY, period_and_group
from manifoldflow.tasks.crystals.prototypes import NAMED, PROTOTYPES, Prototype, assign, scaled
from manifoldflow.tasks.crystals.structure import Crystal, formula_of, parse_formula

Rule = Literal["random", "radius", "substitute"]
RULES: tuple[Rule, ...] = ("random", "radius", "substitute")

Formula = str | Sequence[int]
"""A formula such as ``"SrTiO3"``, or the species of all atoms of the cell."""


def _species(formula: Formula) -> list[int]:
    if isinstance(formula, str):
        return [species for species, count in parse_formula(formula) for _ in range(count)]
    return [int(species) for species in formula]


def _named(crystal: Crystal, rank: int, **labels: Any) -> Crystal:
    return replace(crystal, name=f"{crystal.formula}_{rank}", labels=labels)


def random_atoms(formulas: Sequence[Formula], num: int = 1, seed: int = 0, packing: float = 0.5) -> list[list[Crystal]]:
    """Atoms at random places of a cubic cell.

    Args:
        formulas: of the cells.
        num: crystals for each.
        seed: of the draws; a formula's crystals depend on it and the formula's place in the list.
        packing: share of the cell that spheres of the covalent radii fill, which gives its volume.
    """
    result = []
    for i, formula in enumerate(formulas):
        species = np.array(_species(formula), np.int64)
        edge = (4 / 3 * np.pi * (COVALENT[species] ** 3).sum() / packing) ** (1 / 3)
        rng = np.random.default_rng((seed, i))
        result.append(
            [
                _named(Crystal(species, rng.random((len(species), 3)), edge * np.eye(3)), k, rule="random")
                for k in range(num)
            ]
        )
    return result


def ideal_prototype(formulas: Sequence[Formula], num: int = 1) -> list[list[Crystal]]:
    """Ideal structure types filled by radii: the most electronegative atoms become anions, A is the largest of the others.

    Several candidates are further types of the same counts, then those with A and B exchanged. Perovskites take any five atoms:
    mixed anions such as O2N stand on the three sites of X.

    Args:
        formulas: of the cells; as many formula units as the structure type has are made, whatever the formula's own number.
        num: candidates for each, at most; fewer where no more types fit, none where no type fits.
    """
    return [_ideal(_species(formula), num) for formula in formulas]


def _ideal(species: list[int], num: int) -> list[Crystal]:
    unit = _unit(species)
    found = [made for prototype in _ranked(unit) for made in [_filled(unit, prototype)] if made is not None]
    found += [
        made for prototype in _ranked(unit) for made in [_filled(unit, prototype, exchange=True)] if made is not None
    ]
    return [_named(crystal, k, rule="radius", prototype=crystal.name) for k, crystal in enumerate(found[:num])]


def _unit(species: list[int]) -> list[int]:
    """The species of one formula unit."""
    numbers, counts = np.unique(species, return_counts=True)
    return np.repeat(numbers, counts // np.gcd.reduce(counts)).tolist()


def _ranked(unit: list[int]) -> list[Prototype]:
    """Structure types that hold so many atoms; ionic ones first where electronegativities differ by 1 or more."""
    eager = ELECTRONEGATIVITY[unit]
    is_ionic = np.isnan(eager).any() or eager.max() - eager.min() >= 1.0
    metallic = (
        "cesium_chloride",
        "gold_copper",
        "laves",
        "aluminium_diboride",
        "gold_copper_3",
        "a15",
        "heusler",
        "half_heusler",
    )
    fitting = [p for p in PROTOTYPES if sum(p.count().values()) == len(unit)]
    return sorted(
        fitting, key=lambda p: (p.name in metallic) == bool(is_ionic)
    )  # stable: the order of the list otherwise


def _filled(unit: list[int], prototype: Prototype, exchange: bool = False) -> Crystal | None:
    roles = assign(unit, prototype)
    if roles is None:
        return None
    if exchange:
        if len(roles["A"]) != len(roles["B"]) or roles["A"] == roles["B"]:
            return None
        roles["A"], roles["B"] = roles["B"], roles["A"]
    if all(len(set(part)) <= 1 for part in roles.values()):
        return prototype.fill({role: part[0] for role, part in roles.items() if part})
    if prototype is not NAMED["perovskite"] or any(len(set(roles[role])) > 1 for role in ("A", "B")):
        return None
    ideal = prototype.fill({"A": 0, "B": 1, "X": 2})
    filled = {0: roles["A"], 1: roles["B"], 2: list(roles["X"])}
    sites = np.array([filled[s][0] if s < 2 else filled[2].pop() for s in ideal.species.tolist()], np.int64)
    return scaled(replace(ideal, species=sites))


class Substitution:
    """The nearest known structures with the elements exchanged.

    Known structures of the same counts (ABX3 for ABX3) are ranked by how near their elements are to those wanted, over all ways
    to exchange elements of equal counts; cells are scaled by the radii, nothing is relaxed.

    Args:
        known: the training set.
        weights: of the differences in group (per group), period, electronegativity and covalent radius (per angstrom).
        other_size: added where the cell wanted has another number of atoms than the known one: polymorphs differ in it.
        distinct: of several candidates each is of another structure type (space group, number of atoms, sites of the species), as
            long as there are types, and a known structure may come back with its elements in another order; otherwise the
            nearest known structures whatever their types.

    Attributes:
        features: of the elements, by species number, weighted: their L1 distance is the distance of two elements.
    """

    def __init__(
        self,
        known: Sequence[Crystal],
        weights: tuple[float, float, float, float] = (1.0, 0.5, 1.0, 1.0),
        other_size: float = 5.0,
        distinct: bool = True,
    ) -> None:
        self.known, self.other_size, self.distinct = known, other_size, distinct
        self._site_of: dict[int, tuple[int, list[tuple[int, str, int]]]] = {}
        self._sizes = np.array(known.lengths if hasattr(known, "lengths") else [len(c) for c in known])
        self.features = element_features(weights)
        rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
        elements: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
        for i in range(len(known)):
            crystal = known[i]
            order = sorted(crystal.composition, key=lambda item: item[1])
            rows[crystal.anonymous].append(i)
            elements[crystal.anonymous].append([species for species, _ in order])
        self._rows = {key: np.array(value) for key, value in rows.items()}
        self._elements = {key: np.array(value) for key, value in elements.items()}

    def nearest(
        self, formula: Formula, num: int = 1, forbidden: NDArray[np.bool_] | None = None
    ) -> list[tuple[float, int, dict[int, int]]]:
        """Distance, row of the known structure, and its species to the wanted ones, nearest first.

        Args:
            formula: wanted; the species of all atoms say how many there are in the cell, too.
            num: how many, at most.
            forbidden: rows that must not be used, by row of ``known``: those of a held-back formula.
        """
        species = _species(formula)
        numbers, counts = np.unique(_unit(species), return_counts=True)
        order = np.argsort(counts, kind="stable")
        numbers, counts = numbers[order], counts[order]
        key = tuple(int(count) for count in counts)
        if key not in self._rows:
            return []
        rows, elements = self._rows[key], self._elements[key]
        perms = np.array([p for p in itertools.permutations(range(len(key))) if (counts[list(p)] == counts).all()])
        wanted = self.features[numbers][perms]  # (perms, elements, features)
        had = self.features[elements]  # (rows, elements, features)
        each = np.abs(had[:, None] - wanted).sum(-1)
        cost = (each * np.sqrt(counts)).sum(-1)  # (rows, perms)
        if not isinstance(formula, str):
            cost = cost + self.other_size * (self._sizes[rows] != len(species))[:, None]
        if forbidden is not None:
            cost = np.where(forbidden[rows][:, None], np.inf, cost)
        if not self.distinct:  # every known structure once, filled in the best way
            cost = np.where(cost == cost.min(1, keepdims=True), cost, np.inf)
        result: list[tuple[float, int, dict[int, int]]] = []
        again: list[tuple[float, int, dict[int, int]]] = []
        seen: set[Any] = set()
        for flat in np.argsort(cost, axis=None, kind="stable").tolist():
            place, way = divmod(flat, len(perms))
            if len(result) == num or not np.isfinite(cost[place, way]):
                break
            new = numbers[perms[way]]
            mapping = dict(zip(elements[place].tolist(), new.tolist(), strict=True))
            one = (float(cost[place, way]), int(rows[place]), mapping)
            if self.distinct and num > 1:
                kind = self._kind(int(rows[place]), mapping)
                if kind in seen:
                    again.append(one)
                    continue
                seen.add(kind)
            result.append(one)
        return sorted([*result, *again[: num - len(result)]], key=lambda item: item[0])

    def _kind(self, row: int, mapping: dict[int, int]) -> Any:
        """What tells structure types apart: space group, number of atoms, and the sites of each of the wanted species."""
        if row not in self._site_of:
            from manifoldflow.tasks.crystals.writing import sites_of

            self._site_of[row] = sites_of(self.known[row])
        group, sites = self._site_of[row]
        taken = sorted((mapping[species], letter, often) for species, letter, often in sites)
        return group, int(self._sizes[row]), tuple(taken)

    def candidates(self, formula: Formula, num: int = 1, forbidden: NDArray[np.bool_] | None = None) -> list[Crystal]:
        """The nearest known structures with the wanted elements, see :meth:`nearest`; each with the volume that radii give."""
        made = []
        for rank, (distance, row, mapping) in enumerate(self.nearest(formula, num, forbidden)):
            template = self.known[row]
            made.append(
                _named(exchange(template, mapping), rank, rule="substitute", parent=template.name, distance=distance)
            )
        return made


def exchange(template: Crystal, mapping: dict[int, int]) -> Crystal:
    """A crystal with other elements in its places, its volume scaled by the cubes of the covalent radii.

    Args:
        template: the crystal.
        mapping: old species to new.
    """
    species = np.array([mapping[s] for s in template.species.tolist()], np.int64)
    scale = (COVALENT[species] ** 3).sum() / (COVALENT[template.species] ** 3).sum()
    return replace(template, species=species, cell=template.cell * scale ** (1 / 3))


def element_features(weights: tuple[float, float, float, float] = (1.0, 0.5, 1.0, 1.0)) -> NDArray[np.float64]:
    """What tells elements apart, by species number ``(ELEMENTS, 4)``: group, period, electronegativity and covalent radius
    (angstrom) times ``weights``. The L1 distance of two rows is the distance of two elements."""
    period, group = period_and_group()
    eager = np.nan_to_num(ELECTRONEGATIVITY, nan=4.5)
    return np.stack([group, period, eager, COVALENT], 1) * np.array(weights)


def alike(known: Iterable[Crystal], nearest: int = 6) -> NDArray[np.int64]:
    """For every species number the ``nearest`` elements of ``known`` most like it, itself first, ``(ELEMENTS, nearest)``.

    An element that ``known`` lacks stands for itself alone.
    """
    features = element_features()
    present = np.unique(np.concatenate([np.unique(c.species) for c in known]))
    apart = np.abs(features[present][:, None] - features[present]).sum(-1)
    table = np.repeat(np.arange(len(features))[:, None], nearest, 1)
    order = present[np.argsort(apart, axis=1, kind="stable")[:, :nearest]]
    table[present, : order.shape[1]] = order
    return table


def relatives(known: Sequence[Crystal], num: int, seed: int = 0, nearest: int = 6) -> list[Crystal]:
    """New compounds without a model: known structures, each element exchanged for one of those most like it.

    Args:
        known: the training set.
        num: how many.
        seed: of the draws.
        nearest: elements, of those in the set, from which a new one is drawn, the old one among them; no element stands for two
            others.

    Returns:
        Crystals of formulas that are not in the set, volumes scaled by the radii.
    """
    rng = np.random.default_rng(seed)
    near = alike(known, nearest)
    formulas = {c.formula for c in known}
    made: list[Crystal] = []
    for _ in range(50 * num):
        if len(made) == num:
            break
        template = known[int(rng.integers(len(known)))]
        mapping = {s: int(rng.choice(near[s])) for s, _ in template.composition}
        crystal = exchange(template, mapping)
        if len(set(mapping.values())) == len(mapping) and crystal.formula not in formulas:
            made.append(_named(crystal, len(made), rule="relatives", parent=template.name))
    return made


def substitute(
    formulas: Sequence[Formula], known: Sequence[Crystal], num: int = 1, hold_back: bool = True
) -> list[list[Crystal]]:
    """:class:`Substitution` for many formulas.

    Args:
        formulas: wanted.
        known: the training set.
        num: candidates for each, at most.
        hold_back: structures of the wanted formula itself are not used.
    """
    rule = Substitution(known)
    own: list[str] = list(known.formulas) if hasattr(known, "formulas") else [c.formula for c in known]
    of_formula: dict[str, list[int]] = defaultdict(list)
    for i, formula in enumerate(own):
        of_formula[formula].append(i)
    result = []
    for wanted in formulas:
        forbidden = np.zeros(len(own), bool)
        if hold_back:
            numbers, counts = np.unique(_unit(_species(wanted)), return_counts=True)
            forbidden[of_formula.get(formula_of(zip(numbers.tolist(), counts.tolist(), strict=True)), [])] = True
        result.append(rule.candidates(wanted, num, forbidden))
    return result


def predict(
    rule: Rule, formulas: Sequence[Formula], num: int = 1, *, known: Sequence[Crystal] | None = None, seed: int = 0
) -> list[list[Crystal]]:
    """Candidates of a rule, one list a formula; it may be shorter than ``num``, or empty where the rule knows nothing.

    Args:
        rule: ``"random"``, ``"radius"`` or ``"substitute"``.
        formulas: wanted.
        num: candidates for each.
        known: the training set, for ``"substitute"``.
        seed: for ``"random"``.

    Raises:
        ValueError: no such rule, or a training set is missing.
    """
    if rule == "random":
        return random_atoms(formulas, num, seed)
    if rule == "radius":
        return ideal_prototype(formulas, num)
    if rule != "substitute":
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if known is None:
        raise ValueError("the rule 'substitute' needs known structures: name a training set with --data")
    return substitute(formulas, known, num)
