"""The server designs what the library designs, shares calls between requests, refuses what is wrong in one line, and lives on."""

import asyncio
import json
import os
import signal
import socket
import threading

import pytest
import torch

import manifoldflow as mf
from manifoldflow.tasks.dna.designer import SequenceDesigner
from manifoldflow.tasks.dna.flow import DnaConfig, build
from manifoldflow.tasks.dna.orders import Progress, make_order

pytest.importorskip("fastapi", reason="needs fastapi, of manifoldflow[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx, of manifoldflow[dev]")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn, of manifoldflow[serve]")

from manifoldflow.serving.jobs import gather  # noqa: E402
from manifoldflow.serving.worker import Bench  # noqa: E402
from manifoldflow.tasks.dna.serving.app import create_app  # noqa: E402
from manifoldflow.tasks.dna.serving.jobs import DesignJob, ScoreJob  # noqa: E402
from manifoldflow.tasks.dna.serving.service import DnaService  # noqa: E402
from testkit import serving  # noqa: E402
from testkit.serving import WAIT, check_refusal, client_of, until  # noqa: E402

MOTIF = ">MA0000.1 box\nA [ 0 9 0 9 0 9 0 9 ]\nC [ 0 0 0 0 0 0 0 0 ]\nG [ 0 0 0 0 0 0 0 0 ]\nT [ 9 0 9 0 9 0 9 0 ]\n"
QUICK = {"steps": 2, "n": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("serving")
    torch.manual_seed(0)
    for name, representation in (("tiny", "masking"), ("simplex", "dirichlet")):
        config = DnaConfig(representation=representation, length=40, classes="a,b", width=8, kernel=5)
        mf.save(build(config), made / f"{name}.safetensors")
    (made / "box.pfm").write_text(MOTIF)
    return made


def models(folder):
    return {name: f"{folder}/{name}.safetensors" for name in ("tiny", "simplex")}


class Held(serving.Held):
    """The models in this process, behind a gate that the test opens; it may be told to fail."""

    def __init__(self, folder, is_open=True):
        super().__init__(DnaService.loader, models(folder), is_open)


def in_process(folder, body, is_open=True, motifs=None, **options):
    """Run a coroutine function on a client of a server whose models are in this process."""
    return serving.in_process(DnaService(motifs), models(folder), body, is_open, **options)


# -------------------------------------------------------------------- what cannot be met


BAD = [
    ("/v1/design", b"{", 400, "no valid JSON"),
    ("/v1/design", b"", 422, "is missing"),
    ("/v1/design", b"[" * 100_000, 400, "nested too deep"),
    ("/v1/design", b'{"n": ' + b"9" * 5000 + b"}", 400, "number too long"),
    ("/v1/design", b'{"label": "\xff"}', 400, "not UTF-8"),
    ("/v1/design", b"[1]", 422, "the body"),
    ("/v1/design", b"null", 422, "the body must be a JSON object"),
    ("/v1/design", b'"text"', 422, "the body"),
    ("/v1/design", {"n": 0}, 422, "n: must be greater than or equal to 1, got 0"),
    ("/v1/design", {"n": 10**9}, 422, "less than or equal to 1000, got 1000000000"),
    ("/v1/design", {"n": 2.5}, 422, "n: "),
    ("/v1/design", {"n": "3"}, 422, "n: "),
    ("/v1/design", {"n": True}, 422, "n: "),
    ("/v1/design", {"n": None}, 422, "n: "),
    ("/v1/design", {"model": "gpt"}, 404, "no model 'gpt'; the models are: tiny, simplex"),
    ("/v1/design", {"model": "../../etc/passwd"}, 404, "no model"),
    ("/v1/design", {"model": "/etc/passwd"}, 404, "no model"),
    ("/v1/design", {"label": "c"}, 422, "no class 'c'; its classes: a, b"),
    ("/v1/design", {"label": "Ж\u202e"}, 422, "no class"),
    ("/v1/design", {"labell": "a"}, 422, "unknown field 'labell' (did you mean 'label'?)"),
    ("/v1/design", {"motifs": [{"letter": "A"}]}, 422, "motifs[0].letters is missing"),
    ("/v1/design", {"motifs": [{"letters": "TAТA"}]}, 422, "at position 3 is no letter of DNA"),  # a Cyrillic T
    ("/v1/design", {"motifs": [{"letters": "ſ"}]}, 422, "is no letter of DNA"),
    ("/v1/design", {"motifs": [{"letters": "TATAN"}]}, 422, "'N' at position 5"),
    ("/v1/design", {"motifs": [{"letters": ""}]}, 422, "motifs[0].letters"),
    ("/v1/design", {"motifs": [{"letters": "ACGT", "start": -1}]}, 422, "motifs[0].start"),
    ("/v1/design", {"motifs": [{"letters": "ACGT", "start": 38}]}, 422, "does not fit at 38"),
    ("/v1/design", {"motifs": ["ACGT"]}, 422, "motifs[0]"),
    ("/v1/design", {"motifs": [{"letters": "A"}] * 17}, 422, "motifs: "),
    ("/v1/design", {"motifs": [{"letters": "A" * 41}]}, 422, "does not fit"),
    ("/v1/design", {"motifs": [{"letters": "A" * 15}, {"letters": "C" * 15}, {"letters": "G" * 15}]}, 422, "no room"),
    ("/v1/design", {"fixed": "ACGT"}, 422, "fixed has 4 letters, but this flow was trained on sequences of 40"),
    ("/v1/design", {"fixed": "ACGT", "length": 4}, 200, ""),
    ("/v1/design", {"fixed": "ACGT", "length": 5}, 422, "fixed has 4 letters"),
    ("/v1/design", {"fixed": "N" * 41}, 422, "fixed has 41 letters"),
    ("/v1/design", {"fixed": "AC\u0000"}, 422, "is no letter"),
    ("/v1/design", b'{"fixed": "\\ud800"}', 422, "fixed: "),
    ("/v1/design", {"length": 41}, 422, "between 1 and 40, got 41"),
    ("/v1/design", {"avoid_sites": ["GAATTX"]}, 422, "avoid_sites[0]: 'X' at position 6 is no IUPAC code"),
    ("/v1/design", {"avoid_sites": ["G\u017f"]}, 422, "is no IUPAC code"),  # its upper case is S
    ("/v1/design", {"avoid_sites": ["A"] * 33}, 422, "avoid_sites: "),
    ("/v1/design", {"avoid_sites": ["N"]}, 422, "leave no letter for the 40 free places"),
    ("/v1/design", {"fixed": "GAATTC" + 34 * "N", "avoid_sites": ["GAATTC"]}, 422, "fixed letters hold"),
    ("/v1/design", {"gc_range": [0.8, 0.2]}, 422, "gc_range"),
    ("/v1/design", {"gc_range": [0.99, 1], "fixed": "A" + 39 * "N"}, 422, "cannot be met"),
    ("/v1/design", {"gc_range": [0.99, 1]}, 422, "had a GC share from 0.99 to 1; widen the GC range"),
    ("/v1/design", {"avoid_sites": ["S", "WW"]}, 422, "none of the sites S, WW; avoid fewer sites"),
    ("/v1/design", {"gc_range": [0.1]}, 422, "gc_range: "),
    ("/v1/design", {"gc_range": [0, 2]}, 422, "gc_range[1]"),
    ("/v1/design", b'{"gc_range": [NaN, 1]}', 422, "gc_range[0]"),
    ("/v1/design", b'{"guidance": Infinity, "label": "a"}', 422, "guidance: "),
    ("/v1/design", b'{"temperature": 1e999}', 422, "temperature: "),
    ("/v1/design", b'{"seed": NaN}', 422, "seed: "),
    ("/v1/design", {"guidance": 2.0}, 422, "give label="),
    ("/v1/design", {"temperature": 0.5, "model": "simplex"}, 422, "temperature is for"),
    ("/v1/design", {"steps": 0}, 422, "steps: "),
    ("/v1/design", {"steps": 10**6}, 422, "steps: "),
    ("/v1/design", {"seed": -1}, 422, "seed: "),
    ("/v1/design", {"seed": 2**64}, 422, "seed: "),
    ("/v1/score", {}, 422, "sequences is missing"),
    ("/v1/score", {"sequences": []}, 422, "sequences: "),
    ("/v1/score", {"sequences": ["ACGT", "AC"]}, 422, "one length"),
    ("/v1/score", {"sequences": ["A" * 41]}, 422, "have 41 letters, but this flow was trained on sequences of 40"),
    ("/v1/score", {"sequences": ["ACGTACGTAC"]}, 422, "have 10 letters, but this flow was trained on sequences of 40"),
    ("/v1/score", {"sequences": ["АCGT"]}, 422, "is no letter of DNA"),
    ("/v1/score", {"sequences": ["ACGT"], "label": "c"}, 422, "no class 'c'"),
    ("/v1/score", {"sequences": ["ACGT"], "model": "simplex"}, 422, "no bound"),
    ("/v1/score", {"sequences": ["ACGT"]}, 422, "have 4 letters, but this flow was trained on sequences of 40"),
    ("/v1/score", {"sequences": ["ACGT"] * 256, "samples": 512}, 422, "sequences times samples"),
    ("/v1/score", {"sequences": ["ACGT"], "n": 3}, 422, "unknown field 'n'"),
]


def test_what_is_wrong_with_a_request_is_said_in_one_line(folder):
    async def body(client, held):
        for path, content, status, words in BAD:
            if isinstance(content, dict):
                content = json.dumps(QUICK | content if path == "/v1/design" else content).encode()
            response = await client.post(path, content=content, headers={"Content-Type": "application/json"})
            if status == 200:
                assert response.status_code == 200, response.text
            else:
                check_refusal(response, status, words)
        check_refusal(await client.post("/v1/design", content=b"n=3"), 415, "must be JSON")
        text = await client.post("/v1/design", content=b'{"n": 3}', headers={"Content-Type": "text/plain"})
        check_refusal(text, 415, "must be JSON")  # what a foreign page may send without being asked
        check_refusal(await client.get("/v1/design"), 405, "does not take GET")
        check_refusal(await client.get("/v2"), 404, "nothing at '/v2'")
        assert (await client.post("/v1/design", json=QUICK)).status_code == 200

    in_process(folder, body)


def test_the_page_is_served_and_no_other_file(folder, tmp_path, monkeypatch):
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("the page")
    (page / "app.js").write_text("the script")
    (tmp_path / "secret.js").write_text("the secret")
    (page / "link.js").symlink_to(tmp_path / "secret.js")
    monkeypatch.setattr(DnaService, "__init__", lambda self, *_: self.__dict__.update(motifs=(), panel=page))

    async def body(client, held):
        root = await client.get("/")
        assert root.text == "the page" and "default-src 'self'" in root.headers["Content-Security-Policy"]
        script = await client.get("/static/app.js")
        assert script.text == "the script" and script.headers["cache-control"] == "no-cache"
        outside = ["/static/../secret.js", "/static/%2e%2e/secret.js", "/static/..%2fsecret.js", "/static/link.js"]
        for path in [*outside, "/static/", "/static//etc/passwd", f"/static/{tmp_path}/secret.js", "/secret.js"]:
            status, answer = await raw_get(client.app, path)
            assert status == 404 and "nothing at" in answer["detail"], (path, status, answer)

    in_process(folder, body)


async def raw_get(app, target):
    """The status and the JSON of a request whose path no client has tidied up."""
    path = target.replace("%2e", ".").replace("%2f", "/")
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": target.encode(), "query_string": b""}
    scope |= {"headers": [(b"host", b"server")], "http_version": "1.1", "scheme": "http", "server": ("server", 80)}
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent[1:]))


