"""A task serves with a job, a schema and a loader; everything else is the same for all. The task here is a die."""

import asyncio
import errno
import time

import pytest

pytest.importorskip("fastapi", reason="needs fastapi, of manifoldflow[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx, of manifoldflow[dev]")

from manifoldflow.serving.app import create_app  # noqa: E402
from manifoldflow.serving.calls import Served  # noqa: E402
from manifoldflow.serving.catalogue import name_models  # noqa: E402
from manifoldflow.serving.jobs import gather, requeue  # noqa: E402
from manifoldflow.serving.scheduler import Scheduler  # noqa: E402
from manifoldflow.serving.worker import Worker  # noqa: E402
from testkit.dice import DiceService, RollJob  # noqa: E402
from testkit.serving import Held, check_refusal, client_of, in_process, until  # noqa: E402


@pytest.fixture
def models(tmp_path):
    made = {}
    for name, sides in (("cube", 6), ("coin", 2)):
        made[name] = tmp_path / f"{name}.die"
        made[name].write_text(str(sides))
    return made


def test_a_second_service_needs_one_file_and_gets_everything(models):
    async def body(client, held):
        rolls = (await client.post("/v1/roll", json={"n": 50, "seed": 3})).json()["rolls"]
        assert len(rolls) == 50 and set(rolls) == {1, 2, 3, 4, 5, 6}
        again = await client.post("/v1/roll", json={"n": 50, "seed": 3, "model": "dice_cube"})
        assert again.json() == {"model": "cube", "rolls": rolls}
        coin = await client.post("/v1/roll", json={"n": 50, "model": "coin"})
        assert set(coin.json()["rolls"]) == {1, 2}
        check_refusal(await client.post("/v1/roll", json={"sed": 1}), 422, "unknown field 'sed' (did you mean 'seed'?)")
        check_refusal(await client.post("/v1/roll", json={"n": 0}), 422, "n: must be greater than or equal to 1, got 0")
        check_refusal(await client.post("/v1/roll", json={"n": 13}), 422, "n must not be 13 here")
        check_refusal(
            await client.post("/v1/roll", json={"n": 666}), 500, "the model failed: RuntimeError a cursed number"
        )
        check_refusal(await client.post("/v1/roll", json={"model": "egg"}), 404, "the models are: cube, coin")
        check_refusal(await client.get("/"), 404, "there is no page here; /docs")
        facts = (await client.get("/v1/models")).json()
        assert facts == {"models": [{"name": "cube", "sides": 6}, {"name": "coin", "sides": 2}]}
        described = (await client.get("/openapi.json")).json()
        assert {"/v1/roll", "/v1/models", "/healthz"} == set(described["paths"])
        assert "sides" in described["components"]["schemas"]["DieFacts"]["properties"]

    in_process(DiceService(), models, body)


def test_the_second_service_runs_in_a_process_of_its_own(models):
    worker = Worker(DiceService.loader, [Served(name, str(path)) for name, path in models.items()])

    async def run():
        async with client_of(create_app(DiceService(), models, worker=worker)) as client:
            rolls = (await client.post("/v1/roll", json={"n": 20})).json()["rolls"]
            assert len(rolls) == 20 and worker.pid is not None
            assert (await client.get("/healthz")).json()["status"] == "ok"

    asyncio.run(run())
    assert not worker.check()


# -------------------------------------------------------------------- the queue lives on (REVIEW G3)


def test_whatever_goes_wrong_with_the_worker_the_queue_lives_on(models, monkeypatch):
    monkeypatch.setattr("manifoldflow.serving.scheduler.WATCH", 0.05)

    async def body(client, held):
        await until(lambda: held.is_ready)
        held.troubles = [
            OSError(errno.EMFILE, "Too many open files"),
            KeyError("?"),
            ConnectionRefusedError("fork server"),
        ]
        held.is_ready = False  # lost while idle
        await until(lambda: client.app.state.scheduler.status[0] == "unhealthy")
        told = await client.get("/healthz")
        assert told.status_code == 503 and told.json()["status"] == "unhealthy" and told.json()["reason"]
        await until(lambda: held.is_ready)
        assert (await client.get("/healthz")).json()["status"] == "ok"
        assert (await client.post("/v1/roll", json={})).status_code == 200

    in_process(DiceService(), models, body)


def test_a_fault_of_a_job_does_not_hurt_its_neighbours_or_the_queue(models, monkeypatch):
    def take(self, part, rows, state):
        if self.n == 7:
            raise ZeroDivisionError("seven")
        super(RollJob, self).take(part, rows, state)

    monkeypatch.setattr(RollJob, "take", take)

    async def body(client, held):
        first = asyncio.create_task(client.post("/v1/roll", json={"n": 1}))
        await until(lambda: held.calls)
        tasks = [asyncio.create_task(client.post("/v1/roll", json={"n": n})) for n in (2, 7, 3)]
        await until(lambda: client.app.state.scheduler.queued == 4)
        held.gate.set()
        good, bad, other = [await task for task in tasks]
        check_refusal(bad, 500, "ZeroDivisionError seven")
        assert (await first).status_code == good.status_code == other.status_code == 200
        assert len(held.calls) == 2

    in_process(DiceService(), models, body, is_open=False)


