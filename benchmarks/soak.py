"""Serves the page and sends it minutes of mixed good and hostile traffic from many clients.

    python benchmarks/soak.py --minutes 10 --clients 16

Good requests must get predict.py's answer and hostile ones a refusal; while the queue is full, any
may answer that it is busy. Hostile visitors may not double the time that good ones wait for when
they are among themselves. Besides, there must be no server error, no growing memory (on Linux), no
file outside the page's folder, none left after SIGTERM, and none after SIGKILL and a new start.
Everything stays on the loopback.
"""

import contextlib
import csv
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "speech")]

import predict
from speech.cli import Parser, at_least, run

import httpx
import numpy as np
import soundfile
from test_dataset import HOSTILE
from test_demo import file_data, serving, stop, write_inputs, write_sound_weights

MAX_GROWTH_MB = 100
NUMBERS = ("probability", "spread")  # of a row
TOLERANCE = 1e-6  # of these: other batches round differently
GOOD_SHARE = 2 / 3  # of the clients
MAX_SLOWDOWN = 2.0  # of good requests' 95th percentile, by hostile ones beside them
SILENT_SECONDS = 120  # without an answer a request counts as lost
OUTCOMES = ("right", "busy", "wrong", "server error", "lost")

API = "/gradio_api"
EXAMPLE = file_data(str(ROOT / "examples" / "S014_clip_0.npy"))  # served, so it may be named
MULTIPART = "multipart/form-data; boundary=x"
PART = '--x\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
# Not here: what Gradio itself answers with 500, such as calls of endpoints that do not exist.
PATHS = ["/etc/passwd", "../../etc/passwd", str(ROOT / "demo.py"), "http://127.0.0.1:1/x.npy", ""]
NAMES = ["../../../x.npy", "/etc/x.npy", "..\\x.npy", "..", ".", "", "a\0.npy", "x" * 300, "=1+1"]
CALLS = [[], ["x"], [None, "Both"], [[], "Both"], [[7], "Both"], [None, "Other"], [{}, {}, {}]]
BODIES = [b"", b"null", b"{", b"[" * 10**5, b"[" * 2**21, b'{"data": 7}', b"\xff\xfe"]


# --- good requests ------------------------------------------------------------------------------


class Question(NamedTuple):
    kind: str
    endpoint: str
    paths: list[Path]
    model: str
    rows: list[dict]  # predict.py's


def find_button(http):
    """The endpoint behind the page's Classify, which is known by its inputs alone."""
    config = http.get("/config").json()
    parts = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    inputs = [parts[name] for name in ("files", "labels", "model")]
    return next(event["api_name"] for event in config["dependencies"] if event["inputs"] == inputs)


def write_questions(folder, weights, button, rng):
    """Every kind of good request to every choice of models, with its answer."""
    files, models = write_inputs(folder), predict.load_models(weights)
    clips, hostile = sorted(files.glob("*.npy")), []
    for number, content in enumerate(HOSTILE.values()):
        hostile.append(files / f"hostile-{number}.npy")
        hostile[-1].write_bytes(content)
    mixed = [rng.sample(clips + hostile[n::6], len(clips) + len(hostile[n::6])) for n in range(6)]
    sets = [("one clip", "classify", [clip]) for clip in clips]
    many = [files / f"{n:03}_clip_0.npy" for n in range(100, 140)]
    for n, path in enumerate(many):
        path.write_bytes(clips[n % len(clips)].read_bytes())
    sets += [("40 clips", "classify", many), ("recording", "listen", [files / "003.wav"])]
    sets += [("mixed with hostile", "classify", paths) for paths in mixed]
    sets += [("by the page's button", button, paths) for paths in (clips, *mixed)]
    choices = {"Both": models, "cnn": models[:1], "lstm": models[1:]}
    return [
        Question(*one, model, [row._asdict() for row in predict.predict(choices[model], one[2])])
        for one in sets
        for model in choices
    ]