def test_models_and_health_are_told(folder):
    async def body(client, held):
        told = (await client.get("/v1/models")).json()["models"]
        assert [m["name"] for m in told] == ["tiny", "simplex"] and told[0]["classes"] == ["a", "b"]
        assert told[0]["can_score"] and not told[1]["can_score"] and told[0]["motifs"] == ["box (MA0000.1)"]
        await until(lambda: held.is_ready)
        assert (await client.get("/healthz")).json() == {
            **{"status": "ok", "queued": 0, "capacity": 128, "requests": 0, "model_calls": 0, "restarts": 0},
            **{"replaced": [], "reason": None},
        }
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {"/v1/design", "/v1/score", "/v1/models", "/healthz"} <= set(paths)

    in_process(folder, body, motifs=folder / "box.pfm")


# -------------------------------------------------------------------- one call for many


def test_requests_that_wait_share_one_call_and_each_gets_what_it_asked_for(folder):
    async def body(client, held):
        first = asyncio.create_task(client.post("/v1/design", json=QUICK))
        await until(lambda: held.calls)
        asked = [
            {"n": 4, "label": "a", "fixed": "ACG" + 37 * "N"},
            {"n": 2, "motifs": [{"letters": "GGGCCC"}], "avoid_sites": ["GAATTC", "TTT"]},
            {"n": 5, "label": "b", "gc_range": [0.5, 1.0]},
            {"n": 1, "motifs": [{"letters": "TATA", "start": 6}]},
        ]
        tasks = [asyncio.create_task(client.post("/v1/design", json=QUICK | a)) for a in asked]
        await until(lambda: client.app.state.scheduler.queued == 5)
        held.gate.set()
        made = [(await task).json()["designs"] for task in tasks]
        assert (await first).status_code == 200
        assert len(held.calls[1].wants) == 4  # all in the second call
        assert [len(designs) for designs in made] == [4, 2, 5, 1]
        assert all(d["sequence"].startswith("ACG") and d["kept"] == [[0, 3]] and d["label"] == "a" for d in made[0])
        for d in made[1]:
            assert "GGGCCC" in d["sequence"] and "TTT" not in d["sequence"] and "AAA" not in d["sequence"]
        assert all(d["gc"] >= 0.5 and d["label"] == "b" for d in made[2])
        assert made[3][0]["sequence"][6:10] == "TATA" and made[3][0]["kept"] == [[6, 10]]
        health = (await client.get("/healthz")).json()
        assert health["requests"] == 5 and 2 <= health["model_calls"] == len(held.calls)

    in_process(folder, body, is_open=False)


