"""The queue of any service: shared calls, a full queue, time that is over, a worker that hangs or dies, and large bodies."""

import asyncio
import json
from dataclasses import dataclass

import pytest

pytest.importorskip("fastapi", reason="needs fastapi, of manifoldflow[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx, of manifoldflow[dev]")

from manifoldflow.serving.app import create_app  # noqa: E402
from manifoldflow.serving.jobs import Job, gather, requeue  # noqa: E402
from manifoldflow.serving.pace import Pace  # noqa: E402
from manifoldflow.serving.worker import WorkerLost  # noqa: E402
from testkit.dice import DiceService  # noqa: E402
from testkit.serving import Held, check_refusal, client_of, in_process, until  # noqa: E402


@pytest.fixture
def models(tmp_path):
    made = {}
    for name, sides in (("cube", 6), ("coin", 2)):
        made[name] = tmp_path / f"{name}.die"
        made[name].write_text(str(sides))
    return made


@dataclass(eq=False)
class Piece(Job):
    """A job of so many rows that may be done in pieces; only those of one size share a call."""

    kind = "piece"
    is_whole = False

    n: int
    size: int = 10

    @property
    def shape(self):
        return (self.size,)

    @property
    def rows(self):
        return min(self.n, 256)

    @property
    def left(self):
        return self.n

    @property
    def unit(self):
        return float(self.size)


class Whole(Piece):
    kind = "whole"
    is_whole = True


def piece(n, size=10, seed=None):
    return Piece("cube", seed, n, size)


# -------------------------------------------------------------------- what goes into a call


def test_a_call_is_filled_in_the_order_of_the_queue_and_a_seed_has_it_alone():
    jobs = [piece(3), piece(4, size=5), piece(90), piece(20), piece(5)]
    assert gather(jobs, 100) == ([jobs[0], jobs[2], jobs[3]], [3, 90, 7])
    assert gather(jobs[1:], 100) == ([jobs[1]], [4])
    seeded = piece(5000, seed=1)
    assert gather([seeded, *jobs], 100) == ([seeded], [256])  # as the library does it
    assert gather([jobs[0], seeded, jobs[4]], 100) == ([jobs[0], jobs[4]], [3, 5])
    wholes = [Whole("cube", None, n) for n in (60, 50, 40)]
    assert gather(wholes, 100) == ([wholes[0], wholes[2]], [60, 40])
    assert gather(wholes, 10) == ([wholes[0]], [60])


def test_what_lacks_a_few_rows_keeps_its_turn_and_what_lacks_many_goes_behind_those_that_wait():
    earlier, waiting, few, many = piece(2), piece(3), piece(5), piece(90)
    earlier.turn, few.turn, many.turn, waiting.turn = 1.0, 2.0, 2.0, 3.0
    assert requeue([earlier, waiting], [many, few], 32, now=4.0) == [earlier, few, waiting, many]


def test_calls_are_kept_short_and_waits_are_foreseen():
    pace, job = Pace(), piece(8, size=100)
    assert pace.wait(job, [job] * 100) == 0 and pace.rows(job) == 32
    pace.learn(job, 1, 1.0)
    assert pace.wait(job, [job] * 100) == 0  # a call of one row says little
    pace.learn(job, 40, 1.0)
    assert pace.rows(job) == 80 and pace.wait(job, [job] * 10) == pytest.approx(11 * 8 / 40)
    large = piece(1000, size=100)
    assert pace.wait(job, [large]) == pytest.approx(2 + 8 / 40)  # one call of it, not all
    assert pace.wait(large, [job]) == pytest.approx(1008 / 40)
    pace.expect({"cube": 1.0, "other": 1.0})
    assert pace.wait(job, []) == pytest.approx(8 / 40)  # what was measured under way stays
    pace.expect({"unknown": 0.0})
    assert Pace.wait(pace, Piece("unknown", None, 8), []) == 0  # nothing is known
    for _ in range(100):
        pace.correct(pace.wait(job, [job] * 10), 4.2)  # it takes twice as long, and the model does not know why
    assert pace.wait(job, [job] * 10) == pytest.approx(4.2, rel=0.01)


# -------------------------------------------------------------------- load, time, and loss of the worker


def test_a_full_queue_says_when_to_try_again_and_then_takes_more(models):
    async def body(client, held):
        tasks = [asyncio.create_task(client.post("/v1/roll", json={})) for _ in range(3)]
        await until(lambda: client.app.state.scheduler.queued == 3)
        full = await client.post("/v1/roll", json={})
        check_refusal(full, 429, "the queue is full (3 requests)")
        assert int(full.headers["Retry-After"]) >= 1
        assert (await client.get("/healthz")).json()["queued"] == 3
        held.gate.set()
        assert [(await task).status_code for task in tasks] == [200] * 3
        assert (await client.post("/v1/roll", json={})).status_code == 200

    in_process(DiceService(), models, body, is_open=False, queue=3)