def call(http, name, **body):
    """One call of an endpoint -> (event or status, its data)."""
    posted = http.post(f"{API}/call/{name}", **body)
    if posted.status_code != 200:
        return str(posted.status_code), None
    events = http.get(f"{API}/call/{name}/{posted.json()['event_id']}").text
    event, data = re.findall(r"event: (\w+)\ndata: (.*)", events)[-1]
    return event, json.loads(data)


def is_right(found, expected):
    """Rows as predict.py's: the same words, and numbers within the tolerance."""
    words, numbers = [], []
    for rows in (found, expected):
        words.append([row | dict.fromkeys(NUMBERS) for row in rows])
        cells = [row[name] for row in rows for name in NUMBERS]
        numbers.append([float("nan" if cell in (None, "") else cell) for cell in cells])
    return words[0] == words[1] and np.allclose(*numbers, 0, TOLERANCE, equal_nan=True)


def ask(http, question):
    parts = [("files", (path.name, path.read_bytes())) for path in question.paths]
    stored = http.post(f"{API}/upload", files=parts)
    if stored.status_code != 200:
        return str(stored.status_code)
    files = [file_data(path) for path in stored.json()]
    source = files[0] if question.endpoint == "listen" else files
    more = [None] if question.kind == "by the page's button" else []  # no labels
    event, data = call(http, question.endpoint, json={"data": [source, *more, question.model]})
    if event != "complete":
        return event
    if question.kind == "by the page's button":  # it brings a CSV file among its pictures
        [path] = set(re.findall(r'"path": "([^"]+\.csv)"', json.dumps(data)))
        rows = csv.DictReader(io.StringIO(http.get(f"{API}/file={path}").text))
    else:
        rows = data[0]["rows"]
    rows = [{name: row[name] for name in predict.Row._fields} for row in rows]  # others follow
    return "right" if is_right(rows, question.rows) else "wrong"


# --- hostile requests: each returns the event or the status that answered it --------------------


def begin_upload(http, announced, content):
    """Sends less than announced -> the connection, open."""
    plain = socket.create_connection((http.base_url.host, http.base_url.port), SILENT_SECONDS)
    head = f"POST {API}/upload HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\n"
    head += f"Content-Length: {announced}\r\n\r\n" + PART.format("a.npy")
    plain.sendall(head.encode() + content)
    return plain


def abort_upload(http, rng):
    begin_upload(http, 10**7, bytes(rng.randrange(200_000))).close()
    return "closed"


def announce_too_much(http, rng):
    with begin_upload(http, 10**8, b"") as plain:
        return plain.recv(100).decode().split()[1]


def upload_trick(http, rng):
    """The name may be refused; what is stored is stored where all uploads are."""
    body = PART.format(rng.choice(NAMES)).encode() + b"abc\r\n--x--\r\n"
    stored = http.post(f"{API}/upload", content=body, headers={"Content-Type": MULTIPART})
    inside = stored.status_code != 200 or re.search(r"/speech-\w+/\w{64}/[^/]+$", *stored.json())
    return str(stored.status_code) if inside else "outside"


def crowd_the_queue(http, rng):
    """More calls than it holds, and nobody waits for the answers."""
    body = {"data": [[EXAMPLE], "Both"]}
    came = {http.post(f"{API}/call/classify", json=body).status_code for _ in range(80)}
    return str(max(came))


def fetch_elsewhere(http, rng):
    return str(http.get(f"{API}/file={rng.choice(PATHS)}").status_code)


def send_long_strings(http, rng):
    """Strings that a server might keep as keys -> the status."""
    long = rng.choice("abc") * rng.choice([100, 5000, 60_000])
    requests = [
        lambda: http.post(f"{API}/queue/join", json={"session_hash": long, "data": []}),
        lambda: http.get(f"{API}/queue/data", params={"session_hash": long}),
        lambda: http.post(f"{API}/upload", params={"upload_id": long}, files={"files": b"x"}),
        lambda: http.get(f"{API}/heartbeat/{long}"),
        lambda: http.post(f"{API}/cancel", json={"session_hash": long, "event_id": long}),
        lambda: http.get("/config", headers={"x": long * 50 if len(long) == 100 else long}),
    ]
    return str(rng.choice(requests)().status_code)