def test_what_cannot_share_a_call_does_not(folder):
    async def body(client, held):
        first = asyncio.create_task(client.post("/v1/design", json=QUICK))
        await until(lambda: held.calls)
        others = [{"steps": 3}, {"temperature": 0.5}, {"length": 30}, {"label": "a", "guidance": 2.0}]
        others += [{"model": "simplex"}, {"seed": 1}, {"seed": 1}]
        tasks = [asyncio.create_task(client.post("/v1/design", json=QUICK | o)) for o in others]
        await until(lambda: client.app.state.scheduler.queued == 8)
        held.gate.set()
        answers = [(await task).json() for task in [first, *tasks]]
        assert [len(call.wants) for call in held.calls] == [1] * 8
        assert answers[-1]["designs"] == answers[-2]["designs"] and answers[-1]["seed"] == 1

    in_process(folder, body, is_open=False)


def test_an_order_that_cannot_be_met_does_not_hurt_its_neighbours(folder):
    async def body(client, held):
        first = asyncio.create_task(client.post("/v1/design", json=QUICK))
        await until(lambda: held.calls)
        bad = [{"gc_range": [1.0, 1.0]}, {"motifs": [{"letters": 14 * c} for c in "ACG"]}]
        tasks = [asyncio.create_task(client.post("/v1/design", json=QUICK | b)) for b in [*bad, {}]]
        await until(lambda: client.app.state.scheduler.queued == 4)
        tasks.append(asyncio.create_task(client.post("/v1/design", json=QUICK | {"n": 300})))
        await until(lambda: client.app.state.scheduler.queued == 5)
        held.gate.set()
        gave_up, no_room, good, large = [await task for task in tasks]
        check_refusal(gave_up, 422, "only 0 of")
        check_refusal(no_room, 422, "finds no room")
        assert len(good.json()["designs"]) == 3 and len(large.json()["designs"]) == 300
        assert len(held.calls[1].wants) == 4 and (await first).status_code == 200

    in_process(folder, body, is_open=False)


