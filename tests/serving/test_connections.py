"""A server in a process of its own: connections that say nothing, clients that half close, signals, and kills under load."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="needs fastapi, of manifoldflow[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx, of manifoldflow[dev]")

from testkit.serving import WAIT, ServerProcess  # noqa: E402

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="counts descriptors and kills processes as Linux has them"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("dice") / "cube.die"
    path.write_text("6")
    return {"cube": str(path)}


@contextlib.contextmanager
def server_of(models, **options):
    server = ServerProcess("testkit.dice:DiceService", models, **options)
    try:
        server.wait_healthy()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(models):
    with server_of(models, idle=1.5) as made:
        yield made


def request(path="/v1/roll", body=None, version="1.1", head=""):
    """The bytes of a request."""
    text = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    lines = f"{method} {path} HTTP/{version}\r\nHost: localhost\r\n{head}Content-Type: application/json\r\n"
    return f"{lines}Content-Length: {len(text)}\r\n\r\n".encode() + text


def read_all(connection):
    """What comes until the server closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


# -------------------------------------------------------------------- connections that rest (REVIEW G4)


def test_300_idle_connections_with_128_descriptors_leave_the_server_answering(models):
    with server_of(models, descriptors=128) as server, contextlib.ExitStack() as held:
        for number in range(300):
            one = held.enter_context(server.connect())
            one.sendall([b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "][number % 3])
        for _ in range(5):
            start = time.monotonic()  # a client of httpx takes longer to be made than the answer
            with server.connect() as fresh:
                fresh.sendall(request("/healthz", head="Connection: close\r\n"))
                assert b'"status":"ok"' in read_all(fresh)
            assert time.monotonic() - start < 1.0
        assert httpx.post(f"{server.address}/v1/roll", json={"n": 3}, timeout=WAIT).status_code == 200
        code, errors = server.end(signal.SIGTERM)
    assert code == 0 and len(errors.splitlines()) < 10 and "Traceback" not in errors, errors[-2000:]


@pytest.mark.parametrize(
    "start", [b"", b"GET /healthz HTTP/1.1\r\n", request() + b"GET /"], ids=["silent", "cut", "second"]
)
def test_a_connection_without_a_complete_request_is_ended(server, start):
    with server.connect() as one:
        one.sendall(start)
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while True:  # a byte now and then does not help
                one.settimeout(0.3)
                try:
                    if not one.recv(65536):
                        break
                except TimeoutError:
                    one.sendall(b"X" if start else b"")
                assert time.monotonic() - begun < 10, "it is still open"
        assert time.monotonic() - begun > 1.0


def test_a_connection_may_be_kept_between_requests(server):
    with server.connect() as one:
        for _ in range(3):
            one.sendall(request("/healthz"))
            time.sleep(0.4)
            assert b"200 OK" in one.recv(65536)


@pytest.mark.slow
def test_more_connections_with_requests_than_may_be_are_told(models):
    with server_of(models, connections=8) as server, contextlib.ExitStack() as held:
        os.kill(server.worker(), signal.SIGSTOP)  # so that what is asked stays under way
        waiting = [held.enter_context(server.connect()) for _ in range(8)]
        for one in waiting:
            one.sendall(request(body={"n": 2}))
        time.sleep(0.5)
        with server.connect() as more:
            with contextlib.suppress(OSError):
                more.sendall(request("/healthz"))
                assert more.recv(65536).startswith(b"HTTP/1.1 503 ")
        os.kill(server.worker(), signal.SIGCONT)
        assert all(b"200 OK" in one.recv(65536) for one in waiting)  # they kept their places


# -------------------------------------------------------------------- half-closed and closed clients (REVIEW G11)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_half_closed_client_gets_its_answer(server, version):
    with server.connect() as one:
        one.sendall(request(body={"n": 4, "seed": 1}, version=version))
        one.shutdown(socket.SHUT_WR)
        answer = read_all(one)
    assert answer.startswith(b"HTTP/1.1 200 OK") and len(json.loads(answer.partition(b"\r\n\r\n")[2])["rolls"]) == 4


def test_a_half_closed_client_gets_every_answer_that_it_asked_for(server):
    with server.connect() as one:
        one.sendall(request(body={"n": 1}) + request("/healthz") + request("/v1/models"))
        one.shutdown(socket.SHUT_WR)
        assert read_all(one).count(b"HTTP/1.1 200 OK") == 3


def test_a_half_closed_client_waits_as_long_as_others_and_one_that_left_is_dropped(server):
    worker = server.worker()
    os.kill(worker, signal.SIGSTOP)
    try:
        with server.connect() as half, server.connect() as gone:
            half.sendall(request(body={"n": 2}))
            half.shutdown(socket.SHUT_WR)
            gone.sendall(request(body={"n": 3}))
            deadline = time.monotonic() + WAIT
            while httpx.get(f"{server.address}/healthz").json()["queued"] < 2:
                assert time.monotonic() < deadline
            gone.close()
            while httpx.get(f"{server.address}/healthz").json()["queued"] > 1:
                assert time.monotonic() < deadline
            time.sleep(1)
            assert httpx.get(f"{server.address}/healthz").json()["queued"] == 1  # the half-closed one is still there
            os.kill(worker, signal.SIGCONT)
            *interim, last = re.split(rb"(?=HTTP/1.1 \d)", read_all(half))
            assert last.startswith(b"HTTP/1.1 200 OK") and all(b" 100 " in text for text in interim if text)
    finally:
        os.kill(worker, signal.SIGCONT)


# -------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_server_ends_in_order_and_says_so_in_its_last_answers(models, number):
    with server_of(models) as server, server.connect() as idle, server.connect() as one:
        worker = server.worker()
        os.kill(worker, signal.SIGSTOP)
        one.sendall(request(body={"n": 2}))
        while httpx.get(f"{server.address}/healthz").json()["queued"] < 1:
            time.sleep(0.02)
        threading.Timer(0.5, os.kill, (worker, signal.SIGCONT)).start()
        code, errors = server.end(number)
        answer = read_all(one)
        assert answer.startswith(b"HTTP/1.1 200 OK") and b"\r\nconnection: close\r\n" in answer.lower()
        assert idle.recv(10) == b""
    assert code == 0 and not errors, errors


@pytest.mark.slow
def test_a_server_whose_worker_and_fork_server_are_dead_ends_in_order(models):
    with server_of(models) as server:
        for pid in (server.worker(), server.fork_server()):
            os.kill(pid, signal.SIGKILL)
        code, errors = server.end(signal.SIGTERM)
    assert code == 0 and "Traceback" not in errors, errors


# -------------------------------------------------------------------- kills (REVIEW G3)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [10])
def test_kills_of_worker_and_fork_server_under_load_lose_no_request(models, kills):
    codes, times, is_over = [], [], threading.Event()

    def client(number):
        while not is_over.is_set():
            try:
                codes.append(httpx.post(f"{server.address}/v1/roll", json={"n": 1 + number}, timeout=WAIT).status_code)
            except httpx.HTTPError as error:
                codes.append(repr(error))
            time.sleep(0.01)

    with server_of(models) as server:
        assert server.worker() is not None
        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        try:
            for number in range(kills):
                before = httpx.get(f"{server.address}/healthz").json()["restarts"]
                start = time.monotonic()
                which = (server.fork_server, server.worker)[number % 2]
                while (victim := which()) is None:
                    assert time.monotonic() < start + 30, server.below()  # one that was killed is being started
                server.worker()  # to know it when it is nobody's child any more
                os.kill(victim, signal.SIGKILL)
                start = time.monotonic()
                while (health := httpx.get(f"{server.address}/healthz").json())["restarts"] == before and number % 2:
                    assert time.monotonic() < start + 30, health
                times.append(time.monotonic() - start + server.wait_healthy(30))
                if number % 2 == 0:  # its end disturbs nobody, and another one is there soon
                    assert httpx.get(f"{server.address}/healthz").json()["restarts"] == before
                    while which() in (None, victim):
                        assert time.monotonic() < start + 30, server.below()
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        assert httpx.post(f"{server.address}/v1/roll", json={"n": 5}, timeout=WAIT).status_code == 200
        code, errors = server.end(signal.SIGTERM)
    print(
        f"{kills} kills: well again after {min(times):.1f} to {max(times):.1f} s; {len(codes)} answers, {codes.count(200)} of 200"
    )
    assert max(times) < 30 and set(codes) <= {200, 503} and codes.count(200) > 20, (times, codes)
    assert code == 0 and "Traceback" not in errors, errors


@pytest.mark.slow
def test_a_fork_server_that_hangs_is_replaced(models, monkeypatch):
    from manifoldflow.serving import worker
    from manifoldflow.serving.calls import Served

    monkeypatch.setattr(worker, "STARTING", 30.0)
    made = worker.Worker("testkit.dice:Die", [Served(name, path) for name, path in models.items()])
    try:
        made.ensure()
        from multiprocessing import forkserver

        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGSTOP)
        monkeypatch.setattr(worker, "STARTING", 1.0)
        os.kill(made.pid, signal.SIGKILL)
        deadline = time.monotonic() + WAIT
        while not made.is_ready or not made.check():
            monkeypatch.setattr(worker, "STARTING", 1.0 if time.monotonic() < deadline - WAIT + 3 else 60.0)
            with contextlib.suppress(worker.WorkerLost):
                made.ensure()
            assert time.monotonic() < deadline
    finally:
        made.close()


def test_a_signal_while_the_models_are_loaded_ends_the_server_soon(models):
    server = ServerProcess("testkit.dice:DiceService", models)
    try:
        start = time.monotonic()
        code, errors = server.end(signal.SIGTERM)
        assert code == 0 and not errors and time.monotonic() - start < 10, errors
    finally:
        server.close()