def try_closed_routes(http, rng):
    """What Gradio brings and the page does not need."""
    method, path = rng.choice(CLOSED)
    return str(http.request(method, path, content=b"x" * rng.choice([0, 1000])).status_code)


def ask_for_long_work(http, rng, wait=True):
    """A small file of half an hour of sound; the visitor may hang up at once."""
    name = f"{rng.randrange(10**9)}.flac"
    stored = http.post(f"{API}/upload", files=[("files", (name, LONG_SOUND))])
    if stored.status_code != 200:
        return str(stored.status_code)
    body = {"data": [file_data(stored.json()[0]), "Both"]}
    posted = http.post(f"{API}/call/listen", json=body)
    if posted.status_code != 200:
        return str(posted.status_code)
    address = f"{API}/call/listen/{posted.json()['event_id']}"
    if wait:
        text = http.get(address).text
        return "503" if "busy with other long" in text else re.findall(r"event: (\w+)", text)[-1]
    with (
        contextlib.suppress(httpx.TimeoutException),
        http.stream("GET", address, timeout=1) as answer,
    ):
        next(answer.iter_raw())
    return "closed"


def bring_hours(http, rng):
    """Five times half an hour, by five names: each would pass alone."""
    parts = [("files", (f"{rng.randrange(10**9)}.flac", LONG_SOUND)) for _ in range(5)]
    stored = http.post(f"{API}/upload", files=parts)
    if stored.status_code != 200:
        return str(stored.status_code)
    files = [file_data(path) for path in stored.json()]
    return call(http, "classify", json={"data": [files, "Both"]})[0]


def press_and_leave(http, rng):
    """As ask_for_long_work, by the page's button, and nobody ever listens."""
    name = f"{rng.randrange(10**9)}.flac"
    stored = http.post(f"{API}/upload", files=[("files", (name, LONG_SOUND))])
    if stored.status_code != 200:
        return str(stored.status_code)
    body = {"data": [[file_data(stored.json()[0])], None, "Both"]}
    return str(http.post(f"{API}/call/{find_button(http)}", json=body).status_code)


def bring_bad_labels(http, rng):
    """An id that some pattern could take quadratic time for."""
    cell = rng.choice(["_", "_a", "0", "\u0315\u0300"]) * 30_000
    table = ("dataset.csv", f"id,label\n{cell}a_,0\nb,1\n".encode())
    stored = http.post(f"{API}/upload", files=[("files", table)])
    if stored.status_code != 200:
        return str(stored.status_code)
    data = [[EXAMPLE], file_data(stored.json()[0]), "Both"]
    return call(http, find_button(http), json={"data": data})[0]


def bring_a_wide_clip(http, rng):
    """Half a second's frames of a quarter of a million bins."""
    name = f"{rng.randrange(10**9)}.npy"
    stored = http.post(f"{API}/upload", files=[("files", (name, WIDE_CLIP))])
    if stored.status_code != 200:
        return str(stored.status_code)
    event, data = call(http, "classify", json={"data": [[file_data(stored.json()[0])], "Both"]})
    return data[0]["rows"][0]["verdict"] if event == "complete" else event


def send_long_values(http, rng):
    """Beside the arguments, as one of them, or as many: what might be kept for the session."""
    way, body = rng.choice(LONG_VALUES)
    content = body.replace(b"SESSION", b"s%d" % rng.randrange(10**9))
    kind = {"Content-Type": "application/json"}
    return str(http.post(f"{API}/{way}", content=content, headers=kind).status_code)


def choose_many_models(http, rng):
    """The error that repeats them is fetched by nobody."""
    body = {"data": [[], ["x" * 4000] * 200]}
    return str(http.post(f"{API}/call/classify", json=body).status_code)


def list_absent_files(http, rng):
    """Names that a server might keep, in the folder of uploads."""
    stored = http.post(f"{API}/upload", files=[("files", ("a.npy", b"abc"))])
    if stored.status_code != 200:
        return str(stored.status_code)
    folder = Path(stored.json()[0]).parent
    paths = [folder / f"{rng.randrange(10**9)}{'x' * 240}.npy" for _ in range(256)]
    return call(http, "classify", json={"data": [[file_data(str(p)) for p in paths], "Both"]})[0]