def test_a_seed_gives_the_sequences_of_the_library_whatever_else_runs(folder):
    asked = {"n": 20, "steps": 3, "label": "a", "guidance": 1.5, "motifs": [("GGCC", None), ("TATA", 3)]}
    asked |= {"gc_range": (0.4, 0.6), "avoid_sites": ["GAATTC"], "seed": 11}
    expected = SequenceDesigner.load(folder / "tiny.safetensors").design(**asked)
    sent = asked | {"motifs": [{"letters": w, "start": s} for w, s in asked["motifs"]]}

    async def body(client, held):
        noise = [asyncio.create_task(client.post("/v1/design", json=QUICK | {"n": n})) for n in range(1, 9)]
        one, two = await asyncio.gather(*(client.post("/v1/design", json=sent) for _ in range(2)))
        await asyncio.gather(*noise)
        assert one.json()["designs"] == two.json()["designs"]
        assert [d["sequence"] for d in one.json()["designs"]] == [d.sequence for d in expected]
        assert len([c for c in held.calls if c.state is not None]) > 2  # it took several calls, others between them

    in_process(folder, body)


def test_scores_share_a_call_without_a_seed_and_equal_the_library_with_one(folder):
    some = [40 * "A", "ACGT" * 10]
    expected = SequenceDesigner.load(folder / "tiny.safetensors").score(some, label="a", samples=4, seed=0)

    async def body(client, held):
        first = asyncio.create_task(client.post("/v1/design", json=QUICK))
        await until(lambda: held.calls)
        asked = [{"sequences": some[:1], "seed": None}, {"sequences": some, "label": "b", "seed": None}]
        asked += [{"sequences": some, "label": "a"}]
        tasks = [asyncio.create_task(client.post("/v1/score", json=a | {"samples": 4})) for a in asked]
        await until(lambda: client.app.state.scheduler.queued == 4)
        held.gate.set()
        one, two, seeded = [(await task).json() for task in tasks]
        await first
        assert len(held.calls) == 3 and len(held.calls[1].wants) == 2
        assert len(one["scores"]) == 1 and len(two["scores"]) == 2 and one["unit"] == "nats per letter"
        assert seeded["scores"] == pytest.approx(expected, abs=1e-6)

    in_process(folder, body, is_open=False)


