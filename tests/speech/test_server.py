"""speech/server.py: the guard in front of a small app and of a Gradio page, folders, passwords."""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import common
import demo
import predict
from speech import server
from speech.cli import InputError, safe_name, show_controls
from speech.turns import Listeners

import httpx
import numpy as np
import pytest
import soundfile
from conftest import ROOT
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from test_demo import (
    call,
    classify,
    file_data,
    refuse,
    serving,
    upload,
    write_inputs,
    write_sound_weights,
)

# --- names from strangers -----------------------------------------------------------------------


def test_control_characters_are_shown_as_such():
    assert show_controls("a\nb\x1b[31m\u202etxt\x7f\t\ud800é") == (
        r"a\nb\x1b[31m\u202etxt\x7f\t\ud800é"
    )


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x>",
        "[a](http://x.y)",
        "![a](b)",
        "*a* _b_ `c`",
        "# a",
        "| a | b",
        "www.x.org",
        "$$",
    ],
)
def test_a_name_is_no_markup_and_links_to_nothing(name):

    markdown = pytest.importorskip("markdown_it").MarkdownIt("js-default", {"linkify": False})
    text = safe_name(name)
    html = markdown.render(text)
    assert unescape(text).replace("\u2060", "") == name
    assert re.findall(r"<(\w+)", html) == ["p"]
    assert not set(text) & set("<>[]()*_`|:./\\$!\"'")


# --- the temporary folder -----------------------------------------------------------------------

OPENS = """
import os, sys, time
sys.path.insert(0, {root!r})
from speech import server
folder = server.open_folder()
(folder.path / "recording.wav").touch()
print(folder.path, flush=True)
time.sleep({seconds})
"""


def open_in_process(tmp_path, seconds):
    code = OPENS.format(root=str(ROOT), seconds=seconds)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, Path(process.stdout.readline().strip())


def test_the_next_start_removes_what_a_killed_run_left_and_nothing_of_a_living_one(tmp_path):
    (tmp_path / "speech-of-somebody").mkdir()  # without a lock, and new: perhaps being made
    (tmp_path / "speech-old").mkdir()
    os.utime(tmp_path / "speech-old", (0, 0))
    (tmp_path / "speech-link").symlink_to(ROOT)
    living, first = open_in_process(tmp_path, 60)
    killed, second = open_in_process(tmp_path, 60)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (second / "recording.wav").exists()
        third = open_in_process(tmp_path, 0)[0]
        third.wait()
        assert not second.exists() and not (tmp_path / "speech-old").exists()
        assert (first / "recording.wav").exists()
        left = {path.name for path in tmp_path.iterdir()}  # the third is gone with its process
        assert left == {first.name, "speech-of-somebody", "speech-link"}
    finally:
        living.kill()
        living.wait()


@pytest.fixture
def folder(tmp_path):
    folder = server.Folder(tmp_path / "speech-x")
    folder.ensure()
    yield folder
    folder.remove()


def test_a_folder_that_vanished_is_made_anew_and_locked(folder):
    shutil.rmtree(folder.path)
    assert folder.ensure().exists() and not server.is_dead(folder.path)
    (folder.path / ".lock").unlink()
    folder.ensure()
    assert not server.is_dead(folder.path)
    folder.lock.close()
    assert server.is_dead(folder.path)


def test_sweep_removes_what_is_old_and_only_that(folder):
    (folder.path / "hash").mkdir()
    (folder.path / "hash" / "clip.npy").touch()
    (folder.path / "tmpab12").touch()  # what an upload that was broken off leaves
    folder.sweep(60)
    assert len(list(folder.path.rglob("*"))) == 4
    time.sleep(0.02)
    folder.sweep(0)
    folder.sweep(0)
    assert [path.name for path in folder.path.iterdir()] == [".lock"]


# --- passwords ----------------------------------------------------------------------------------