def upload_no_file(http, rng):
    """A field, which would lie in memory, or what is no form."""
    field = PART.format("a.npy").split("; filename")[0] + "\r\n\r\n" + "x" * 10**6
    body = PART.format("a.npy") + "abc\r\n" + field + "\r\n--x--\r\n"
    way = f"{API}/upload{rng.choice(['', '?upload_id=a'])}"
    content = rng.choice([body.encode(), b"--y"])
    return str(http.post(way, content=content, headers={"Content-Type": MULTIPART}).status_code)


def hang_up(http, rng):
    return ask_for_long_work(http, rng, wait=False)


def stay_idle(http, rng):
    """Connections that ask for nothing."""
    where = http.base_url.host, http.base_url.port
    idle = [socket.create_connection(where, SILENT_SECONDS) for _ in range(20)]
    time.sleep(1)
    for connection in idle:
        connection.close()
    return "closed"


def write_long_sound():
    """Half an hour of quiet noise as FLAC, 8 kHz and 8 bits: a few hundred kB."""
    noise = np.random.default_rng(0).integers(-1, 2, 1800 * 8000) / 128
    soundfile.write(file := io.BytesIO(), noise, 8000, format="FLAC", subtype="PCM_S8")
    return file.getvalue()


def write_wide_clip():
    np.save(file := io.BytesIO(), np.zeros((2**17, 250), np.int8))
    return file.getvalue()


LONG_SOUND, WIDE_CLIP = write_long_sound(), write_wide_clip()
CLOSED = [
    ("POST", f"{API}/process_recording"),
    ("POST", f"{API}/component_server"),
    ("GET", f"{API}/deep_link?session_hash=a"),
    ("GET", f"{API}/run-history/buckets"),
    ("POST", f"{API}/stream/x"),
    ("POST", f"{API}/call/upload"),
    ("GET", "/monitoring/summary"),
    ("GET", "/no/such/page"),
]


def calling(*calls):
    return lambda http, rng: call(http, "classify", json={"data": rng.choice(calls)})[0]


def posting(way, *bodies):
    kind = {"Content-Type": "application/json"}
    return lambda http, rng: str(
        http.post(f"{API}/{way}/classify", content=rng.choice(bodies), headers=kind).status_code
    )


MANY = json.dumps({"data": [[EXAMPLE] * 1000, "Both"]}).encode()
LONG_CHOICE = json.dumps({"data": [[EXAMPLE], "x" * 900_000]}).encode()
LONG_EVENT = {"data": [], "fn_index": 0, "event_data": {"index": "x" * 900_000}}
LONG_VALUES = [
    (way, json.dumps(body).encode())
    for way, body in (
        ("run/predict", LONG_EVENT | {"session_hash": "SESSION"}),
        ("queue/join", LONG_EVENT | {"session_hash": "SESSION"}),
        ("call/v2/classify", {"clips": [EXAMPLE], "model": "x" * 900_000}),
        ("call/v2/classify", {"clips": [EXAMPLE] * 257, "model": "Both"}),
        ("call/v2/classify", {f"x{n}": 1 for n in range(80_000)}),
        ("call/classify", {"data": [[file_data("/x/" + "x" * 3900)] * 256, "Both"]}),
        ("call/classify", {"data": [1] * 300_000}),
    )
]
HOSTILE_KINDS = {  # the request, how often, which answers are right
    "abort upload": (abort_upload, 1, {"closed"}),
    "announce too much": (announce_too_much, 1, {"413"}),
    "upload trick": (upload_trick, 1, {"200", "400"}),
    "fetch elsewhere": (fetch_elsewhere, 1, {"403", "404"}),
    "classify elsewhere": (calling(*([[file_data(path)], "Both"] for path in PATHS)), 1, {"error"}),
    "call senselessly": (calling(*CALLS), 1, {"error"}),
    "send no JSON": (posting("call", *BODIES), 1, {"400", "413", "422"}),
    "send 1000 files": (posting("call", MANY), 0.3, {"422"}),
    "choose a long model": (posting("call", LONG_CHOICE), 0.3, {"422"}),
    "repeat a file": (calling([[EXAMPLE] * 4, "Both"]), 1, {"error"}),
    "send long strings": (send_long_strings, 1, {"400", "404", "413", "414", "431"}),
    "try closed routes": (try_closed_routes, 1, {"404", "400"}),
    "ask for long work": (ask_for_long_work, 0.1, {"complete"}),
    "bring hours": (bring_hours, 0.2, {"error"}),
    "hang up": (hang_up, 0.2, {"closed"}),
    "press and leave": (press_and_leave, 0.1, {"200"}),
    "bring bad labels": (bring_bad_labels, 0.5, {"complete"}),
    "bring a wide clip": (bring_a_wide_clip, 0.1, {"error"}),
    "send long values": (send_long_values, 1, {"422"}),
    "choose many models": (choose_many_models, 1, {"200"}),
    "list absent files": (list_absent_files, 0.3, {"error"}),
    "upload no file": (upload_no_file, 1, {"400"}),
    "stay idle": (stay_idle, 0.2, {"closed"}),
    "pass the queue": (posting("run", b'{"data": [null, "Both"]}'), 1, {"404"}),
    "crowd the queue": (crowd_the_queue, 0.03, {"200", "503"}),
}


