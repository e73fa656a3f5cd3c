"""The process that relaxes crystals for :mod:`manifoldflow.tasks.crystals.relax`: a line of JSON in, a line of JSON out.

It is a process of its own so that one that hangs, or dies in compiled code, can be ended without losing anything. What
CHGNet and its companions print does not reach the answers: these go to the descriptor that standard output was.
"""

import json
import os
import sys
import warnings
from typing import Any, TextIO

MEMORY = 12 * 2**30
"""Address space of this process, bytes."""


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    _bound_memory()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    warnings.filterwarnings("ignore")
    try:
        from chgnet.model import CHGNet
        from chgnet.model.dynamics import CHGNetCalculator

        calculator = CHGNetCalculator(CHGNet.load(use_device="cpu", verbose=False), use_device="cpu")
    except ImportError as error:
        _say(answers, {"fault": f"relaxation needs chgnet and ase ({error}): pip install 'manifoldflow[crystals]'"})
        return
    _say(answers, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = relaxed(request, calculator)
        except Exception as error:  # whatever it is, the next crystal has its turn
            answer = {"fault": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        _say(answers, {"id": request["id"], **answer})


def _bound_memory() -> None:
    """A cell that collapses on the way has neighbours without number: it is to fail here, not to fill the machine."""
    try:
        import resource
    except ImportError:  # no such limits on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    least = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))


def relaxed(request: dict[str, Any], calculator: Any) -> dict[str, Any]:
    """Positions and cell of least energy near those of the request, by FIRE in positions and the logarithm of the cell."""
    from ase import Atoms
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    atoms = Atoms(numbers=request["numbers"], scaled_positions=request["frac"], cell=request["cell"], pbc=True)
    atoms.calc = calculator
    before = float(atoms.get_potential_energy()) / len(atoms)
    optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
    converged = bool(optimizer.run(fmax=request["force"], steps=request["steps"]))
    return {
        "before": before,
        "energy": float(atoms.get_potential_energy()) / len(atoms),
        "frac": atoms.get_scaled_positions(wrap=False).tolist(),
        "cell": atoms.cell.array.tolist(),
        "steps": int(optimizer.nsteps),
        "converged": converged,
    }


def _say(answers: TextIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