@pytest.mark.parametrize("given, variable", [("", None), (None, ""), (" ", "x"), ("x", " ")])
def test_an_empty_password_is_one_line(given, variable, monkeypatch):
    monkeypatch.delenv("DEMO_PASSWORD", raising=False)
    if variable is not None:
        monkeypatch.setenv("DEMO_PASSWORD", variable)
    with pytest.raises(InputError, match="is empty"):
        server.read_password(given)


def test_the_variable_is_preferred_over_the_list_of_processes(monkeypatch, capsys):
    monkeypatch.setenv("DEMO_PASSWORD", "secret")
    assert server.read_password(None) == "secret"
    assert not capsys.readouterr().err
    assert server.read_password("other") == "other"
    assert "DEMO_PASSWORD" in capsys.readouterr().err
    monkeypatch.delenv("DEMO_PASSWORD")
    assert server.read_password(None) is None


def test_guesses_are_slowed_together_and_a_full_line_is_refused(monkeypatch):
    monkeypatch.setattr(server, "GUESS_SECONDS", 0.03)

    async def attack():
        log_in = server.make_log_in("secret")
        assert await log_in("me", "secret")
        started = time.monotonic()
        at_once = SimpleNamespace(monotonic=lambda: started)  # on a busy machine too
        monkeypatch.setattr(server, "time", at_once)
        guesses = asyncio.gather(
            *(log_in("me", f"{n}é\ud800") for n in range(300)), return_exceptions=True
        )
        answers = await guesses
        return answers, time.monotonic() - started

    answers, seconds = asyncio.run(attack())
    assert answers.count(False) == server.FREE_GUESSES + server.MAX_GUESSES
    assert {getattr(answer, "status_code", False) for answer in answers} == {False, 429}
    assert seconds >= server.MAX_GUESSES * 0.03


def test_a_right_password_does_not_wait_behind_a_few_wrong_ones(monkeypatch):
    monkeypatch.setattr(server, "GUESS_SECONDS", 0.3)

    async def attempt():
        log_in, started = server.make_log_in("secret"), time.monotonic()
        wrong = asyncio.gather(*(log_in("me", word) for word in ("", "secre", "sécret")))
        right = await log_in("me", "secret")
        return right, time.monotonic() - started, await wrong, time.monotonic() - started

    right, soon, wrong, late = asyncio.run(attempt())
    assert right and soon < 0.2
    assert wrong == [False] * 3 and late >= 0.3


# --- the guard, before a small app --------------------------------------------------------------


async def count_bytes(request):
    return JSONResponse(sum([len(chunk) async for chunk in request.stream()]))


@pytest.fixture
def ask(folder):
    """-> what sends a request through the guard: its status and text."""
    paths = [f"{server.API}{path}" for path in ("/upload", "/call/upload", "/cancel", "/deep_link")]
    methods = ["GET", "HEAD", "POST", "PUT"]
    routes = [Route(path, count_bytes, methods=methods) for path in ("/", "/config", *paths)]
    app = Starlette(routes=[*routes, Route("/{path:path}", count_bytes, methods=methods)])
    guard = server.Guard(app, folder, Listeners())

    def ask(method, path, **more):
        async def send():
            transport = httpx.ASGITransport(guard)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
                return await http.request(method, path, **more)

        answer = asyncio.run(send())
        return answer.status_code, answer.text

    ask.guard = guard
    return ask


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("POST", "/", 404),
        ("GET", "/gradio_api/file=/tmp/a%20b/c.npy", 200),
        ("GET", "/gradio_api/file=http://127.0.0.1/x", 403),
        ("POST", "/gradio_api/process_recording", 404),
        ("POST", "/gradio_api/component_server", 404),
        ("GET", "/gradio_api/deep_link?session_hash=a", 404),
        ("GET", "/gradio_api/run-history/buckets", 404),
        ("GET", "/monitoring", 404),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/x", 404),
        ("POST", "/gradio_api/stream/x", 404),
        ("POST", "/gradio_api/run/classify", 404),
        ("GET", "/gradio_api//upload", 404),
        ("POST", "/gradio_api/upload/", 404),
        ("GET", "/docs", 404),
        ("PUT", "/gradio_api/upload", 404),
    ],
)
def test_only_what_the_page_needs_answers(ask, method, path, status):
    assert ask(method, path)[0] == status