def test_motif_sites_of_designs_are_told_on_either_strand(folder):
    kept = {"motifs": [{"letters": "TATATATA", "start": 5}], "n": 2, "steps": 2, "seed": 0}

    async def run():
        from manifoldflow.serving.catalogue import Catalogue

        held = Held(folder)
        known = Catalogue(DnaService(folder / "box.pfm"), models(folder))
        held.desk = Bench(DnaService.loader, list(known.served.values()))
        async with client_of(create_app(models(folder), worker=held, motifs=folder / "box.pfm")) as client:
            return (await client.post("/v1/design", json=kept)).json()["designs"]

    for design in asyncio.run(run()):
        hit = design["hits"][0]
        assert hit["motif"] == "box (MA0000.1)" and (hit["start"], hit["end"]) == (5, 13) and hit["strand"] in "+-"
        assert hit["score"] > 10  # eight certain letters: nearly 16 bits


# -------------------------------------------------------------------- load, time, and loss of the worker


def design_job(n, **options):
    return DesignJob("tiny", options.pop("seed", None), make_order(DnaConfig(length=10), n, **options))


def test_a_call_is_filled_in_the_order_of_the_queue_and_a_seed_has_it_alone():
    jobs = [design_job(3), design_job(4, steps=5), design_job(90), design_job(20), design_job(5)]
    assert gather(jobs, 100) == ([jobs[0], jobs[2], jobs[3]], [3, 90, 7])
    assert gather(jobs[1:], 100) == ([jobs[1]], [4])
    seeded = design_job(5000, seed=1)
    assert gather([seeded, *jobs], 100) == ([seeded], [256])  # as the library does it
    assert gather([jobs[0], seeded, jobs[4]], 100) == ([jobs[0], jobs[4]], [3, 5])
    scores = [ScoreJob("tiny", None, ("ACGT",) * k, None, 8) for k in (60, 50, 40)]
    assert gather(scores, 100) == ([scores[0], scores[2]], [60, 40])
    assert gather(scores, 10) == ([scores[0]], [60])


