"""How protein-like backbones are: bonds, angles, clashes, torsions, size, secondary structure, in numbers.

Shapes everywhere: ``coords`` (B, N, 4, 3) in angstrom, atoms N, CA, C, O; ``mask`` (B, N) bool, True = real residue;
``residue_index`` (B, N) integers. Residues i and i+1 are *bonded* when both are real and their indices differ by 1
(without ``residue_index``: when both are real). Measurements come as ``(values, valid)`` pairs of equal shape, because
chains in a batch differ in length; angles and torsions are in radians.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from manifoldflow.tasks.proteins import secondary_structure, similarity
from manifoldflow.tasks.proteins.structure import MAX_PEPTIDE_BOND

CA_CA = 3.8  # angstrom, across a trans peptide bond
C_N = 1.33  # angstrom, the peptide bond
TOLERANCE = 0.15  # angstrom, both ways
CLASH = 3.0  # angstrom, between CA atoms at least two residues apart
# Between two backbone atoms that no bond or angle holds; 1.4 % of real chains have a pair that is closer.
ATOM_CLASH = 2.2  # angstrom
O_N = 2.25  # angstrom, O to the next N, both on C; an O on the wrong side of the peptide is farther
N, CA, C, O = range(4)  # noqa: E741 - the atom's name


def breaks(coords: Tensor, mask: Tensor, residue_index: Tensor | None = None) -> Tensor:
    """Peptide bonds that the numbering promises and the atoms do not keep: C-N above 1.75 angstrom, (B,)."""
    length = (coords[:, 1:, N] - coords[:, :-1, C]).norm(dim=-1)
    return (~(length <= MAX_PEPTIDE_BOND) & bonded(mask, residue_index)).sum(1)


def gaps(mask: Tensor, residue_index: Tensor | None = None) -> Tensor:
    """Neighbours in a chain whose numbers jump: residues are left out between them, (B,)."""
    return (mask[:, :-1] & mask[:, 1:] & ~bonded(mask, residue_index)).sum(1)


def bonded(mask: Tensor, residue_index: Tensor | None = None) -> Tensor:
    """Whether residues i and i+1 share a peptide bond, shape (B, N-1)."""
    both = mask[:, :-1] & mask[:, 1:]
    return both if residue_index is None else both & (residue_index[:, 1:] - residue_index[:, :-1] == 1)


def angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The angle at ``b`` in [0, pi], by atan2 so that it's exact near 0 and pi."""
    u, v = a - b, c - b
    return torch.atan2(torch.linalg.cross(u, v, dim=-1).norm(dim=-1), (u * v).sum(-1))


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """The IUPAC torsion about b-c in (-pi, pi]: 0 = cis, positive = clockwise looking from b to c."""
    u, v, w = b - a, c - b, d - c
    left, right = torch.linalg.cross(u, v, dim=-1), torch.linalg.cross(v, w, dim=-1)
    return torch.atan2(v.norm(dim=-1) * (u * right).sum(-1), (left * right).sum(-1))