def test_bodies_are_limited_by_exact_path(ask):
    mega = 2**20
    assert ask("POST", "/gradio_api/upload", content=bytes(8 * mega)) == (200, str(8 * mega))
    status, text = ask("POST", "/gradio_api/upload", content=bytes(91 * mega))
    assert status == 413 and "maximum allowed size" in text
    assert ask("POST", "/gradio_api/call/upload", content=bytes(2 * mega))[0] == 413

    async def parts(n):
        for _ in range(n):
            yield bytes(mega)

    assert ask("POST", "/gradio_api/upload", content=parts(91))[0] == 413
    assert ask("POST", "/gradio_api/call/upload", content=parts(2))[0] == 413
    assert ask("POST", "/gradio_api/cancel", content=parts(1))[0] == 413
    assert ask("POST", "/gradio_api/call/x", json={"data": []}) == (200, "11")
    assert ask.guard.held == ask.guard.disk.coming == 0


@pytest.mark.parametrize(
    "body, status", [(b"{", 400), (b"[" * 10**5, 400), (b"7", 422), (b"", 400)]
)
def test_what_is_no_json_object_goes_no_further(ask, body, status):
    assert ask("POST", "/gradio_api/call/x", content=body)[0] == status


def test_no_more_is_kept_for_a_session_than_a_page_sends(ask):
    file = {"path": "/x/" + "a" * 255, "meta": {"_type": "gradio.FileData"}}
    for data, status in (
        ([[file] * 256, "Both"], 200),
        ([[file] * 257, "Both"], 422),
        ([[file], "a" * 9000], 422),
        ([[file], {"a": ["b" * 9000]}], 422),
        ([[{"path": "a" * 9000}], "Both"], 422),
        ({"a": 1}, 200),
        ([[file | {"path": "/x/" + "a" * 509}], "Both"], 200),
        ([[file | {"path": "/x/" + "a" * 510}], "Both"], 422),
        ([1] * 17, 422),  # by the half million they took a second of every visitor's
        ([[]] * 17, 422),
    ):
        assert ask("POST", "/gradio_api/call/x", json={"data": data})[0] == status


def test_what_stands_beside_the_arguments_is_bounded_too(ask):
    """event_data became a session's state; of call/v2 the body is the arguments."""
    file = {"path": "/x/" + "a" * 255, "meta": {"_type": "gradio.FileData"}}
    long, many = {"index": "a" * 9000}, ["a" * 100] * 256
    for path, body, status in (
        ("run/predict", {"data": [], "event_data": {"index": 7}}, 200),
        ("run/predict", {"data": [], "event_data": long}, 422),
        ("run/predict", {"data": [], "event_data": {"index": [7, 0], "col_value": many * 4}}, 200),
        ("queue/join", {"data": [], "event_data": many}, 200),
        ("queue/join", {"data": [], "event_data": [*many, ""]}, 422),
        ("queue/join", {"data": [], "oauth_token": "a" * 9000}, 422),
        ("call/x", {"data": long}, 422),
        ("call/x", {"data": "a" * 9000}, 422),
        ("call/x", {"data": 7, "other": None}, 200),
        ("call/v2/x", {"clips": [file] * 256, "model": "Both"}, 200),
        ("call/v2/x", {"clips": [file] * 257, "model": "Both"}, 422),
        ("call/v2/x", {"clips": [file], "model": "a" * 9000}, 422),
        ("call/v2/x", {f"a{n}": 1 for n in range(17)}, 422),
    ):
        assert ask("POST", f"/gradio_api/{path}", json=body)[0] == status, (path, [*body])


