"""speech/apart.py: whatever a decoder does, its caller gets an error, and nothing is left."""

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speech import apart
from speech.cli import InputError

import generators
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")


@pytest.fixture
def server(monkeypatch):
    """A server of its own, which finds tests/generators.py."""
    monkeypatch.setenv("PYTHONPATH", str(Path(generators.__file__).parent))
    monkeypatch.setattr(apart, "SERVER", server := apart.Server())
    yield server
    if server.process:
        server.socket.close()
        assert server.process.wait(10) == 0


def forks(server):
    """The processes that decode now."""
    path = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return path.read_text().split()


def assert_none_left(server, seconds=3):
    deadline = time.monotonic() + seconds
    while forks(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not forks(server)


def test_the_server_starts_once_and_holds_up_nobody(server, monkeypatch):
    """Whoever needs no decoder works while it starts."""
    started, real, stepped = [], apart.subprocess.Popen, []

    def popen(*arguments, **options):
        started.append(real(*arguments, **options))
        return started[-1]

    @contextlib.contextmanager
    def aside():
        stepped.append(len(started))
        yield

    monkeypatch.setattr(apart.subprocess, "Popen", popen)
    monkeypatch.setattr(apart, "aside", aside)
    assert list(apart.run(generators.count, 2)) == [0, 1]
    assert stepped[0] == 0
    server.process.kill()
    server.process.wait()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: server.start(), range(2)))
    assert len(started) == 2


def test_what_is_yielded_comes_over(server):
    assert list(apart.run(generators.count, 3)) == [0, 1, 2]
    head, block = (next(run := apart.run(generators.die_in_the_middle)), next(run))
    assert head == [8000, []]
    assert block.dtype == np.float32 and block.tolist() == [1] * 3000


def test_its_own_error_is_raised(server):
    run = apart.run(generators.complain)
    assert next(run) == 1
    with pytest.raises(InputError, match="holds NaN"):
        next(run)


@pytest.mark.parametrize("name", ["die", "sleep", "work", "eat", "fill_disk", "die_in_the_middle"])
def test_one_that_fails_is_an_error_and_others_do_not_notice(server, name, monkeypatch, tmp_path):
    list(apart.run(generators.count, 1))  # it has started
    monkeypatch.setattr(apart, "STALL_SECONDS", 3.0)
    started = time.monotonic()
    with pytest.raises(InputError, match="decoder was stopped"):
        list(apart.run(getattr(generators, name), str(tmp_path / "a")))
    assert time.monotonic() - started < 12
    assert list(apart.run(generators.count, 2)) == [0, 1]
    assert_none_left(server, 10)
    assert not (tmp_path / "a").exists() or not (tmp_path / "a").stat().st_size


def test_too_much_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(apart, "OUTPUT_BYTES", 10 * 2**20)
    with pytest.raises(InputError, match="decoder was stopped"):
        list(apart.run(generators.flood))
    assert_none_left(server)


def test_whoever_stops_reading_ends_it(server):
    run = apart.run(generators.flood)
    next(run)
    assert forks(server)
    run.close()
    assert_none_left(server)


def test_a_reader_may_take_longer_than_a_decoder(server, monkeypatch):
    list(apart.run(generators.count, 1))
    monkeypatch.setattr(apart, "STALL_SECONDS", 0.5)
    run = apart.run(generators.flood)
    next(run)
    time.sleep(1)
    next(run), next(run)


def test_a_server_that_was_killed_is_started_again(server):
    assert list(apart.run(generators.count, 1)) == [0]
    server.process.kill()
    server.process.wait()
    assert list(apart.run(generators.count, 2)) == [0, 1]


def test_others_work_while_this_waits(server, monkeypatch):
    seen = []

    class Aside:
        def __enter__(self):
            seen.append("out")

        def __exit__(self, *_):
            seen.append("in")

    list(apart.run(generators.count, 1))
    monkeypatch.setattr(apart, "aside", Aside)
    monkeypatch.setattr(apart, "STALL_SECONDS", 0.5)
    with pytest.raises(InputError):
        list(apart.run(generators.sleep))
    assert seen == ["out", "in"] * 2  # to send, and to wait
