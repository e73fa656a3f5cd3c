"""What ``manifoldflow evaluate proteins`` runs."""

import csv
import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from manifoldflow.files import atomic, write_json
from manifoldflow.tasks.common.tables import plural, show, wilson
from manifoldflow.tasks.proteins.backbones import Backbones, Models, collect, padded, padded_set

# Key of the summary, what people read, its unit, column of the natives' statistics per chain. "chains" is a share of
# chains (shown with its interval), "share" one of residues or bonds; NAME_mean is shown with its NAME_std.
MEASURES: tuple[tuple[str, str, str, str], ...] = (
    ("residues", "residues", "", ""),
    ("broken_chains", "chains, C-N above 1.75 A", "chains", "has_break"),
    ("breaks_per_chain", "broken C-N bonds", "a chain", "breaks"),
    ("gaps_per_chain", "jumps of the numbering", "a chain", "gaps"),
    ("missing_atoms_per_chain", "missing backbone atoms", "a chain", ""),
    ("c_n_within", "C-N within 1.33 ± 0.15 A", "share", "c_n_within"),
    ("ca_ca_within", "CA-CA within 3.80 ± 0.15 A", "share", "ca_ca_within"),
    ("o_n_within", "O-N within 2.25 ± 0.30 A", "share", "o_n_within"),
    ("inner_within", "residues sound inside", "share", "inner_within"),
    ("omega_trans", "omega trans, above 150", "share", "omega_trans"),
    ("omega_cis", "omega cis, below 30", "share", ""),
    ("omega_twisted", "omega twisted, 30 to 150", "share", "omega_twisted"),
    ("phi_positive", "phi above 0 (left-handed)", "share", "phi_positive"),
    ("atom_clash_chains", "chains, atoms below 2.2 A", "chains", "has_atom_clash"),
    ("atom_clashes_per_chain", "atom pairs below 2.2 A", "a chain", "atom_clashes"),
    ("clash_chains", "chains, CA below 3.0 A", "chains", "has_clash"),
    ("clashes_per_chain", "CA pairs below 3.0 A", "a chain", "clashes"),
    ("c_n_mean", "C-N", "A", "c_n"),
    ("ca_ca_mean", "CA-CA", "A", "ca_ca"),
    ("n_ca_mean", "N-CA", "A", ""),
    ("ca_c_mean", "CA-C", "A", ""),
    ("c_o_mean", "C-O", "A", ""),
    ("n_ca_c_mean", "angle N-CA-C", "degrees", "n_ca_c"),
    ("ca_c_n_mean", "angle CA-C-N", "degrees", "ca_c_n"),
    ("c_n_ca_mean", "angle C-N-CA", "degrees", "c_n_ca"),
    ("helix", "residues in helices", "share", "helix"),
    ("strand", "residues in strands", "share", "strand"),
    ("helix_and_strand", "residues in either", "share", ""),
    ("helix_chains", "chains with a helix", "chains", ""),
    ("strand_chains", "chains with a strand", "chains", ""),
    ("rama_js_distance", "phi, psi: from natives", "0 to 1", ""),
    ("rg", "radius of gyration", "A", "rg"),
    ("rg_follows_trend", "chains, native size ± 20 %", "chains", ""),
    ("pairwise_tm", "TM-score between designs", "0 to 1", ""),
    ("novelty_tm", "TM-score to closest native", "0 to 1", ""),
)


