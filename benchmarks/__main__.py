"""Run every benchmark, one process each: ``python -m benchmarks [--quick] [--threads N]``; results go to build/bench/*.json."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run all files of this folder in turn; the exit code counts those that failed."""
    out = HERE.parent / "build" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for file in sorted(HERE.glob("*.py")):
        if file.stem.startswith("_") or ("--json" not in file.read_text() and "_bench" not in file.read_text()):
            continue  # studies of minutes, or in an environment of their own, have commands of their own in their first lines
        print(f"\n## {file.stem}\n", flush=True)
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{file.stem}",
            "--json",
            str(out / f"{file.stem}.json"),
            *sys.argv[1:],
        ]
        code = subprocess.run(command, cwd=HERE.parent, check=False).returncode
        if code:
            print(
                f"benchmarks/{file.name} failed with exit code {code}; the peers come with: pip install -e '.[bench]'",
                file=sys.stderr,
            )
        failed += code != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