LONG = "a" * 60_000


@pytest.mark.parametrize(
    "method, path, more, status",
    [
        ("GET", f"/config?{LONG}", {}, 414),
        ("GET", "/config", {"headers": {"x": "a" * 5000}}, 431),
        ("GET", "/config", {"headers": {f"x{n}": "a" * 1000 for n in range(9)}}, 431),
        ("GET", "/config", {"headers": {"x": "a" * 3000}}, 200),
        ("GET", "/gradio_api/queue/data?session_hash=" + "a" * 65, {}, 400),
        ("GET", "/gradio_api/queue/data?session_hash=a&session_hash=" + "a" * 65, {}, 400),
        ("GET", "/gradio_api/queue/data?session_hash=a1b2c3", {}, 200),
        ("GET", "/gradio_api/heartbeat/" + "a" * 65, {}, 400),
        ("POST", "/gradio_api/upload?upload_id=" + "a" * 65, {}, 400),
        ("POST", "/gradio_api/queue/join", {"json": {"session_hash": LONG}}, 400),
        ("POST", "/gradio_api/queue/join", {"json": {"session_hash": ["a"]}}, 400),
        ("POST", "/gradio_api/queue/join", {"json": {"session_hash": None}}, 200),
        ("POST", "/gradio_api/cancel", {"json": {"event_id": "a" * 65}}, 400),
        ("POST", "/gradio_api/call/" + "a" * 65, {"json": {}}, 400),
    ],
)
def test_strings_of_visitors_are_short(ask, method, path, more, status):
    assert ask(method, path, **more)[0] == status