# --- the soak -----------------------------------------------------------------------------------


class Visit(NamedTuple):
    kind: str
    answer: str
    outcome: str
    seconds: float


def pick(questions, rng):
    """-> the kind of the next request, what sends it, and which answers are right.

    Args:
        questions: of a good client; None is a hostile one.
    """
    if questions:
        question = rng.choice(questions)
        return question.kind, lambda http, _: ask(http, question), {"right"}
    weights = [weight for _, weight, _ in HOSTILE_KINDS.values()]
    [kind] = rng.choices(list(HOSTILE_KINDS), weights)
    request, _, right = HOSTILE_KINDS[kind]
    return kind, request, right


def judge(answer, right):
    if answer in right:
        return "right"
    if answer == "503":
        return "busy"
    return "server error" if answer.startswith("5") else "wrong"


def visit(url, questions, visits, end, seed):
    """One client, who notes every visit until `end` is set."""
    rng = random.Random(seed)
    with httpx.Client(base_url=url, timeout=SILENT_SECONDS) as http:
        while not end.is_set():
            kind, request, right = pick(questions, rng)
            started = time.monotonic()
            try:
                outcome = judge(answer := request(http, rng), right)
            except (httpx.TransportError, OSError, LookupError, ValueError) as error:
                # no answer, or half of one
                answer, outcome = type(error).__name__, "lost"
            visits.append(Visit(kind, answer, outcome, time.monotonic() - started))