def bond_lengths(coords: Tensor, mask: Tensor, residue_index: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Bond lengths in angstrom: ``n_ca``, ``ca_c``, ``c_o`` (B, N) and the peptide bond ``c_n`` (B, N-1)."""
    n, ca, c, o = coords.unbind(-2)
    peptide = (n[:, 1:] - c[:, :-1]).norm(dim=-1)
    return {
        "n_ca": ((ca - n).norm(dim=-1), mask),
        "ca_c": ((c - ca).norm(dim=-1), mask),
        "c_o": ((o - c).norm(dim=-1), mask),
        "c_n": (peptide, bonded(mask, residue_index)),
    }


def bond_angles(coords: Tensor, mask: Tensor, residue_index: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Bond angles in radians: ``n_ca_c`` (B, N); across the peptide bond ``ca_c_n`` and ``c_n_ca`` (B, N-1)."""
    n, ca, c, _ = coords.unbind(-2)
    link = bonded(mask, residue_index)
    return {
        "n_ca_c": (angle(n, ca, c), mask),
        "ca_c_n": (angle(ca[:, :-1], c[:, :-1], n[:, 1:]), link),
        "c_n_ca": (angle(c[:, :-1], n[:, 1:], ca[:, 1:]), link),
    }


def torsions(coords: Tensor, mask: Tensor, residue_index: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Backbone torsions in radians, all (B, N): ``phi`` and ``psi`` of residue i, ``omega`` of the bond i to i+1.

    phi is defined where i-1 is bonded to i, psi and omega where i is bonded to i+1; elsewhere values are 0, not valid.
    """
    n, ca, c, _ = coords.unbind(-2)
    link = bonded(mask, residue_index)
    none = torch.zeros_like(link[:, :1]) if link.shape[1] else torch.zeros_like(mask)
    before, after = torch.cat([none, link], 1), torch.cat([link, none], 1)
    phi = dihedral(c[:, :-1], n[:, 1:], ca[:, 1:], c[:, 1:])
    psi = dihedral(n[:, :-1], ca[:, :-1], c[:, :-1], n[:, 1:])
    omega = dihedral(ca[:, :-1], c[:, :-1], n[:, 1:], ca[:, 1:])
    pad = torch.nn.functional.pad
    return {
        "phi": (pad(phi, (1, 0)).where(before, 0.0), before),
        "psi": (pad(psi, (0, 1)).where(after, 0.0), after),
        "omega": (pad(omega, (0, 1)).where(after, 0.0), after),
    }


def ca_distances(coords: Tensor, mask: Tensor, residue_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Distance of neighbouring CA atoms in angstrom, (B, N-1), and which neighbours are bonded."""
    ca = coords[..., CA, :]
    return (ca[:, 1:] - ca[:, :-1]).norm(dim=-1), bonded(mask, residue_index)


def clashes(coords: Tensor, mask: Tensor, cutoff: float = CLASH) -> Tensor:
    """Number of CA pairs at positions |i - j| >= 2 closer than ``cutoff`` angstrom, (B,)."""
    count, length = mask.shape
    chunk = max(1, secondary_structure.CELLS // max(length, 1) ** 2)
    if count > chunk:  # bounds the memory of the (B, N, N) tables
        parts = [slice(i, i + chunk) for i in range(0, count, chunk)]
        return torch.cat([clashes(coords[c], mask[c], cutoff) for c in parts])
    ca = coords[..., CA, :]
    distance = torch.cdist(ca, ca, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode loses 1e-2 angstrom
    pairs = (mask[:, :, None] & mask[:, None]).triu(diagonal=2)
    return ((distance < cutoff) & pairs).sum((1, 2))


def atom_clashes(
    coords: Tensor, mask: Tensor, residue_index: Tensor | None = None, cutoff: float = ATOM_CLASH
) -> Tensor:
    """Number of pairs of backbone atoms (N, CA, C, O) closer than ``cutoff`` angstrom, (B,).

    Pairs within a residue and of two bonded residues are left out: bonds and angles hold them, and
    other columns measure those.
    """
    count, length = mask.shape
    chunk = max(1, secondary_structure.CELLS // max(length, 1) ** 2)
    if count > chunk:  # bounds the memory of the (B, N, N) tables
        index = residue_index
        parts = [slice(i, i + chunk) for i in range(0, count, chunk)]
        return torch.cat([atom_clashes(coords[c], mask[c], None if index is None else index[c], cutoff) for c in parts])
    residue = torch.arange(length, device=coords.device)
    apart = (residue[None, :] - residue[:, None]).unsqueeze(0)
    loose = torch.nn.functional.pad(~bonded(mask, residue_index), (0, 1), value=True)  # i is not bonded to i + 1
    pairs = (mask[:, :, None] & mask[:, None]) & ((apart >= 2) | ((apart == 1) & loose[:, :, None]))
    total = torch.zeros(count, dtype=torch.long, device=coords.device)
    for a in range(coords.shape[2]):  # one pair of atom names at a time bounds the memory to that of the CA pairs
        for b in range(coords.shape[2]):
            distance = torch.cdist(
                coords[:, :, a].contiguous(), coords[:, :, b].contiguous(), compute_mode="donot_use_mm_for_euclid_dist"
            )
            total += ((distance < cutoff) & pairs).sum((1, 2))
    return total


def inner_geometry(coords: Tensor, mask: Tensor) -> Tensor:
    """Whether N-CA, CA-C and C-O of a residue lie within 0.15 angstrom of ideal and N-CA-C within 15 degrees, (B, N)."""
    n, ca, c, o = coords.unbind(-2)
    lengths = ((ca - n).norm(dim=-1), (c - ca).norm(dim=-1), (o - c).norm(dim=-1))
    good = (torch.rad2deg(angle(n, ca, c)) - 111.0).abs() <= 15
    for length, ideal in zip(lengths, (1.458, 1.525, 1.231), strict=True):
        good = good & ((length - ideal).abs() <= TOLERANCE)
    return good & mask


def radius_of_gyration(coords: Tensor, mask: Tensor) -> Tensor:
    """Root mean square distance of the CA atoms from their centroid, (B,) in angstrom."""
    ca, weight = coords[..., CA, :], mask[..., None].to(coords.dtype)
    count = weight.sum(1).clamp(min=1)
    offset = (ca - ((ca * weight).sum(1) / count)[:, None]) * weight
    return ((offset**2).sum((1, 2)) / count[:, 0]).sqrt()


def rg_trend(lengths: Tensor, rg: Tensor) -> tuple[float, float]:
    """Least squares fit of R = a N^b in log space: returns (a, b). Globular proteins have b near 0.38.

    Args:
        lengths: residues per chain, (n,).
        rg: radius of gyration per chain, (n,) in angstrom.
    """
    if len(lengths) < 2 or int(lengths.min()) == int(lengths.max()):
        raise ValueError("rg_trend needs chains of at least two different lengths to fit R = a N^b")
    x, y = lengths.double().log(), rg.double().log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return math.exp(float(y.mean() - slope * x.mean())), float(slope)


def follows_rg_trend(lengths: Tensor, rg: Tensor, trend: tuple[float, float], tolerance: float = 0.2) -> Tensor:
    """Whether each R lies within ``tolerance`` (relative) of a N^b, (n,) bool."""
    expected = trend[0] * lengths.to(rg.dtype) ** trend[1]
    return (rg / expected - 1).abs() <= tolerance


def ramachandran(
    coords: Tensor, mask: Tensor, residue_index: Tensor | None = None, bins: int = 36, pseudo_count: float = 0.0
) -> Tensor:
    """Probability of (phi, psi) on a periodic grid, (bins, bins), rows phi and columns psi, both from -pi to pi.

    Args:
        bins: cells per axis; 36 makes them 10 degrees wide.
        pseudo_count: added to every cell before normalising.
    """
    angles = torsions(coords, mask, residue_index)
    (phi, has_phi), (psi, has_psi) = angles["phi"], angles["psi"]
    row, column = (((a + math.pi) * (bins / (2 * math.pi))).long() % bins for a in (phi, psi))
    weight = (has_phi & has_psi).double().flatten()
    counts = torch.bincount((row * bins + column).flatten(), weights=weight, minlength=bins * bins) + pseudo_count
    return (counts / counts.sum().clamp(min=1e-300)).reshape(bins, bins)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence in bits (logarithm to base 2), in [0, 1], no square root: H((p+q)/2) - (H(p)+H(q))/2.

    Two finite samples of one distribution are not at 0: with n points in k occupied cells expect about
    (k/8 ln 2) (1/n_p + 1/n_q). Compare with the value of two halves of the reference.
    """
    p, q = p.double() / p.double().sum(), q.double() / q.double().sum()
    mean = (p + q) / 2
    divergence = torch.special.entr(mean).sum() - (torch.special.entr(p).sum() + torch.special.entr(q).sum()) / 2
    return (divergence / math.log(2)).clamp(0, 1)


def js_distance(p: Tensor, q: Tensor) -> Tensor:
    """Square root of `js_divergence` (base 2): a metric in [0, 1], as scipy's ``jensenshannon(p, q, base=2)``."""
    return js_divergence(p, q).sqrt()


@dataclass
class Reference:
    """What samples are compared with: made from real chains by `Reference.build`.

    Args:
        ramachandran: probability of (phi, psi), (bins, bins).
        trend: (a, b) of R = a N^b.
        traces: CA traces, one (n_i, 3) tensor per chain, for novelty; empty = novelty isn't computed.
    """

    ramachandran: Tensor
    trend: tuple[float, float]
    traces: list[Tensor]

    @classmethod
    def build(
        cls, coords: Tensor, mask: Tensor, residue_index: Tensor | None = None, bins: int = 36, traces: bool = True
    ) -> "Reference":
        """From real chains; ``traces=False`` leaves the coordinates (and novelty) out."""
        trend = rg_trend(mask.sum(1), radius_of_gyration(coords, mask))
        chains = similarity.ca_traces(coords, mask) if traces else []
        return cls(ramachandran(coords, mask, residue_index, bins), trend, chains)


def per_chain(
    coords: Tensor, mask: Tensor, residue_index: Tensor | None = None, reference: Reference | None = None
) -> dict[str, Tensor]:
    """One row per chain: a dict of columns, each (B,). A fraction without any pair to measure is NaN."""
    lengths, rg = mask.sum(1), radius_of_gyration(coords, mask)
    ca, link = ca_distances(coords, mask, residue_index)
    peptide, _ = bond_lengths(coords, mask, residue_index)["c_n"]
    angles = torsions(coords, mask, residue_index)
    (omega, has_omega), (phi, has_phi) = angles["omega"], angles["phi"]
    count, atoms = clashes(coords, mask), atom_clashes(coords, mask, residue_index)
    broken = breaks(coords, mask, residue_index)
    o_n = (coords[:, 1:, N] - coords[:, :-1, O]).norm(dim=-1)
    structure = secondary_structure.assign(coords, mask, residue_index)
    table = {
        "length": lengths,
        "breaks": broken,
        "has_break": broken > 0,
        "gaps": gaps(mask, residue_index),
        "ca_ca_within": _fraction((ca - CA_CA).abs() <= TOLERANCE, link),
        "c_n_within": _fraction((peptide - C_N).abs() <= TOLERANCE, link),
        "o_n_within": _fraction((o_n - O_N).abs() <= 2 * TOLERANCE, link),
        "inner_within": _fraction(inner_geometry(coords, mask), mask),
        "omega_trans": _fraction(omega.abs() > math.radians(150), has_omega),
        "omega_twisted": _fraction((omega.abs() - math.pi / 2).abs() <= math.radians(60), has_omega),
        "phi_positive": _fraction(phi > 0, has_phi),
        "atom_clashes": atoms,
        "has_atom_clash": atoms > 0,
        "clashes": count,
        "has_clash": count > 0,
        "rg": rg,
        **secondary_structure.content(structure, mask),
    }
    if reference is not None:
        table["rg_follows_trend"] = follows_rg_trend(lengths, rg, reference.trend)
    return table


def summarize(
    coords: Tensor,
    mask: Tensor,
    residue_index: Tensor | None = None,
    reference: Reference | None = None,
    tm_scores: bool = False,
) -> dict[str, float]:
    """The metric table of a set of backbones as plain numbers (lengths in angstrom, angles in degrees).

    Fractions of neighbours pool all chains; ``*_chains`` are fractions of chains; ``helix`` and ``strand`` are
    fractions of residues. With ``reference``: ``rama_js_distance`` (base 2, square root; see `js_distance`) and
    ``rg_follows_trend`` (fraction of chains within 20 % of a N^b).

    Args:
        tm_scores: also ``pairwise_tm`` (mean over pairs) and, where the reference holds traces, ``novelty_tm`` (mean
            over samples of the largest TM-score to a reference chain): minutes for 200 samples.
    """
    table = per_chain(coords, mask, residue_index, reference)
    ca, link = ca_distances(coords, mask, residue_index)
    lengths = bond_lengths(coords, mask, residue_index)
    result = {
        "chains": float(len(coords)),
        "residues": float(mask.sum()),
        "ca_ca_within": float(_fraction((ca - CA_CA).abs() <= TOLERANCE, link, pool=True)),
        "c_n_within": float(_fraction((lengths["c_n"][0] - C_N).abs() <= TOLERANCE, link, pool=True)),
        "o_n_within": _pooled(table, "o_n_within", link.sum(1)),
        "inner_within": _pooled(table, "inner_within", mask.sum(1)),
        "broken_chains": float(table["has_break"].double().mean()),
        "breaks_per_chain": float(table["breaks"].double().mean()),
        "gaps_per_chain": float(table["gaps"].double().mean()),
        "atom_clash_chains": float(table["has_atom_clash"].double().mean()),
        "atom_clashes_per_chain": float(table["atom_clashes"].double().mean()),
        "clash_chains": float(table["has_clash"].double().mean()),
        "clashes_per_chain": float(table["clashes"].double().mean()),
    }
    for name, (values, valid) in {"ca_ca": (ca, link), **lengths}.items():
        result |= _mean_and_std(name, values, valid)
    for name, (values, valid) in bond_angles(coords, mask, residue_index).items():
        result |= _mean_and_std(name, torch.rad2deg(values), valid)
    omega, has_omega = torsions(coords, mask, residue_index)["omega"]
    result["omega_trans"] = float(_fraction(omega.abs() > math.radians(150), has_omega, pool=True))
    result["omega_twisted"] = _pooled(table, "omega_twisted", has_omega.sum(1))
    result["phi_positive"] = _pooled(table, "phi_positive", has_omega.sum(1))  # as many phi as omega: one for each bond
    result["omega_cis"] = float(_fraction(omega.abs() < math.radians(30), has_omega, pool=True))
    weight = table["length"].double() / mask.sum().clamp(min=1)
    for name in ("helix", "strand"):
        result[name] = float((table[name] * weight).sum())
        result[f"{name}_chains"] = float((table[name] > 0).double().mean())
    result["helix_and_strand"] = result["helix"] + result["strand"]
    result["rg"] = float(table["rg"].double().mean())
    if reference is not None:
        histogram = ramachandran(coords, mask, residue_index, reference.ramachandran.shape[0])
        result["rama_js_distance"] = float(js_distance(histogram, reference.ramachandran.to(histogram.device)))
        result["rg_follows_trend"] = float(table["rg_follows_trend"].double().mean())
    if tm_scores:
        traces = similarity.ca_traces(coords, mask)
        result["pairwise_tm"] = float(similarity.mean_pairwise_tm(traces))
        if reference is not None and reference.traces:
            result["novelty_tm"] = float(similarity.novelty(traces, reference.traces)[0].mean())
    return result


def _fraction(hit: Tensor, valid: Tensor, pool: bool = False) -> Tensor:
    """Share of valid entries that hit, per chain or pooled; NaN where none is valid."""
    axes = (0, 1) if pool else (1,)
    return (hit & valid).sum(axes).double() / valid.sum(axes).double()


def _pooled(table: dict[str, Tensor], name: str, count: Tensor) -> float:
    """A column of fractions over all that its chains hold; NaN if they hold nothing."""
    hits = torch.nan_to_num(table[name]) * count
    return float(hits.sum() / count.sum())


def _mean_and_std(name: str, values: Tensor, valid: Tensor) -> dict[str, float]:
    values, weight = values.double().where(valid, 0.0), valid.double()
    mean = values.sum() / weight.sum()
    variance = ((values - mean) ** 2 * weight).sum() / weight.sum()
    return {f"{name}_mean": float(mean), f"{name}_std": float(variance.sqrt())}