def test_a_server_ends_in_order_whatever_its_worker_does_then(models):
    async def body(client, held):
        def close():
            raise OSError("no")

        held.close = close

    in_process(DiceService(), models, body)


def test_a_worker_that_cannot_be_started_is_a_lost_one(models, monkeypatch):
    worker = Worker(DiceService.loader, [])

    def fails(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("manifoldflow.serving.worker._context", fails)
    from manifoldflow.serving.worker import WorkerLost

    for _ in range(2):
        with pytest.raises(WorkerLost, match=r"no worker could be started: OSError .*Too many open files"):
            worker.ensure()
    worker.ensure()  # the third time without a fork server
    assert worker.is_ready and worker.check()
    worker.close()


# -------------------------------------------------------------------- nobody waits far longer than the others (REVIEW H6)


def roll(n, turn=0.0, seed=None):
    made = RollJob("cube", seed, n)
    made.turn = turn
    return made


def test_leftovers_do_not_pass_those_that_came_before_them():
    # A call of jobs that share leaves some unfinished every time; a job with a seed has its calls for itself. If leftovers went
    # first, they would take along all new jobs of their kind, again and again, and the one with the seed would never run.
    first, seeded, queue, served, now = roll(3, 0.0), roll(2, 1.0, seed=5), [], [], 2.0
    queue = [first, seeded, *(roll(3, 1.5 + i / 100) for i in range(5))]
    for _ in range(4):
        group, _ = gather(queue, 100)
        served.append(group)
        queue = [job for job in queue if job not in group]
        rest = [job for job in group if job.seed is None][-2:]  # two of each call lack something
        now += 1
        queue = requeue(queue, rest, 100, now)
        queue.append(roll(3, now))
    assert served[1] == [seeded]


def test_jobs_wait_alike_whatever_their_kind(models):
    """Forty clients that ask again at once, one in five with calls of its own: the slowest answer takes at most four medians."""

    class Slow(Held):
        def call(self, message, timeout):
            time.sleep(0.004 + 0.0005 * len(message.wants))
            return super().call(message, timeout)

    held = Slow(DiceService.loader, models)

    async def run():
        scheduler, times = Scheduler(held, 128, 30.0), []
        scheduler.start()
        end = time.monotonic() + 1.5

        async def client(number):
            while time.monotonic() < end:
                start = time.monotonic()
                await scheduler.run(RollJob("cube", number if number % 5 == 0 else None, 1 + number % 4))
                times.append(time.monotonic() - start)

        await asyncio.gather(*(client(number) for number in range(40)))
        await scheduler.close()
        return sorted(times)

    times = asyncio.run(run())
    assert len(times) > 200
    assert times[int(0.99 * len(times))] <= 4 * times[len(times) // 2], (times[len(times) // 2], times[-1])


# -------------------------------------------------------------------- a file that is replaced (REVIEW G8)


def test_a_replaced_checkpoint_is_noticed_and_never_served_under_the_old_name(models):
    app = create_app(DiceService(), models, worker=None)
    worker = app.state.worker

    async def run():
        async with client_of(app) as client:
            await until(lambda: worker.is_ready)
            old = (await client.post("/v1/roll", json={"n": 30, "seed": 1})).json()
            fresh = models["cube"].with_name("fresh")
            fresh.write_text("20")
            fresh.replace(models["cube"])  # as a training does it: whole, under the same name
            health = (await client.get("/healthz")).json()
            assert health["status"] == "ok" and health["replaced"] == ["cube"]
            assert (await client.post("/v1/roll", json={"n": 30, "seed": 1})).json() == old
            worker._process.kill()
            worker._process.join()
            await until(lambda: worker.starts == 2 and worker.is_ready)
            lost = await client.post("/v1/roll", json={"n": 30, "seed": 1})
            check_refusal(
                lost, 503, "the checkpoint of 'cube' was replaced since the server started; restart the server"
            )
            assert (await client.post("/v1/roll", json={"n": 3, "model": "coin"})).status_code == 200
            models["coin"].write_text("3")
            worker._process.kill()
            await until(lambda: worker.starts == 3 and worker.is_ready)
            health = await client.get("/healthz")
            assert health.status_code == 503 and "restart the server" in health.json()["reason"]

    asyncio.run(run())


# -------------------------------------------------------------------- hosts, origins, prefixes (REVIEW G10, C10)


def ask(models, requests, **options):
    """Answers to requests of the httpx kind."""

    async def body(client, held):
        return [await client.request(method, path, headers=headers) for method, path, headers in requests]

    return in_process(DiceService(), models, body, **options)


@pytest.mark.parametrize(
    "host, is_known",
    [
        ("localhost:8000", True),
        ("LOCALHOST", True),
        ("127.0.0.1:9", True),
        ("[::1]:8000", True),
        ("lab.example.org", True),
        ("a.sub.example.org:80", True),
        ("sub.example.org", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.7.7", False),
        ("localhost:8000@evil.example", False),
        ("", False),
    ],
)
def test_only_names_of_the_server_are_answered(models, host, is_known):
    found = ask(models, [("GET", "/healthz", {"Host": host})], hosts=["lab.example.org", "*.sub.example.org"])
    assert found[0].status_code == (200 if is_known else 400), found[0].text
    if not is_known:
        assert "name in the Host header" in found[0].json()["detail"]


def test_no_redirection_repeats_a_foreign_host(models):
    paths = ["/healthz/", "/v1/models/", "/static", "/docs/", "//evil.example/..", "/v1/roll/"]
    for response in ask(models, [("GET", path, {"Host": "evil.example"}) for path in paths]):
        assert "location" not in response.headers and "evil" not in str(response.headers), response.url


def test_other_origins_ask_only_if_they_are_named(models):
    wanted = {"Origin": "https://lab.example.org", "Access-Control-Request-Method": "POST"}
    wanted["Access-Control-Request-Headers"] = "content-type"
    preflight = [("OPTIONS", "/v1/roll", wanted), ("GET", "/healthz", {"Origin": "https://lab.example.org"})]
    for response in ask(models, preflight):
        assert "access-control-allow-origin" not in response.headers
    allowed, seen = ask(models, preflight, origins=["https://lab.example.org"])
    assert allowed.status_code == 200 and "POST" in allowed.headers["access-control-allow-methods"]
    assert allowed.headers["access-control-allow-origin"] == "https://lab.example.org"
    assert seen.headers["access-control-allow-origin"] == "https://lab.example.org"
    foreign = {**wanted, "Origin": "https://evil.example"}
    (refused,) = ask(models, [("OPTIONS", "/v1/roll", foreign)], origins=["https://lab.example.org"])
    assert "access-control-allow-origin" not in refused.headers
    with pytest.raises(ValueError, match="an origin is such as"):
        create_app(DiceService(), models, origins=["lab.example.org/page"])


def test_pages_may_be_framed_only_by_the_origins_that_are_named(models):
    (plain,) = ask(models, [("GET", "/docs", {})])
    assert "frame-ancestors 'self'" in plain.headers["content-security-policy"]
    (named,) = ask(models, [("GET", "/docs", {})], origins=["https://lab.example.org"])
    assert "frame-ancestors 'self' https://lab.example.org" in named.headers["content-security-policy"]
    assert plain.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("passes_prefix", [True, False])
def test_a_proxy_may_show_the_server_under_a_prefix(models, tmp_path, passes_prefix):
    class Shown(DiceService):
        panel = tmp_path

    (tmp_path / "index.html").write_text("the page")
    (tmp_path / "app.js").write_text("the script")
    before = "/user/ann/proxy/8000" if passes_prefix else ""

    async def body(client, held):
        assert (await client.get(before + "/")).text == "the page"
        assert (await client.get(before + "/static/app.js")).text == "the script"
        assert (await client.post(before + "/v1/roll", json={})).status_code == 200
        wrong = await client.post(before + "/v1/roll", json={"sed": 1})
        check_refusal(wrong, 422, "did you mean 'seed'?")
        assert (await client.get(before + "/docs/start.js")).status_code == 200
        described = (await client.get(before + "/openapi.json")).json()
        assert [server["url"] for server in described["servers"]] == ["."]  # of the description, so the prefix stays

    in_process(Shown(), models, body, root_path="/user/ann/proxy/8000")


def test_the_documentation_needs_nobody_else(models):
    import re

    async def body(client, held):
        page = (await client.get("/docs")).text
        links = re.findall(r'(?:href|src)="([^"]+)"', page)
        assert len(links) >= 5 and not [link for link in links if link.startswith(("/", "http"))]
        for link in links:
            found = await client.get("/" + link)
            assert found.status_code == 200, link
        assert "SwaggerUIBundle" in (await client.get("/docs/swagger-ui-bundle.js")).text
        check_refusal(await client.get("/docs/../app.py"), 404, "there is nothing at")
        check_refusal(await client.get("/docs/other.js"), 404, "no such file")

    in_process(DiceService(), models, body)


# -------------------------------------------------------------------- names


def test_checkpoints_are_named_as_people_type_them(tmp_path):
    run = tmp_path / "peaks, both"
    run.mkdir()
    (run / "model.safetensors").write_text("6")
    assert list(name_models(str(run), "dna_", "dna")) == ["peaks, both"]  # a name that exists is one name
    assert list(name_models("dna_ctcf_pu1,promoters", "dna_", "dna")) == ["ctcf_pu1", "promoters"]
    assert list(name_models(["ctcf_pu1"], "dna_", "dna")) == ["ctcf_pu1"]
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        name_models(str(tmp_path), "dna_", "dna")
    with pytest.raises(ValueError, match="a device or a pipe, not a file"):
        name_models("/dev/null", "dna_", "dna")
    with pytest.raises(FileNotFoundError, match="no embedded models of stones"):
        name_models(None, "stones_", "stones")