def test_an_order_draws_more_while_nothing_passes_and_then_gives_up():
    order = make_order(DnaConfig(length=10), 3, gc_range=(0.9, 1.0))
    progress = Progress(order, rounds=4, batch_size=40)
    drawn = []
    with pytest.raises(RuntimeError, match="only 0 of 98"):
        while True:
            drawn.append(progress.wanted)
            progress.take([], progress.wanted)
    assert drawn == [3, 15, 40, 40]


def test_models_are_named_after_their_files_and_a_taken_port_is_told(folder, tmp_path):
    from manifoldflow.serving.catalogue import name_models
    from manifoldflow.tasks.dna.serving.commands import serve

    run = tmp_path / "peaks_masking"
    run.mkdir()
    (run / "model.safetensors").write_bytes((folder / "tiny.safetensors").read_bytes())
    tiny = str(folder / "tiny.safetensors")
    assert list(name_models([tiny, str(run)], "dna_", "dna")) == ["tiny", "peaks_masking"]
    with pytest.raises(ValueError, match="another model called 'tiny'"):
        name_models([tiny, tiny], "dna_", "dna")
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nothing'"):
        name_models(["nothing"], "dna_", "dna")
    with pytest.raises(ValueError, match="no sequence flow"):
        serve(["proteins"], port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="choose another --port"):
        serve([tiny], port=taken.getsockname()[1])


def test_checkpoints_need_no_brackets_on_the_command_line():
    from manifoldflow import cli
    from manifoldflow.tasks.dna.serving.commands import serve

    parser = cli.build_parser(serve, "manifoldflow serve dna")
    assert parser.parse_args(["--checkpoints", "ctcf_pu1"]).checkpoints == "ctcf_pu1"
    assert parser.parse_args(["--checkpoints", "a,b", "--hosts", "lab.example.org"]).hosts == "lab.example.org"
    assert parser.parse_args(["--checkpoints", "[a, b]"]).checkpoints == ["a", "b"]


def test_models_answer_to_the_names_that_people_know_and_classes_in_either_case(folder):
    async def body(client, held):
        asked = QUICK | {"model": "dna_tiny", "label": "A", "seed": 2}
        answer = (await client.post("/v1/design", json=asked)).json()
        assert answer["model"] == "tiny" and {d["label"] for d in answer["designs"]} == {"a"}
        exact = (await client.post("/v1/design", json=asked | {"model": "tiny", "label": "a"})).json()
        assert exact["designs"] == answer["designs"]
        scored = [{"sequences": [40 * "A"], "label": label, "samples": 2} for label in ("A", "a")]
        assert len({str((await client.post("/v1/score", json=body)).json()["scores"]) for body in scored}) == 1

    in_process(folder, body)


def test_an_answer_repeats_what_was_asked_with_what_was_left_out_filled_in(folder):
    async def body(client, held):
        asked = {
            "n": 2,
            "steps": 3,
            "label": "B",
            "motifs": [{"letters": "tata", "start": 6}],
            "avoid_sites": ["gaattc"],
        }
        settings = (await client.post("/v1/design", json=asked)).json()["settings"]
        assert settings == {
            **{"n": 2, "label": "b", "guidance": 1.0, "fixed": None, "motifs": [{"letters": "TATA", "start": 6}]},
            **{"gc_range": [0.0, 1.0], "avoid_sites": ["GAATTC"], "length": 40, "steps": 3, "temperature": 1.0},
        }
        described = (await client.get("/openapi.json")).json()["components"]["schemas"]
        assert "from 0" in described["MotifToKeep"]["properties"]["start"]["description"]
        assert "from 0" in described["Designed"]["properties"]["kept"]["description"]
        assert "from 0" in described["Hit"]["properties"]["start"]["description"]

    in_process(folder, body)


