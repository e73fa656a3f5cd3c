"""The evaluation protocol behind the table in this folder's README: one row per checkpoint and number of steps.

    python -m manifoldflow.tasks.proteins.protocol --data SET --checkpoint proteins --num 200 --sequences 100 --out table.json

Lengths are spread evenly over 60 to 128 residues. Every row is measured twice: as the flow left the samples ("raw") and
after :func:`manifoldflow.tasks.proteins.relax.relax` ("relaxed", what the ``sample`` command writes).
"""

import argparse
import time

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.tasks.common.tables import Kept
from manifoldflow.tasks.proteins import metrics
from manifoldflow.tasks.proteins.backbones import padded_set
from manifoldflow.tasks.proteins.geometry import atoms_from_frames
from manifoldflow.tasks.proteins.relax import relax
from manifoldflow.tasks.proteins.sampling import DEFAULT_STEPS, Sampling, sample_frames
from manifoldflow.tasks.proteins.sequences import ProteinMPNN, summary
from manifoldflow.tasks.proteins.similarity import ca_traces, mean_pairwise_tm, novelty

SHORTEST, LONGEST = 60, 128


def sample_set(
    flow: mf.Flow, num: int, steps: int, seed: int, batch: int = 8
) -> tuple[dict[str, Tensor], Tensor, float]:
    """``num`` backbones of evenly spread lengths: frames, mask and the seconds it took."""
    lengths = [round(SHORTEST + i * (LONGEST - SHORTEST) / max(num - 1, 1)) for i in range(num)]
    generator = torch.Generator(next(flow.parameters()).device).manual_seed(seed)
    parts, start = [], time.perf_counter()
    for at in range(0, num, batch):
        parts.append(sample_frames(flow, lengths[at : at + batch], Sampling.of(steps), generator=generator))
    seconds = time.perf_counter() - start
    longest = max(lengths)
    mask = torch.zeros(num, longest, dtype=torch.bool)
    trans, rots = torch.zeros(num, longest, 3), torch.eye(3).repeat(num, longest, 1, 1)
    row = 0
    for x, real in parts:
        place = slice(row, row + len(real)), slice(0, real.shape[1])
        trans[place], rots[place], mask[place] = x["trans"].cpu(), x["rots"].cpu(), real.cpu()
        row += len(real)
    return {"trans": trans, "rots": rots}, mask, seconds


def measure(
    frames: dict[str, Tensor], mask: Tensor, reference: metrics.Reference, *, tm: bool, novel: int, sequences: int = 0
) -> dict[str, float]:
    """The numbers of one row."""
    coords = atoms_from_frames(frames, mask)
    row = metrics.summarize(coords, mask, None, reference)
    traces = ca_traces(coords, mask)
    if tm:
        row["pairwise_tm"] = mean_pairwise_tm(traces)
    if novel:
        scores, _ = novelty(traces[:: max(1, len(traces) // novel)], reference.traces)
        row["novelty_tm"], row["novelty_chains"] = float(scores.mean()), float(len(scores))
    if sequences:
        every = max(1, len(coords) // sequences)
        chosen = range(0, len(coords), every)
        found = summary([ProteinMPNN().design(coords[i, mask[i]], seed=i)[0] for i in chosen])
        row |= {"sequence_nll": found["nll"]["mean"], "sequence_nll_std": found["nll"]["std"]}
        row |= {
            "alanine": found["composition"]["A"],
            "glycine": found["composition"]["G"],
            "sequences": found["chains"],
        }
    return row


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, help="training data set, for the reference and novelty")
    parser.add_argument("--checkpoint", default="proteins")
    parser.add_argument("--steps", type=int, nargs="+", default=[DEFAULT_STEPS])
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tm", action="store_true", help="mean pairwise TM-score (minutes)")
    parser.add_argument("--novelty", type=int, default=0, help="chains to compare with the data set (minutes)")
    parser.add_argument("--sequences", type=int, default=0, help="chains to design a sequence for (ProteinMPNN)")
    parser.add_argument("--out", help="JSON file; rows are added to what it holds")
    options = parser.parse_args(argv)
    coords, mask, index = padded_set(options.data)
    short = mask.sum(1) <= LONGEST
    reference = metrics.Reference.build(coords[short], mask[short], index[short], traces=False)
    reference.traces = ca_traces(coords, mask)
    flow = mf.load(options.checkpoint)
    kept = Kept(options.out)
    for steps in options.steps:
        frames, real, seconds = sample_set(flow, options.num, steps, options.seed)
        for name, state in (("raw", frames), ("relaxed", relax(frames, real))):
            wanted = name == "relaxed"
            row = measure(
                state,
                real,
                reference,
                tm=options.tm and wanted,
                novel=options.novelty if wanted else 0,
                sequences=options.sequences if wanted else 0,
            )
            row["seconds_per_chain"] = seconds / options.num
            label = f"{options.checkpoint} {steps} {name}"
            kept.add(label, row)
            print(label, {k: round(v, 4) for k, v in row.items()}, flush=True)


if __name__ == "__main__":
    main()