def evaluate(
    designs: str,
    data: str | None = None,
    out: str | None = None,
    novelty: bool = False,
    designability: bool = False,
    models: Models = "auto",
    chains: Literal["first", "all"] = "first",
    tm_chains: int = 60,
) -> None:
    """Measure backbones: bonds, breaks, clashes, secondary structure, size, diversity, novelty, beside those of natives.

    Goes on past files that cannot be read and says which.

    Args:
        designs: PDB or mmCIF file, or a folder of them; folders inside are searched too.
        data: data set folder to compare with. Without it the natives are the 1,751 chains whose statistics ship with
            the library (tasks/proteins/README.md).
        out: write the table per chain to this CSV file and the summary beside it as JSON.
        novelty: TM-score to the closest chain of `data` (minutes).
        designability: self-consistency with ProteinMPNN and ESMFold, where they are installed.
        models: of a file with several: first, last or each. auto takes each of a file that you name, and leaves
            trajectories and other files of several models out of a folder.
        chains: measure the first chain of each file, or all.
        tm_chains: TM-scores between designs are of all pairs of so many chains, drawn at random from more; 60 take a
            minute, 200 ten. 0 leaves them out. Of the models of one file there are none.
    """
    from manifoldflow.tasks.proteins import metrics
    from manifoldflow.tasks.proteins.similarity import ca_traces, mean_pairwise_tm
    from manifoldflow.tasks.proteins.similarity import novelty as novelty_of

    if novelty and data is None:
        raise ValueError("--novelty needs --data, the data set to compare with")
    if out is not None:
        _check_out(Path(out))
    found = collect(designs, models, chains)
    coords, mask, index = padded(found.chains)
    if data is not None:
        native_coords, native_mask, native_index = padded_set(data)
        reference = metrics.Reference.build(native_coords, native_mask, native_index, traces=novelty)
        natives = metrics.summarize(native_coords, native_mask, native_index, reference)
    else:
        reference, natives = _embedded(len(found.chains))
    rows = metrics.per_chain(coords, mask, index, reference)
    summary = metrics.summarize(coords, mask, index, reference)
    summary["missing_atoms_per_chain"] = sum(chain.missing for chain in found.chains) / len(found.chains)
    traces = ca_traces(coords, mask)
    drawn = traces
    if 0 < tm_chains < len(traces):
        order = torch.randperm(len(traces), generator=torch.Generator().manual_seed(0))[:tm_chains]
        drawn = [traces[i] for i in order.tolist()]
    if tm_chains > 0 and len(drawn) > 1 and len(set(found.files)) > 1:
        summary["pairwise_tm"] = mean_pairwise_tm(drawn)
    if novelty:
        scores, _ = novelty_of(traces, reference.traces)
        rows["novelty_tm"], summary["novelty_tm"] = scores, float(scores.mean())
    if designability:
        from manifoldflow.tasks.proteins.designability import ESMFold, find_designer
        from manifoldflow.tasks.proteins.designability import designability as judge

        result = judge(coords, mask, find_designer(), ESMFold())
        summary |= {k: float(v) for k, v in result.summary().items()}
    _print(summary, natives, found, Path(designs), data, len(drawn))
    if out is not None:
        _write_table(Path(out), found, rows, summary, Path(designs))


def _embedded(count: int) -> tuple[Any, dict[str, float]]:
    """The natives that ship with the library: for comparison, and their means per chain by keys of the summary."""
    from manifoldflow.tasks.proteins.reference import load_reference, metric_reference

    known = load_reference()
    natives = {"chains": float(known["chains"]), "residues": float(known["residues"])}
    natives |= {
        key: known["per_chain"][column]["mean"] for key, _, _, column in MEASURES if column in known["per_chain"]
    }
    floors = {int(size): row["mean"] for size, row in known.get("small_samples", {}).items()}
    if floors:  # as many real chains are not at 0 either
        natives["rama_js_distance"] = floors[min(floors, key=lambda size: abs(size - count))]
    if known.get("pairwise_tm"):
        natives["pairwise_tm"] = known["pairwise_tm"]["mean"]
    return metric_reference(known), natives


