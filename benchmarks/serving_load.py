"""Does the sequence designer's server hold 64 clients for a minute, without an error, in fewer model calls than requests?

`manifoldflow serve dna` in a process of its own, on loopback, with an untrained masking model of 100 letters (or `--checkpoint`).
Each client keeps one connection and asks again as soon as it has its answer: designs of 1 to 8 sequences with and without class,
motif, site to avoid and GC range; one in ten has a seed, one in ten is a score. Every answer is checked for what was asked.
`--kill` kills the worker once, in the middle. Targets: no status but 200 and 429; fewer calls of the model than requests;
no request waits far longer than the others (99th percentile of the latencies at most four times the median).
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks._bench import versions


class Client:
    """One connection that is kept, with as much of HTTP/1.1 as it needs; a full client would use up the cores itself."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of the answer."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        text = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
        writer.write(head.encode() + b"\r\n\r\n" + text)
        await writer.drain()
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        answer = json.loads(await reader.readexactly(int(headers["content-length"])))
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), headers, answer

    def close(self) -> None:
        """End the connection."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


def make_request(rng: random.Random, facts: dict[str, Any], steps: int) -> tuple[str, dict[str, Any]]:
    """A path and a body."""
    label = rng.choice([None, *facts["classes"]])
    if facts["can_score"] and rng.random() < 0.1:
        some = ["".join(rng.choices("ACGT", k=facts["length"])) for _ in range(rng.randint(1, 4))]
        return "/v1/score", {"sequences": some, "label": label, "samples": 16, "seed": rng.choice([0, None])}
    body: dict[str, Any] = {"n": rng.randint(1, 8), "label": label, "steps": steps}
    if rng.random() < 0.5:
        body["motifs"] = [{"letters": "TATAAA", "start": rng.choice([None, 20])}]
    if rng.random() < 0.5:
        body["avoid_sites"] = ["GAATTC", "CCWGG"]
    if rng.random() < 0.3:
        body["gc_range"] = [0.3, 0.7]
    if rng.random() < 0.1:
        body["seed"] = rng.randint(0, 99)
    return "/v1/design", body


def is_right(body: dict[str, Any], answer: dict[str, Any]) -> bool:
    """Whether the answer is what was asked for."""
    if "sequences" in body:
        return len(answer["scores"]) == len(body["sequences"])
    low, high = body.get("gc_range", [0, 1])
    words = [m["letters"] for m in body.get("motifs", [])]
    return len(answer["designs"]) == body["n"] and all(
        low <= d["gc"] <= high
        and d["label"] == body["label"]
        and all(word in d["sequence"] for word in words)
        and not ("avoid_sites" in body and "GAATTC" in d["sequence"])
        for d in answer["designs"]
    )


async def load(port: int, options: argparse.Namespace, server: int) -> dict[str, Any]:
    """Let the clients ask until the time is over."""
    codes: Counter[str] = Counter()
    times: list[float] = []
    wrong: list[str] = []
    seeded: dict[str, set[str]] = {}
    control = Client(port)
    while (await control.ask("GET", "/healthz"))[2]["status"] != "ok":
        await asyncio.sleep(0.2)
    facts = (await control.ask("GET", "/v1/models"))[2]["models"][0]
    before = (await control.ask("GET", "/healthz"))[2]
    control.close()
    start = time.perf_counter()

    async def one(number: int) -> None:
        rng, client = random.Random(number), Client(port)
        while time.perf_counter() - start < options.seconds:
            path, body = make_request(rng, facts, options.steps)
            asked = time.perf_counter()
            try:
                status, headers, answer = await client.ask("POST", path, body)
            except (OSError, EOFError) as error:
                codes[type(error).__name__] += 1
                client.close()
                continue
            codes[str(status)] += 1
            if status == 200:
                times.append(time.perf_counter() - asked)
                if not is_right(body, answer):
                    wrong.append(json.dumps(body))
                if body.get("seed") is not None and "designs" in answer:
                    key = json.dumps(body, sort_keys=True)
                    seeded.setdefault(key, set()).add(",".join(d["sequence"] for d in answer["designs"]))
            elif status == 429:
                client.close()  # the server ends connections that rest for five seconds
                await asyncio.sleep(float(headers["retry-after"]) * rng.random())
            else:
                print(f"{status}: {answer.get('detail')}", file=sys.stderr)
        client.close()

    async def kill() -> None:
        await asyncio.sleep(options.seconds / 2)
        os.kill(worker_of(server), signal.SIGKILL)

    async with asyncio.TaskGroup() as group:
        for number in range(options.clients):
            group.create_task(one(number))
        if options.kill:
            group.create_task(kill())
    after = (await control.ask("GET", "/healthz"))[2]
    control.close()
    return {
        "seconds": time.perf_counter() - start,
        "codes": dict(codes),
        "times": sorted(times),
        "wrong": wrong,
        "unlike": sum(len(found) > 1 for found in seeded.values()),
        "requests": after["requests"] - before["requests"],
        "calls": after["model_calls"] - before["model_calls"],
        "restarts": after["restarts"] - before["restarts"],
    }


def worker_of(pid: int) -> int:
    """The worker of a server: what its fork server has started, or a child that was spawned. Needs /proc."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    children = [child for child, parent in parents.items() if parent == pid]
    below = [child for child, parent in parents.items() if parent in children]
    spawned = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    if not below + spawned:
        raise RuntimeError(f"process {pid} has no worker")
    return (below + spawned)[0]