def memory(server):
    """What the server holds, in MB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) // 1024


def memory_at_rest(server, question):
    """The same, once the calls that nobody waited for are out of the queue."""
    with httpx.Client(base_url=server.url, timeout=SILENT_SECONDS) as http:
        for _ in range(SILENT_SECONDS):
            if ask(http, question) != "503":
                break
            time.sleep(1)
    return memory(server)


def soak(server, clients, minutes, seed):
    """-> the visits of so many minutes; tells the server's memory after each.

    Args:
        clients: the questions of each; None is a hostile one.
    """
    visits, end, started = [], threading.Event(), time.monotonic()
    with ThreadPoolExecutor(len(clients)) as pool:
        try:
            noted = [
                pool.submit(visit, server.url, questions, visits, end, f"{seed} {number}")
                for number, questions in enumerate(clients)
            ]
            while (left := started + 60 * minutes - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    sys.exit(f"the server ended with status {server.process.wait(min(60, left))}")
                passed = (time.monotonic() - started) / 60
                print(f"{passed:.1f} min: {len(visits)} requests, {memory(server)} MB", flush=True)
        finally:
            end.set()
    for client in noted:
        client.result()  # raises what it did not expect
    return visits


def stop_in_mid_traffic(server, folder):
    """SIGTERM with queued calls and an upload on its way -> files left, or a status not 130."""
    with httpx.Client(base_url=server.url, timeout=SILENT_SECONDS) as http:
        crowd_the_queue(http, None)
        with begin_upload(http, 10**7, bytes(10**5)):
            print(f"stopped with status {(status := stop(server, signal.SIGTERM))}")
    left = [str(path) for path in folder.rglob("*") if path.name != "stderr"]
    return left if status == 130 else [*left, f"status {status}"]


def kill_and_start_again(folder, weights):
    """SIGKILL with an upload stored, then a new start -> the files of the killed run."""
    with serving(folder, "--no-share", "--weights", *weights) as server:
        with httpx.Client(base_url=server.url) as http:
            http.post(f"{API}/upload", files=[("files", ("a.npy", b"abc"))])
        stop(server, signal.SIGKILL)
    shown = "from speech import server; print(server.open_folder().path)"
    environment = os.environ | {"TMPDIR": str(folder)}
    subprocess.run([sys.executable, "-c", shown], cwd=ROOT, env=environment, check=True)
    return [str(path) for path in folder.rglob("*") if path.name != "stderr"]


def report(visits):
    """Prints what came of each kind -> how many requests came to no right end."""
    counts = Counter((visit.kind, visit.outcome) for visit in visits)
    print(f"\n{'requests':<22}" + "".join(f"{outcome:>14}" for outcome in OUTCOMES))
    for kind in sorted({visit.kind for visit in visits}):
        print(f"{kind:<22}" + "".join(f"{counts[kind, outcome]:>14}" for outcome in OUTCOMES))
    bad = Counter(visit[:3] for visit in visits if visit.outcome not in ("right", "busy"))
    for (kind, answer, outcome), n in bad.most_common():
        print(f"{outcome}: {n} times {answer} to {kind}")
    return sum(bad.values())


def report_times(title, visits):
    """Prints how long good requests took -> the 95th percentile."""
    seconds = [visit.seconds for visit in visits if visit.answer == "right"]
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    times = f"p50 {p50:.2f} s, p95 {p95:.2f} s, p99 {p99:.2f} s"
    print(f"{title}: {len(seconds)} good requests: {times}", flush=True)
    return p95


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes",
        type=float,
        default=10,
        metavar="N",
        help="a fifth of them warms up, in another there are only good clients (default: 10)",
    )
    parser.add_argument("--clients", type=at_least(1), default=16, metavar="N", help="default: 16")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is stopped too
    with tempfile.TemporaryDirectory() as folder:
        weights, temp = write_sound_weights(Path(folder, "weights")), Path(folder, "temp")
        with serving(temp, "--no-share", "--weights", *weights) as server:
            with httpx.Client(base_url=server.url) as http:
                button = find_button(http)
            questions = write_questions(
                Path(folder, "inputs"), weights, button, random.Random(args.seed)
            )
            good = [questions] * max(1, round(args.clients * GOOD_SHARE))
            every = good + [None] * (args.clients - len(good))
            visits = soak(server, every, args.minutes / 5, args.seed)
            before = memory_at_rest(server, questions[0])
            print(f"warm: {before} MB", flush=True)
            quiet = soak(server, good, args.minutes / 5, args.seed + 1)
            crowded = soak(server, every, args.minutes * 3 / 5, args.seed + 2)
            growth = memory_at_rest(server, questions[0]) - before
            bad = report([*visits, *quiet, *crowded])
            slowdown = report_times("with hostile clients", crowded)
            slowdown /= report_times(f"{len(good)} good clients alone", quiet)
            outside = [
                path for path in temp.iterdir() if path not in (server.temp, temp / "stderr")
            ]
            left = [*map(str, outside), *stop_in_mid_traffic(server, temp)]
            left += kill_and_start_again(Path(folder, "killed"), weights)
            logged = (temp / "stderr").read_text().count("Traceback")
    print(f"p95 {slowdown:.2f} times as long as among good clients; memory grew by {growth} MB; ")
    print(f"{logged} tracebacks in the log; left: {left or 'nothing'}")
    failed = growth > MAX_GROWTH_MB or slowdown > MAX_SLOWDOWN
    return int(bool(bad or left or logged or failed))


if __name__ == "__main__":
    run(main)