def _print(
    summary: dict[str, float],
    natives: dict[str, float],
    found: Backbones,
    designs: Path,
    data: str | None,
    drawn: int,
) -> None:
    known = {key: (label, kind) for key, label, kind, _ in MEASURES}
    spreads = {f"{key.removesuffix('_mean')}_std" for key in known if key.endswith("_mean")}
    rows = []
    for key in [*known, *(key for key in summary if key not in known and key != "chains" and key not in spreads)]:
        if key not in summary:
            continue
        label, kind = known.get(key, (key.replace("_", " "), ""))
        unit = "% chains" if kind == "chains" else "%" if kind == "share" else kind
        rows.append(
            (label, unit, _cell(summary, key, kind), _cell(natives, key, "share" if kind == "chains" else kind))
        )
    count = int(summary["chains"])
    notes = [
        "In brackets: 95 % interval of the share (Wilson). ±: standard deviation. Shares of bonds pool all chains."
    ]
    if data is None:
        notes.append("natives: mean of the chains that the embedded flow was trained on; --data compares with others")
    if drawn < count and "pairwise_tm" in summary:
        notes.append(f"TM-score between designs: all pairs of {drawn} of them, drawn at random (--tm-chains)")
    if found.unread:
        notes.append(f"note: the files hold {found.unread} further chains, which are not measured; --chains all does")
    for path, reason in found.left_out:
        name = path.relative_to(designs) if path != designs else path
        notes.append(f"left out: {name}: {reason}")
    if len(set(found.models)) > 1:
        notes.append(f"models {min(found.models)} to {max(found.models)} were measured one by one")
    show(
        ("measure", "unit", f"designs ({count:,})", f"natives ({int(natives['chains']):,})"),
        rows,
        f"{designs}: {plural(count, 'chain')}",
        notes,
    )


def _cell(values: dict[str, float], key: str, kind: str) -> str:
    if key not in values:
        return ""
    value, std = values[key], values.get(f"{key.removesuffix('_mean')}_std") if key.endswith("_mean") else None
    if value != value:
        return "-"  # nothing to measure
    if kind == "chains":
        low, high = wilson(round(value * values["chains"]), values["chains"])
        return f"{100 * value:.1f} ({100 * low:.1f}-{100 * high:.1f})"
    if kind == "share":
        return f"{100 * value:.1f}"
    if kind in ("A", "degrees"):
        digits = 3 if kind == "A" and key != "rg" else 1
        return f"{value:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _check_out(path: Path) -> None:
    """Raise ``ValueError`` if the table cannot go there, or the summary beside it would replace something else."""
    if path.is_dir() or path.suffix.lower() == ".json":
        raise ValueError(f"--out {path}: expected the name of a CSV file; the summary goes beside it as JSON")
    beside = path.with_suffix(".json")
    if _is_stream(path) or not beside.exists():
        return
    try:
        content = json.loads(beside.read_text())
        is_ours = isinstance(content, dict) and {"chains", "residues"} <= content.keys()
    except (OSError, ValueError):
        is_ours = False
    if not is_ours:
        raise ValueError(
            f"--out {path}: the summary would replace {beside}, which is something else; choose another name"
        )


def _is_stream(path: Path) -> bool:
    """Whether the table goes to a device or a pipe, such as /dev/stdout: there is no place beside it for the summary."""
    return path.is_relative_to("/dev") or (path.exists() and not path.is_file())


def _write_table(
    path: Path, found: Backbones, rows: dict[str, Tensor], summary: dict[str, float], designs: Path
) -> None:
    with atomic(path) as fresh, fresh.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "model", "chain", *rows, "missing_atoms"])
        columns = [value.tolist() for value in rows.values()]
        for i, (name, model, chain) in enumerate(zip(found.files, found.models, found.chains, strict=True)):
            shown = name.relative_to(designs) if name != designs else name.name
            writer.writerow([shown, model, chain.chain_id, *(column[i] for column in columns), chain.missing])
    if _is_stream(path):
        return
    chains = summary["chains"]
    intervals = {
        key: [round(x, 5) for x in wilson(round(summary[key] * chains), chains)]
        for key, _, kind, _ in MEASURES
        if kind == "chains" and key in summary
    }
    left_out = {str(name): reason for name, reason in found.left_out}
    write_json(path.with_suffix(".json"), summary | {"intervals_95": intervals, "left_out": left_out})
    print(f"wrote {path} and {path.with_suffix('.json')}")