def test_a_request_that_finds_nothing_is_given_up_early_and_told_why(folder, monkeypatch):
    monkeypatch.setattr("manifoldflow.tasks.dna.serving.jobs.ROUNDS", 10_000)
    monkeypatch.setattr(
        "manifoldflow.tasks.dna.serving.jobs.PATIENCE", 0.0
    )  # of its time, once a batch has brought nothing

    async def body(client, held):
        answer = await client.post("/v1/design", json={"n": 256, "steps": 1, "gc_range": [0.99, 1]})
        check_refusal(answer, 422, "sequences had a GC share from 0.99 to 1; widen the GC range")
        assert sum(sum(call.rows) for call in held.calls) < 1000

    in_process(folder, body)


# -------------------------------------------------------------------- a server as users have it


@pytest.fixture(scope="module")
def server(folder):
    app = create_app(models(folder), timeout=WAIT, threads=1)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", ws="none")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    asyncio.run(until(lambda: app.state.worker.is_ready))
    yield app, f"http://127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join(WAIT)
    assert not thread.is_alive()
    assert not app.state.worker.check()  # no process is left behind


def test_a_killed_worker_is_replaced_and_no_request_is_lost(server):
    app, address = server
    with httpx.Client(base_url=address, timeout=WAIT) as client:
        assert client.post("/v1/design", json=QUICK).status_code == 200  # once the first worker is there
        before = client.get("/healthz").json()["restarts"]
        os.kill(app.state.worker.pid, signal.SIGSTOP)  # so that what follows is under way
        codes = []
        asked = [QUICK | {"seed": 5}] + [QUICK] * 4
        threads = [
            threading.Thread(target=lambda a=a: codes.append(httpx.post(f"{address}/v1/design", json=a, timeout=WAIT)))
            for a in asked
        ]
        for thread in threads:
            thread.start()
        asyncio.run(until(lambda: app.state.scheduler.queued == 5))
        os.kill(app.state.worker.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert [r.status_code for r in codes] == [200] * 5
        assert set(app.state.worker.rates) == set(models("")) and min(app.state.worker.rates.values()) > 100
        health = client.get("/healthz").json()
        assert health["status"] == "ok" and health["restarts"] == before + 1 and health["queued"] == 0


def test_large_bodies_are_refused_before_they_are_read(server):
    _, address = server

    def endless():
        for _ in range(40 * 16):
            yield 65536 * b" "

    with httpx.Client(base_url=address, timeout=WAIT) as client:
        json_type = {"Content-Type": "application/json"}
        check_refusal(client.post("/v1/design", content=10_000_000 * b" ", headers=json_type), 413, "10000000 bytes")
        check_refusal(client.post("/v1/design", content=endless(), headers=json_type), 413, "more than 262144")
    # The refusal comes while the body is still to be sent.
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as raw:
        raw.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    with socket.create_connection((host, int(port)), timeout=WAIT) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_a_client_that_leaves_is_dropped_from_the_queue(server):
    app, address = server
    host, port = address.removeprefix("http://").split(":")
    os.kill(app.state.worker.pid, signal.SIGSTOP)
    try:
        body = json.dumps(QUICK).encode()
        head = f"POST /v1/design HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        raw = socket.create_connection((host, int(port)), timeout=WAIT)
        raw.sendall(head.encode() + b"\r\n\r\n" + body)
        asyncio.run(until(lambda: app.state.scheduler.queued == 1))
        raw.close()
        asyncio.run(until(lambda: app.state.scheduler.queued == 0))
    finally:
        os.kill(app.state.worker.pid, signal.SIGCONT)
    assert httpx.post(f"{address}/v1/design", json=QUICK, timeout=WAIT).status_code == 200
