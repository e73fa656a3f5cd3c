"""Time and peak memory of one sampling step of the protein flow at N = 100, 300, 500 beside FrameFlow's figures.

The peer's figures are quoted, not measured here (it is not on the package index): PEERS.md, section 7, FrameFlow at batch 1,
random weights, CPU time with 1 thread: 0.83-0.85 s per network call of Interpolant.sample at N = 100 and 9.7-9.8 s at N = 300;
peak memory of a forward over the loaded network 114 and 646 MB. N = 500 was not measured there. FrameFlow has 11.3 M
parameters. Ours is timed with random weights at its default size, 1 thread, batch 1, CPU time. Target: 3 times at N = 300.
"""

import resource
import subprocess
import sys
import time

import torch

from benchmarks._bench import OURS, Report, Row, run

FRAMEFLOW_SECONDS = {100: 0.84, 300: 9.75}
FRAMEFLOW_MEGABYTES = {100: 114, 300: 646}
STEPS = 4


def one(length: int) -> tuple[float, float, int]:
    """CPU seconds per step, peak megabytes over the loaded network, and the number of parameters."""
    from manifoldflow.tasks.proteins.flow import build

    torch.set_num_threads(1)
    flow = build().eval()
    cond = {"residue_index": torch.arange(length).unsqueeze(0)}
    small = {"residue_index": torch.arange(16).unsqueeze(0)}
    flow.sample((1, 16), steps=1, cond=small)  # imports and first-call costs are not the step's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flow.sample((1, length), steps=1, cond=cond)
    start = time.process_time()
    flow.sample((1, length), steps=STEPS, cond=cond)
    seconds = (time.process_time() - start) / STEPS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, (peak - before) / 1024, sum(p.numel() for p in flow.parameters())


def body(report: Report, budget: float) -> None:
    for length in (100, 300, 500):
        # A fresh process: the peak of one length must not hide the next.
        command = [sys.executable, "-m", "benchmarks.protein_step_vs_frameflow", "--one", str(length)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        seconds, megabytes, parameters = float(found[-3]), float(found[-2]), int(found[-1])
        times = {OURS: seconds}
        ratio, target, met = float("nan"), "", None
        quoted = "no figure of the peer"
        if length in FRAMEFLOW_SECONDS:
            times["FrameFlow (quoted, PEERS.md 7)"] = FRAMEFLOW_SECONDS[length]
            ratio = FRAMEFLOW_SECONDS[length] / seconds
            quoted = f"FrameFlow {FRAMEFLOW_MEGABYTES[length]} MB quoted"
        if length == 300:
            target, met = ">= 3.00", ratio >= 3
        case = f"one step, N={length}, {parameters / 1e6:.2f} M parameters, peak {megabytes:.0f} MB ({quoted})"
        report.add(Row(case, times, dict(times), {}, ratio, target, met))


if __name__ == "__main__":
    if "--one" in sys.argv:
        print(*one(int(sys.argv[-1])))
    else:
        run(__doc__.splitlines()[0], body)