def test_uploads_reserve_the_disk_together_as_bytes_come(ask, monkeypatch):
    """What is on its way counts, of all uploads; a full disk is said to be full."""
    free = server.MIN_FREE_BYTES + 3 * 2**20
    monkeypatch.setattr(server.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    disk = ask.guard.disk
    assert disk.reserve(2 * 2**20) and not disk.reserve(2 * 2**20) and disk.reserve(2**20)
    disk.release(3 * 2**20)

    async def parts():
        nonlocal free
        for _ in range(9):
            free -= 2**20  # as another upload, or this one, takes it
            yield bytes(2**20)

    status, text = ask("POST", "/gradio_api/upload", content=parts())
    assert status == 507 and "disk is full" in text and "0 MB" not in text
    assert disk.coming == 0


def test_a_body_that_stalls_is_not_waited_for(ask, monkeypatch):
    monkeypatch.setattr(server, "STALLED_SECONDS", 0.1)

    async def parts():
        yield b"{"
        await asyncio.sleep(60)

    for path in ("/gradio_api/call/x", "/gradio_api/upload"):
        started = time.monotonic()
        assert ask("POST", path, content=parts())[0] == 408
        assert time.monotonic() - started < 5


# --- whose is what -------------------------------------------------------------------------------


def test_files_of_one_name_are_of_different_people(tmp_path):
    """On the page there are no folders: only what else the visitor chose."""
    models, paths = predict.load_models(write_sound_weights(tmp_path)), []
    for folder in ("one", "other"):
        for name in ("interview.npy", "S1_clip_0.npy", "S1_clip_8.npy", "a\tb.npy"):
            paths.append(tmp_path / folder / name)
            paths[-1].parent.mkdir(exist_ok=True)
            np.save(paths[-1], np.random.default_rng(len(paths)).random((128, 251)))
    rows, _ = demo.classify(models, paths, demo.plan_work(paths, models[0][1]))
    found = [row.participant for row in rows if not row.clip]
    names = ["interview", "S1", r"a\tb"]
    assert found == [*names, *(f"{name} (2)" for name in names)]
    others = [tmp_path / "interview (2).npy", tmp_path / "interview (2)_clip_0.npy"]
    people = demo.name_people([paths[0], *others, paths[4]])
    assert [*people.values()] == ["interview", "interview (2)", "interview (2)", "interview (3)"]


def test_clips_of_one_name_are_told_apart(tmp_path):
    """A row of the table, a window, a line of the CSV: each is one clip's, and says whose."""
    models, paths = predict.load_models(write_sound_weights(tmp_path)), []
    for name in ("one/S1_clip_0.npy", "other/S1_clip_0.npy", "third/S1_clip_0 (2).npy"):
        paths.append(path := tmp_path / name)
        path.parent.mkdir()
        np.save(path, np.random.default_rng(len(paths)).random((128, 251)))
    paths += [tmp_path / "S1_clip_0.wav", tmp_path / "third" / "S1_clip_0.npy"]
    soundfile.write(paths[3], np.random.default_rng(0).normal(0, 0.1, 128_000), 16_000)
    paths[4].write_bytes(b"no array")
    answer = demo.classify(models, paths, demo.plan_work(paths, models[0][1]))
    result = demo.show_result({"Both": models}, "Both", paths, None, answer)
    times, table, csv, session = result[5], result[7]["value"], result[8], result[9]
    names = ["S1_clip_0", "S1_clip_0 (2)", "S1_clip_0 (2) (2)", "S1_clip_0 (3)"]
    assert [name for name, *_ in table] == [row.clip for row in session.clips] == names
    for number, name in enumerate(names):
        assert demo.choose_row(session, SimpleNamespace(row_value=[name])) == number
        assert f"{name}: " in times["value"]
    assert "S1_clip_0 (4).npy: not a" in unescape(result[1])
    with open(csv) as file:
        assert [line.split(",")[0] for line in file][1:6] == [*names, "S1_clip_0 (4)"]


def test_nothing_in_a_strangers_weights_is_markup(tmp_path):
    _, metadata = common.load_weights(write_sound_weights(tmp_path)[0])
    evil = '<img src="//x.y/z"> ![a](//x.y/z) <form action="//x.y"># Big\n# Bigger'
    metadata["data"] |= {
        "corpus": evil,
        "split": evil,
        "clips": {evil: 1},
        "participants": {evil: 2},
    }
    metadata["versions"] = {evil: evil}
    text = "".join(demo.describe_weights(evil, metadata))
    assert not re.search(r"<img|<form|!\[|//x|\n# ", text)


# --- what Gradio keeps --------------------------------------------------------------------------


def test_no_list_of_visitors_files_is_kept():
    """A call lists 256 that need not exist: it was a MB each."""
    server.keep_little()
    with demo.gr.Blocks() as page:
        box = demo.gr.File()
    path = str(demo.UPLOADS.path / "a" / "none.npy")
    assert asyncio.run(box.async_move_resource_to_block_cache(path)) == path
    page.upload_file_set.update([path])  # as Gradio's upload does
    assert not any(page.temp_file_sets) and not box.temp_files and not page.upload_file_set


def test_an_answer_is_kept_for_a_visitor_who_is_about_to_fetch_it(monkeypatch):
    """Between the end of their work and the opening of the stream nobody waits for it."""
    now = datetime.now()
    used = {"soon": now, "gone": now - timedelta(seconds=server.SWEEP_SECONDS + 1)}
    listeners = Listeners()
    for session in used:
        with listeners.listening(session):
            pass
    monkeypatch.setattr(server, "LISTENERS", listeners)
    queue = SimpleNamespace(
        event_ids_to_events={},
        pending_messages_per_session=dict.fromkeys(used),
        pending_event_ids_session=dict.fromkeys([*used, "unheard"]),
    )
    holder = SimpleNamespace(time_last_used=used, session_data={})
    app = SimpleNamespace(tokens={})
    server.forget_visitors(SimpleNamespace(state_holder=holder, _queue=queue, app=app))
    assert [*queue.pending_messages_per_session] == ["soon"]
    assert [*queue.pending_event_ids_session] == ["soon", "unheard"]


# --- logs ---------------------------------------------------------------------------------------


def test_a_call_that_fails_is_one_line(capfd, monkeypatch):
    monkeypatch.setattr(server, "LOG_LIMIT", server.OneLine())
    for _ in range(100):
        try:
            raise ValueError("a\nb")
        except ValueError:
            server.log_failure()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == server.LOG_BURST
    assert lines[0].startswith(r"A call failed: ValueError: a\nb (")


def test_logs_are_lines_and_few(caplog):
    logger = logging.Logger("x")
    logger.addHandler(caplog.handler)
    logger.addFilter(server.OneLine())
    for _ in range(1000):
        try:
            raise ValueError("a\nb\x1b" + "c" * 10_000)
        except ValueError:
            logger.exception("Exception in ASGI application\nmore %s", "x")
    assert len(caplog.records) == server.LOG_BURST
    text = caplog.handler.format(caplog.records[0])
    assert "\n" not in text and "Exception in ASGI application: ValueError: a\\nb" in text
    assert "test_server.py:" in text and len(text) < 1000


# --- before the page ----------------------------------------------------------------------------

CLOSED = """
GET /openapi.json
HEAD /openapi.json
GET /gradio_api/deep_link
GET /pwa_icon/{size}
GET /pwa_icon
GET /monitoring
GET /monitoring/summary
GET /monitoring/{key}
GET /gradio_api/user/
GET /gradio_api/user
GET /gradio_api/login_check/
GET /gradio_api/token/
GET /gradio_api/token
GET /gradio_api/app_id/
GET /gradio_api/app_id
GET /gradio_api/dev/reload
GET /gradio_api/runs/
GET /gradio_api/runs
POST /gradio_api/run-history/connect
GET /gradio_api/run-history/buckets
GET /gradio_api/run-history/records
GET /gradio_api/run-history/records/{endpoint}/{record_id}/assets/{asset_id}
GET /gradio_api/info/
GET /gradio_api/openapi.json
GET /gradio_api/custom_component/{id}/{environment}/{type}/{file_name}
GET /gradio_api/proxy={url_path:path}
HEAD /gradio_api/proxy={url_path:path}
POST /gradio_api/stream/{event_id}
POST /gradio_api/stream/{event_id}/close
GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist.m3u8
GET /gradio_api/stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext}
GET /gradio_api/stream/{session_hash}/{run}/{component_id}/playlist-file
GET /gradio_api/file/{path:path}
POST /gradio_api/reset/
POST /gradio_api/api/{api_name}/
POST /gradio_api/api/{api_name}
POST /gradio_api/run/{api_name}/
POST /gradio_api/call/v2/{api_name}/
POST /gradio_api/call/{api_name}/
POST /gradio_api/component_server/
POST /gradio_api/component_server
GET /gradio_api/queue/status
POST /gradio_api/process_recording
POST /gradio_api/vibe-edit
POST /gradio_api/vibe-edit/
POST /gradio_api/undo-vibe-edit
POST /gradio_api/undo-vibe-edit/
GET /gradio_api/vibe-code
GET /gradio_api/vibe-code/
POST /gradio_api/vibe-code
POST /gradio_api/vibe-code/
POST /gradio_api/vibe-starter-queries
POST /gradio_api/vibe-starter-queries/
"""


def list_routes(routes):
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from list_routes(inner.routes)
        else:
            yield from (f"{method} {route.path}" for method in route.methods)


def test_every_route_of_this_gradio_is_either_served_or_closed():
    """Fails when a new version brings another: decide then in which list it belongs."""
    import gradio
    from gradio.routes import App

    with gradio.Blocks() as page:
        gradio.File()
    found = set(list_routes(App.create_app(page).routes))
    served = {
        f"{method} {path}" for methods, path, _ in server.ROUTES for method in methods.split()
    }
    closed = set(CLOSED.strip().splitlines())
    assert not served & closed and found == served | closed


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    models = write_sound_weights(folder)
    with serving(folder / "tmp", "--no-share", "--weights", *models) as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.mark.parametrize("route", CLOSED.strip().splitlines())
def test_a_closed_route_is_404_on_the_page(page, route):
    method, path = route.split()
    address = page.url + re.sub(r"\{\w+(:path)?\}", "x", path)
    answer = httpx.request(method, address, verify=False)  # loads no certificates: 60 ms
    assert answer.status_code == 404


def test_unknown_paths_and_calls_write_no_traceback(page):
    with httpx.Client(base_url=page.url) as http:
        for n in range(50):
            assert http.get(f"/{n}").status_code == 404
            assert http.post(f"/gradio_api/call/{n}", json={"data": []}).status_code == 404
        join = {"data": [], "fn_index": 9999, "session_hash": "a"}
        assert http.post("/gradio_api/queue/join", json=join).status_code == 404
        assert http.post("/gradio_api/call/v2/classify", json={"x": 1}).status_code == 422
    for n in range(25):
        assert call(page.url, "classify", n)[0] == "error"
    log = (page.temp.parent / "stderr").read_text()
    assert "Traceback" not in log and len(log) < 60_000


def test_malformed_uploads_do_not_fill_the_log(page):
    """Their warnings come from a logger that nobody had thought of."""
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    address, log = f"{page.url}/gradio_api/upload", page.temp.parent / "stderr"
    before = len(log.read_text().splitlines())
    with httpx.Client(headers=kind) as http:
        assert {http.post(address, content=b"--y").status_code for _ in range(200)} == {400}
    assert len(log.read_text().splitlines()) - before < 60


def test_fields_of_an_upload_are_refused_and_leave_no_file(page):
    """A field was held in memory, all of it; beside an upload_id it was an error of Gradio's."""
    part = '--x\r\nContent-Disposition: form-data; name="files"{}\r\n\r\n'
    file, field = part.format('; filename="a.npy"'), part.format("")
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    before = set(page.temp.rglob("*"))
    for query in ("", "?upload_id=abc"):
        body = f"{file}abc\r\n{field}{'a' * 10_000}\r\n--x--\r\n".encode()
        address = f"{page.url}/gradio_api/upload{query}"
        assert httpx.post(address, content=body, headers=kind).status_code == 400
    many = file + "abc\r\n"
    body = (many * 257 + "--x--\r\n").encode()
    assert httpx.post(address, content=body, headers=kind).status_code == 400
    assert set(page.temp.rglob("*")) == before


def memory(page):
    """What the page's process holds, in MB."""
    status = Path(f"/proc/{page.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux's")
def test_inputs_are_not_kept_for_the_session(page):
    """Neither as such nor in the error that repeats them, which nobody fetches."""
    body = {"data": [[], ["a" * 4000] * 250]}
    config = httpx.get(f"{page.url}/config").json()
    [index] = (d["id"] for d in config["dependencies"] if d["api_name"] == "classify")

    def send(name):
        join = body | {"fn_index": index, "session_hash": name}
        address = f"{page.url}/gradio_api/queue/join"
        return httpx.post(address, json=join, verify=False).status_code

    held = []
    for start in (0, 60):  # the first ones warm it up
        assert {send(f"s{n}") for n in range(start, start + 60)} <= {200, 503}
        time.sleep(1)
        held.append(memory(page))
    assert held[1] - held[0] < 40  # it was 116


def test_the_same_file_twice_is_refused_and_no_file_lies_elsewhere(page, files):
    [path] = upload(page.url, [files / "001_clip_0.npy"])
    event, data = call(page.url, "classify", [file_data(path)] * 2, "Both")
    assert event == "error" and "listed 2 times" in data["error"]
    assert {path.name for path in page.temp.parent.iterdir()} == {"stderr", page.temp.name}


def test_an_upload_broken_off_leaves_nothing(page):
    before = set(page.temp.rglob("*"))
    with socket.create_connection(("127.0.0.1", int(page.url.split(":")[-1]))) as plain:
        plain.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.npy"\r\n\r\n'
            + bytes(2_000_000)
        )
        time.sleep(0.5)
        assert set(page.temp.rglob("*")) > before
    for _ in range(50):
        if set(page.temp.rglob("*")) == before:
            return
        time.sleep(0.1)
    pytest.fail("what was sent is still there")