def make_checkpoint(folder: Path) -> Path:
    """An untrained flow: the load does not depend on the weights."""
    import manifoldflow as mf
    from manifoldflow.tasks.dna.flow import DnaConfig, build

    return mf.save(build(DnaConfig(length=100, classes="a,b")), folder / "untrained.safetensors")


def main() -> None:
    question = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--quick", action="store_true", help="5 seconds")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--threads", type=int, help="threads of torch in the worker, all cores if absent")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="sampling steps of every design")
    parser.add_argument("--queue", type=int, default=128, help="of the server")
    parser.add_argument("--checkpoint", help="a model file or run folder")
    parser.add_argument("--kill", action="store_true", help="kill the worker in the middle")
    options = parser.parse_args()
    options.seconds = 5.0 if options.quick else options.seconds
    environment = versions("fastapi", "uvicorn")
    print(f"# {question}\n\n" + ", ".join(f"{k} {v}" for k, v in environment.items()))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or str(make_checkpoint(Path(folder)))
        arguments = f"{[checkpoint]!r}, port=0, threads={options.threads!r}, queue={options.queue}"
        code = f"from manifoldflow.tasks.dna.serving.commands import serve; serve({arguments})"
        server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            port = int(line.split(" at http://127.0.0.1:")[1].split()[0])
            found = asyncio.run(load(port, options, server.pid))
        finally:
            server.send_signal(signal.SIGINT)
            ended = server.wait(30)
    report(found, options)
    print(f"the server ended with exit code {ended}")
    if options.json:
        summary = {k: v for k, v in found.items() if k != "times"} | {"quantiles": quantiles(found["times"])}
        options.json.write_text(json.dumps({"question": question, **environment, "rows": [summary]}, indent=1))


def quantiles(times: list[float]) -> dict[str, float]:
    """Latencies in seconds."""
    if len(times) < 2:
        return {}
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "most": times[-1]}


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the figures."""
    answered = sum(found["codes"].values())
    errors = {code: count for code, count in found["codes"].items() if code not in ("200", "429")}
    print(f"\n{options.clients} clients, {found['seconds']:.1f} s, {options.steps} steps a design")
    print(f"answers     {answered} ({answered / found['seconds']:.1f} a second)")
    print(f"statuses    {', '.join(f'{code}: {count}' for code, count in sorted(found['codes'].items()))}")
    print(f"model calls {found['calls']} for {found['requests']} requests in the queue; restarts {found['restarts']}")
    print("latency     " + ", ".join(f"{name} {value:.2f} s" for name, value in quantiles(found["times"]).items()))
    print(f"answers that are not what was asked: {len(found['wrong'])}; seeds with several answers: {found['unlike']}")
    spread = quantiles(found["times"])
    checks = {
        "no status but 200 and 429": not errors,
        "fewer model calls than requests": found["calls"] < found["requests"],
        "every answer right": not found["wrong"] and not found["unlike"],
        "p99 at most 4 times p50": not spread or spread["p99"] <= 4 * spread["p50"],
    }
    for text, is_met in checks.items():
        print(f"target: {text}: {'met' if is_met else 'MISSED'}")


if __name__ == "__main__":
    main()