def test_a_request_whose_time_is_over_leaves_the_queue(models):
    async def body(client, held):
        held.patience = 10
        two = [asyncio.create_task(client.post("/v1/roll", json={"model": name})) for name in ("cube", "coin")]
        for task in two:
            check_refusal(await task, 504, "no result within 0.3 s; ask for less or try again later")
        assert client.app.state.scheduler.queued == 0
        held.gate.set()
        assert (await client.post("/v1/roll", json={})).status_code == 200
        assert [call.model for call in held.calls] == ["cube", "cube"]  # the other one never ran

    in_process(DiceService(), models, body, is_open=False, timeout=0.3)


def test_a_worker_that_hangs_is_replaced(models):
    async def body(client, held):
        check_refusal(await client.post("/v1/roll", json={}), 504, "no result within 0.3 s")
        await until(lambda: held.starts == 2)
        held.gate.set()
        assert (await client.post("/v1/roll", json={})).status_code == 200

    in_process(DiceService(), models, body, is_open=False, timeout=0.3)


def test_a_lost_call_is_tried_again_and_one_that_always_kills_fails_alone(models):
    def poison(message):
        return WorkerLost("the worker has died") if 9 in message.wants else None

    async def body(client, held):
        first = asyncio.create_task(client.post("/v1/roll", json={}))
        await until(lambda: held.calls)
        held.faults = [lambda _: None] + [poison] * 20
        tasks = [asyncio.create_task(client.post("/v1/roll", json={"n": n})) for n in (3, 9, 5)]
        await until(lambda: client.app.state.scheduler.queued == 4)
        held.gate.set()
        good, bad, other = [await task for task in tasks]
        check_refusal(bad, 503, "the worker has died")
        assert (await first).status_code == good.status_code == other.status_code == 200
        assert [len(call.wants) for call in held.calls[1:]] == [3, 3, 1, 1, 1]
        assert (await client.get("/healthz")).json()["restarts"] == 3

    in_process(DiceService(), models, body, is_open=False)


def test_a_request_that_would_take_too_long_is_told_at_once(models):
    async def body(client, held):
        await until(lambda: held.is_ready)
        client.app.state.scheduler._pace.expect({"cube": 5.0})  # five rolls a second
        check_refusal(await client.post("/v1/roll", json={"n": 1000}), 422, "would take about 200 s")
        task = asyncio.create_task(client.post("/v1/roll", json={"n": 3}))
        await until(lambda: held.calls)
        large = await client.post("/v1/roll", json={"n": 200})  # 40 s alone, more than half of 60
        check_refusal(large, 429, "the server is busy (1 requests before this one, about 41 s)")
        assert large.headers["Retry-After"] == "21"
        held.gate.set()
        assert (await task).status_code == 200

    in_process(DiceService(), models, body, is_open=False)


def test_requests_that_came_before_the_worker_are_let_go_if_it_turns_out_too_slow(models):
    class Slow(Held):
        def ensure(self):
            self.gate.wait(10)
            self.rates = {"cube": 1.0}  # one roll a second
            super().ensure()

    held = Slow(DiceService.loader, models, is_open=False)

    async def run():
        async with client_of(create_app(DiceService(), models, worker=held, timeout=20)) as client:
            tasks = [asyncio.create_task(client.post("/v1/roll", json={"n": 6})) for _ in range(5)]
            await until(lambda: client.app.state.scheduler.queued == 5)
            held.gate.set()
            assert sorted([(await task).status_code for task in tasks]) == [200, 200, 429, 429, 429]

    asyncio.run(run())


def test_what_is_under_way_when_the_server_ends_is_answered(models):
    async def body(client, held):
        task = asyncio.create_task(client.post("/v1/roll", json={}))
        await until(lambda: held.calls)
        client.app.state.scheduler.give_up()
        check_refusal(await task, 503, "shutting down")
        check_refusal(await client.post("/v1/roll", json={}), 503, "shutting down")

    in_process(DiceService(), models, body, is_open=False)


def test_bodies_that_are_no_json_are_told(models):
    async def body(client, held):
        told = {"Content-Type": "application/json"}
        for content, status, words in [
            (b"{", 400, "no valid JSON"),
            (b"[" * 100_000, 400, "nested too deep"),
            (b'{"n": ' + b"9" * 5000 + b"}", 400, "number too long"),
            (b'{"n": "\xff"}', 400, "not UTF-8"),
            (b"null", 422, "the body must be a JSON object"),
            (json.dumps({"n": 1, "pad": "x" * 300_000}).encode(), 413, "at most 262144 are taken"),
        ]:
            check_refusal(await client.post("/v1/roll", content=content, headers=told), status, words)
        check_refusal(await client.post("/v1/roll", content=b"n=3"), 415, "must be JSON")
        check_refusal(await client.get("/v1/roll"), 405, "does not take GET")
        check_refusal(await client.get("/v2"), 404, "nothing at '/v2'")

    in_process(DiceService(), models, body)