def test_a_temporary_folder_that_vanished_comes_back(page, files):
    shutil.rmtree(page.temp)
    assert classify(page.url, [files / "001_clip_0.npy"])["rows"][0]["probability"] is not None
    assert (page.temp / ".lock").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server that may have no more than 256 files open."""
    folder = tmp_path_factory.mktemp("small") / "tmp"
    opened = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_LOCAL_DEV_MODE": "1"}
    with serving(folder, "--no-share", limits="ulimit -n 256", **opened) as server:
        yield server


def test_300_idle_connections_at_256_files_neither_fill_the_log_nor_the_page(small):
    port = int(small.url.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    assert httpx.get(f"{small.url}/config", timeout=30).status_code == 200
    time.sleep(3)
    for connection in idle:
        connection.close()
    assert len((small.temp.parent / "stderr").read_text()) < 20_000


def test_streams_that_never_end_lock_nobody_out(small):
    port, streams = int(small.url.rpartition(":")[2]), []
    for number in range(300):
        streams.append(socket.create_connection(("127.0.0.1", port)))
        path = f"/gradio_api/heartbeat/s{number}"
        with contextlib.suppress(OSError):  # it may be closed at once
            streams[-1].sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(0.01)
    time.sleep(2)  # until they stream: before that they are idle, and give way anyway
    for _ in range(5):
        assert httpx.get(f"{small.url}/config", timeout=30).status_code == 200
    for stream in streams:
        stream.close()


def test_no_variable_of_gradios_opens_what_is_closed(small):
    assert httpx.get(f"{small.url}/gradio_api/file={ROOT}/README.md").status_code == 403
    code = (
        "import os; from speech import server; server.open_folder()\n"
        "print(*sorted(name for name in os.environ if name.startswith('GRADIO_')))"
    )
    heeded = {"GRADIO_ROOT_PATH": "/x", "GRADIO_SERVER_NAME": "x", "GRADIO_SERVER_PORT": "7"}
    others = dict.fromkeys(("GRADIO_MCP_SERVER", "GRADIO_VIBE_MODE", "GRADIO_OF_NEXT_YEAR"), "1")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | heeded | others,
        capture_output=True,
        text=True,
    )
    kept = set(done.stdout.split())
    assert kept >= {*heeded, "GRADIO_TEMP_DIR"} and not kept & others.keys(), done


def test_after_a_kill_the_next_start_leaves_nothing_of_the_last(small, files):
    upload(small.url, [files / "003.wav"])
    small.process.kill()
    small.process.wait()
    assert list(small.temp.rglob("003.wav"))
    open_in_process(small.temp.parent, 0)[0].wait()
    assert not small.temp.exists()


def test_an_empty_password_publishes_nothing(monkeypatch):
    assert "--password is empty" in refuse("--password", "")
    monkeypatch.setenv("DEMO_PASSWORD", "")
    assert "DEMO_PASSWORD is empty" in refuse()


def test_a_start_takes_no_time_for_what_the_first_page_does_not_need():
    """Not Gradio's stubs for editors either, which it makes by ast.get_source_segment."""
    code = (
        "import ast, gc, inspect, sys; ast.get_source_segment = None\n"
        "import demo\n"
        "print(gc.isenabled(), inspect.getfile(demo.gr.File).endswith('file.py'))\n"
        "later = 'av librosa matplotlib numba optuna sklearn soundfile soxr'.split()\n"
        "print(*{*later} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True True\n\n", done
