"""What a page that strangers reach needs around Gradio: it knows nothing of models.

FOLDER = server.open_folder()  # before Gradio is imported
print(server.start(page, FOLDER, password=server.read_password(args.password)))
server.serve_until_stopped(page, FOLDER)
"""

import asyncio
import atexit
import contextlib
import gc
import inspect
import io
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partialmethod
from multiprocessing import parent_process
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import parse_qsl

from speech.audio import forget_files
from speech.cli import InputError, deferred_signals, show_controls
from speech.turns import LISTENERS, MAX_JOBS, Listeners
from speech.words import KEEP_SECONDS

import uvicorn.config
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None

MAX_UPLOAD_BYTES = 90 * 2**20  # half an hour of 16-bit mono at 48 kHz; 256 clips in float64
MAX_JSON_BYTES = 2**20  # 256 files as the page names them are 0.3 MB
MAX_FILES, MAX_PART_BYTES = 256, 8192  # of a call: listed at once, and each of its values
MAX_VALUES, MAX_PATH = 16, 512  # its arguments, and the letters of a file's path
MAX_FORM_BYTES = 4096  # a log-in, or a cancelled event
MAX_HELD_BYTES = 64 * 2**20  # of JSON in memory for all visitors together
MAX_URL_BYTES = MAX_HEADER_BYTES = 4096  # a name of 255 letters in UTF-8, quoted, is 0.8 kB
MAX_HEADERS_BYTES = 8192  # together; a Space's proxy adds 1 to 2 kB
MIN_FREE_BYTES = 2**30  # of the disk; under it, uploads are refused
STALLED_SECONDS = 30.0  # without a byte of a body, or of a first request
MAX_CONNECTIONS, FILES_KEPT = 1000, 64  # files that connections leave for uploads and pictures
ACCEPTED_AT_ONCE, QUEUED = 16, 2048  # connections; the former before any of them is counted
HEEDED = {f"GRADIO_{name}" for name in ("SERVER_NAME", "SERVER_PORT", "NUM_PORTS", "ROOT_PATH")}
HEEDED |= {"GRADIO_BLOCKED_PATHS", "GRADIO_SHARE_SERVER_ADDRESS"}  # where it is, and what it hides

SWEEP_SECONDS = 30  # between two looks at what is older than KEEP_SECONDS
PREFIX = "speech-"  # of its folder's name
FORGOTTEN_SECONDS = 24 * 3600  # a folder without a lock file is of an older version, if of ours
MAX_KEPT = 512  # answers, sessions and uploads that nobody has fetched or ended

GUESS_SECONDS, FREE_GUESSES, MAX_GUESSES = 1.0, 10, 60  # all visitors together; then the waiting
LOG_SECONDS, LOG_BURST, LOG_LENGTH = 1.0, 20, 300  # a line a second after the first twenty
MAX_WAITING = 64  # in the queue behind those at work


# --- the temporary folder -----------------------------------------------------------------------


def is_ours(path: Path) -> bool:
    """Whether it is a folder of this user, and no link: in /tmp anybody may put anything."""
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and (
        not hasattr(os, "getuid") or status.st_uid == os.getuid()
    )


def is_dead(path: Path) -> bool:
    """Whether the run that made the folder is over: the system then has released its lock."""
    try:
        with open(path / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return path.lstat().st_mtime < time.time() - FORGOTTEN_SECONDS
    except OSError:
        return False


def remove_dead(root: Path) -> None:
    """Removes what runs that were killed have left, recordings among it."""
    if not fcntl:
        return
    for path in (*root.glob(f"{PREFIX}*"), *root.glob(f".{PREFIX}*")):
        with contextlib.suppress(OSError):  # another start may be removing it
            if is_ours(path) and is_dead(path):
                shutil.rmtree(path, ignore_errors=True)


class Folder:
    """Where everything of visitors lies: locked while the process lives, and swept by age."""

    def __init__(self, path: Path):
        self.path, self.lock = path, None

    def ensure(self) -> Path:
        """Makes it anew if a cleaner took it; it appears locked, or a start would remove it."""
        if not self.path.exists():
            new = self.path.with_name(f".{self.path.name}")
            new.mkdir(0o700, exist_ok=True)
            self.take_lock(new)
            new.rename(self.path)
        elif not (self.path / ".lock").exists():
            self.take_lock(self.path)
        return self.path

    def take_lock(self, folder: Path) -> None:
        if self.lock:
            self.lock.close()
        self.lock = (folder / ".lock").open("wb")  # held as long as the process lives
        if fcntl:
            fcntl.flock(self.lock, fcntl.LOCK_EX)

    def sweep(self, seconds: float) -> None:
        """Removes what is older than that: Gradio itself forgets uploads that were broken off."""
        (self.ensure() / ".lock").touch()  # or a cleaner would think it old
        limit = time.time() - seconds
        for path in sorted(self.path.rglob("*"), reverse=True):  # files before their folder
            hidden = path.relative_to(self.path).parts[0].startswith(".")  # the lock, caches
            with contextlib.suppress(OSError):  # a folder that is not empty, a file just taken away
                if not hidden and path.lstat().st_ctime < limit:
                    remove = path.rmdir if stat.S_ISDIR(path.lstat().st_mode) else path.unlink
                    remove()

    def remove(self) -> None:
        if self.lock:
            self.lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


def open_folder() -> Folder:
    """Makes the folder and names it to Gradio, which must not be imported yet; removed at exit.

    A child process that imports the page again gets its parent's. Of Gradio's other variables only
    those stay that are HEEDED: a forgotten one could open what is closed here.
    """
    parents = os.environ.get("GRADIO_TEMP_DIR")
    if parent_process() and parents:
        return Folder(Path(parents))
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        if name not in HEEDED:
            del os.environ[name]
    root = Path(tempfile.gettempdir())
    remove_dead(root)
    folder = Folder(root / f"{PREFIX}{secrets.token_hex(4)}")
    os.environ["GRADIO_TEMP_DIR"] = str(folder.ensure())
    owner = os.getpid()
    atexit.register(lambda: folder.remove() if os.getpid() == owner else None)
    return folder


class Disk:
    """Counts what uploads are bringing, all together, against what the disk has free."""

    def __init__(self, folder: Folder):
        self.folder, self.coming = folder, 0

    def reserve(self, size: int) -> bool:
        """Takes the room for bytes that are about to be written, if the reserve stays."""
        free = shutil.disk_usage(self.folder.ensure()).free
        if free - self.coming - size < MIN_FREE_BYTES:
            return False
        self.coming += size
        return True

    def release(self, size: int) -> None:
        """They are written: the disk itself counts them now."""
        self.coming -= size


# --- passwords ----------------------------------------------------------------------------------


def read_password(given: str | None) -> str | None:
    """The password given or in the environment; None publishes the page.

    Raises:
        InputError: it is empty, which would publish a page that was meant to be closed.
    """
    variable = os.environ.get("DEMO_PASSWORD")
    for name, word in (("--password", given), ("DEMO_PASSWORD", variable)):
        if word is not None and not word.strip():
            raise InputError(f"{name} is empty: give a password, or leave it out to publish")
    if given is not None:
        note = "note: others on this machine see --password; DEMO_PASSWORD is hidden"
        print(note, file=sys.stderr)
    return variable if given is None else given


def make_log_in(password: str) -> Callable[[str, str], Awaitable[bool]]:
    """What Gradio asks for each log-in: guesses of all visitors together take one line.

    The first few need not wait, so that whoever mistypes is not held up; a right password gives its
    place back. A full line is refused, with 429.
    """
    line_ends = 0.0  # when the last guess in line is due

    async def log_in(_user: str, guess: str) -> bool:
        nonlocal line_ends
        now = time.monotonic()
        ends = max(line_ends, now) + GUESS_SECONDS
        wait = max(0.0, ends - now - FREE_GUESSES * GUESS_SECONDS)
        if wait > MAX_GUESSES * GUESS_SECONDS:
            raise HTTPException(429, "Too many wrong passwords: try again in a minute.")
        line_ends = ends
        await asyncio.sleep(wait)
        right = secrets.compare_digest(guess.encode(errors="replace"), password.encode())
        if right:
            line_ends -= GUESS_SECONDS
        else:
            await asyncio.sleep(GUESS_SECONDS)  # holds up nobody else
        return right

    return log_in


# --- what is served -----------------------------------------------------------------------------


class Route(NamedTuple):
    methods: str
    path: str  # as Gradio writes it
    most: int = 0  # bytes of a body


API = "/gradio_api"
ROUTES = (  # all others are 404: recordings of the screen, links to sessions, functions, monitoring
    Route("GET HEAD", "/"),
    Route("GET", "/config"),  # gradio_client's first question
    Route("GET", "/config/"),
    Route("GET", "/theme.css"),
    Route("GET", f"{API}/theme.css"),
    Route("GET", "/assets/{path:path}"),
    Route("GET", "/static/{path:path}"),
    Route("GET", "/svelte/{path:path}"),
    Route("GET", "/favicon.ico"),
    Route("GET", "/manifest.json"),
    Route("GET", "/robots.txt"),
    Route("POST", "/login", MAX_FORM_BYTES),
    Route("POST", "/login/", MAX_FORM_BYTES),
    Route("GET", "/logout"),
    Route("GET", f"{API}/login_check"),
    Route("GET", f"{API}/info"),
    Route("GET", f"{API}/startup-events"),  # Gradio asks itself before it serves
    Route("GET", f"{API}/heartbeat/{{session_hash}}"),
    Route("POST", f"{API}/upload", MAX_UPLOAD_BYTES),
    Route("GET", f"{API}/upload_progress"),
    Route("GET HEAD", f"{API}/file={{path_or_url:path}}"),
    Route("POST", f"{API}/queue/join", MAX_JSON_BYTES),
    Route("GET", f"{API}/queue/data"),
    Route("POST", f"{API}/run/{{api_name}}", MAX_JSON_BYTES),  # of what has queue=False alone
    Route("POST", f"{API}/call/{{api_name}}", MAX_JSON_BYTES),
    Route("POST", f"{API}/call/v2/{{api_name}}", MAX_JSON_BYTES),  # of the page's own snippets
    Route("GET", f"{API}/call/{{api_name}}/{{event_id}}"),
    Route("GET", f"{API}/call/v2/{{api_name}}/{{event_id}}"),
    Route("POST", f"{API}/cancel", MAX_FORM_BYTES),
    Route("POST", f"{API}/reset", MAX_FORM_BYTES),
)
NAMED = ("session_hash", "upload_id", "event_id", "api_name")  # strings that Gradio keeps
NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
ELSEWHERE = "Not found. Calls go through the queue: /gradio_api/call/NAME."


PATTERNS = [(compile_path(route.path)[0], route) for route in ROUTES]


class Refused(Exception):
    """A request that is not passed on: its status and a line for whoever sent it."""

    def __init__(self, status: int, text: str):
        self.status, self.text = status, text


def find_route(scope: Scope) -> tuple[Route, dict[str, str]]:
    """The route of a request, and the parts of its path that have names."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if root and path.startswith(f"{root}/"):
        path = path.removeprefix(root)
    for pattern, route in PATTERNS:
        match = pattern.fullmatch(path)
        if match and scope["method"] in route.methods.split():
            return route, match.groupdict()
    raise Refused(404, ELSEWHERE)


def check_names(names: Iterable[tuple[str, object]]) -> None:
    for name, value in names:
        if (
            name in NAMED
            and value is not None
            and not (isinstance(value, str) and NAME.fullmatch(value))
        ):
            raise Refused(400, f"{name}: expected 1 to 64 letters, digits, '.', '_' or '-'")


def check_strings(scope: Scope, names: dict[str, str]) -> dict[str, str]:
    """Refuses strings longer than the page needs -> the names in path and query."""
    query = scope.get("query_string", b"")
    if len(scope.get("raw_path") or scope["path"].encode()) + len(query) > MAX_URL_BYTES:
        raise Refused(414, f"The address is longer than {MAX_URL_BYTES} bytes.")
    sizes = [len(name) + len(value) for name, value in scope["headers"]]
    if sum(sizes) > MAX_HEADERS_BYTES or max(sizes, default=0) > MAX_HEADER_BYTES:
        raise Refused(431, f"A header is longer than {MAX_HEADER_BYTES} bytes, or all are.")
    pairs = [*names.items(), *parse_qsl(query.decode("latin-1"), keep_blank_values=True)]
    check_names(pairs)
    if names.get("path_or_url", "").lower().startswith(("http:", "https:")):
        raise Refused(403, "Addresses are not fetched.")
    return dict(pairs)


def check_values(content: dict) -> None:
    """Refuses more, or longer, than a page sends: it is kept until the answer is fetched.

    Arguments stand in `data`, of call/v2 beside it; event_data too lists all files.
    """
    others = dict(content)
    data = others.pop("data", None)
    data = data if isinstance(data, list) else [data]
    if (most := max(len(data), len(others))) > MAX_VALUES:
        raise Refused(422, f"{most} values, expected at most {MAX_VALUES}.")
    lists = [part if isinstance(part, list) else [part] for part in (*others.values(), *data)]
    if (most := max(map(len, lists), default=0)) > MAX_FILES:
        raise Refused(422, f"{most} files, expected at most {MAX_FILES} at once.")
    for part in itertools.chain(*lists):
        if len(json.dumps(part)) > MAX_PART_BYTES:
            raise Refused(422, f"A value is longer than {MAX_PART_BYTES} bytes.")
        if isinstance(part, dict) and len(str(part.get("path"))) > MAX_PATH:
            raise Refused(422, f"A file's path is longer than {MAX_PATH} letters.")


def check_call(scope: Scope, route: Route, names: dict[str, str], body: bytes) -> None:
    """Refuses a call that passes the queue by, or that Gradio would answer with a traceback."""
    past_queue = "/run/" in route.path
    if past_queue and names["api_name"] != "predict":  # what the page itself writes there
        raise Refused(404, ELSEWHERE)
    try:
        content = json.loads(body)
        if not isinstance(content, dict):
            raise Refused(422, "The body is not a JSON object.")
        check_names(content.items())
        event = content.get("event_data")
        if past_queue and isinstance(event, dict):  # a table's: the column clicked, never kept
            content["event_data"] = event | {"col_value": None}
        check_values(content)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The body is not JSON.") from error
    functions = getattr(get_page(scope), "fns", None)
    if functions is not None:
        known = {function.api_name for function in functions.values()}
        if not past_queue and names.get("api_name", next(iter(known), None)) not in known:
            raise Refused(404, "There is no such endpoint.")
        index = content.get("fn_index")
        if index is not None and index not in [*functions]:
            raise Refused(404, "There is no such function.")
        if past_queue and (index is None or functions[index].queue is not False):
            raise Refused(404, ELSEWHERE)


def get_page(scope: Scope) -> object | None:
    """Gradio's Blocks, if that is what stands behind."""
    return getattr(scope.get("app"), "blocks", None)


def find_session(scope: Scope, event_id: str) -> str:
    """The session of an event, which is the event's own name unless the caller gave another."""
    queue = getattr(get_page(scope), "_queue", None)
    event = queue and queue.event_ids_to_events.get(event_id)
    return event.session_hash if event else event_id


class Guard:
    """ASGI middleware: what is in ROUTES, no longer than it need be, within the disk's room."""

    def __init__(self, app: ASGIApp, folder: Folder, listeners: Listeners | None = None):
        self.app, self.folder, self.disk = app, folder, Disk(folder)
        self.listeners, self.held = listeners or LISTENERS, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.pass_on(scope, receive, send)
        except Refused as refused:
            answer = JSONResponse({"detail": refused.text}, refused.status)
            await answer(scope, receive, send)
        except ClientDisconnect:
            pass  # nothing to answer, and nothing to log

    async def pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        route, path_names = find_route(scope)
        names = check_strings(scope, path_names)
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > route.most:
            raise Refused(413, f"Over the maximum allowed size, {route.most >> 20} MB at once.")
        if route.most == MAX_UPLOAD_BYTES:
            await self.upload(scope, receive, send)
        elif route.most:
            await self.read_whole(route, path_names, scope, receive, send)
        elif route.path.endswith(("/queue/data", "/{event_id}")):
            session = names.get("session_hash") or find_session(scope, names.get("event_id", ""))
            with self.listeners.listening(session):
                await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def read_whole(
        self, route: Route, names: dict[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Reads a short body, looks at its strings, and hands it on."""
        body = bytearray()
        try:
            while True:
                message = await receive_soon(receive)
                chunk = message.get("body", b"")
                self.held += len(chunk)
                body += chunk
                if len(body) > route.most:
                    raise Refused(413, f"Over the maximum allowed size, {route.most} bytes.")
                if self.held > MAX_HELD_BYTES:
                    raise Refused(503, "The page is busy: try again in a minute.")
                if not message.get("more_body"):
                    break
            if not route.path.startswith("/login"):
                check_call(scope, route, names, bytes(body))
            whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

            async def receive_whole() -> Message:
                return whole.pop() if whole else await receive()

            try:
                await self.app(scope, receive_whole, send)
            except TypeError as error:  # Gradio's word for a parameter that is missing or unknown
                if "/call/v2/" not in route.path:
                    raise
                raise Refused(422, show_controls(str(error))[:LOG_LENGTH]) from error
        finally:
            self.held -= len(body)

    async def upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts bytes as they come; an upload that is refused or broken off leaves no file."""
        refused, received, coming, complete = None, 0, 0, False

        def refuse(status: int, text: str) -> None:
            nonlocal refused
            refused = Refused(status, text)
            raise MultiPartException(text)  # Gradio removes what it wrote

        async def receive_counted() -> Message:
            nonlocal received, coming, complete
            self.disk.release(coming)
            coming = 0
            if complete:
                return await receive()
            try:
                message = await receive_soon(receive)
            except (ClientDisconnect, Refused):
                refuse(408, "The upload stopped half-way.")
            size = len(message.get("body", b""))
            received += size
            if received > MAX_UPLOAD_BYTES:
                refuse(413, f"Over the maximum allowed size, {MAX_UPLOAD_BYTES >> 20} MB at once.")
            if not self.disk.reserve(size):
                refuse(507, "The server's disk is full: try again later.")
            coming, complete = size, not message.get("more_body")
            return message

        async def send_unless_refused(message: Message) -> None:
            if not refused:
                await send(message)

        try:
            await self.app(scope, receive_counted, send_unless_refused)
        except MultiPartException:
            if not refused:
                raise
        finally:
            self.disk.release(coming)
        if refused:
            raise refused


async def receive_soon(receive: Receive) -> Message:
    """The next part of a body; who sends none for long is not waited for."""
    try:
        message = await asyncio.wait_for(receive(), STALLED_SECONDS)
    except TimeoutError as error:
        raise Refused(408, "The request stopped half-way.") from error
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


# --- visitors who wait --------------------------------------------------------------------------


# --- what Gradio keeps --------------------------------------------------------------------------


def keep_little() -> None:
    """Gradio keeps no form's fields, no inputs with their session, no error with inputs in it.

    Nor lists of visitors' files, by which it would delete them, as Folder.sweep does.
    """
    from gradio import blocks, queueing, route_utils, state_holder

    class Parser(route_utils.GradioMultiPartParser):
        async def parse(self) -> FormData:
            self.max_files, self.max_fields = MAX_FILES, 0  # fields would lie in memory
            try:
                return await super().parse()
            except BaseException:  # Gradio removes files after its own errors alone
                for file in self._files_to_close_on_error:
                    file.close()
                    Path(file.name).unlink(missing_ok=True)
                raise

    def shorten(*error: object) -> dict:
        return {
            name: value[:MAX_PART_BYTES] if isinstance(value, str) else value
            for name, value in payload(*error).items()
        }

    payload, queueing.error_payload = queueing.error_payload, shorten
    route_utils.GradioMultiPartParser = Parser
    nothing = property(lambda _: set(), lambda *_: None)
    blocks.Block.temp_files = blocks.Blocks.upload_file_set = nothing
    # It keeps them for links to sessions, which are closed.
    state_holder.SessionState._update_value_in_config = lambda *_: None


def forget_visitors(page: object) -> None:
    """Bounds what Gradio keeps by visitors' strings: results expire with the files.

    Sessions hold what the page shows (names, verdicts), queues the answers that nobody fetched.
    """
    from gradio.routes import file_upload_statuses as uploads

    holder, queue, now = page.state_holder, page._queue, datetime.now()
    old, idle_since = (now - timedelta(0, age) for age in (KEEP_SECONDS, SWEEP_SECONDS))
    used = holder.time_last_used
    for session, last in list(used.items()):
        if last < old and session not in LISTENERS.open:
            holder.session_data.pop(session, None)
            used.pop(session, None)
    busy = {event.session_hash for event in list(queue.event_ids_to_events.values())}
    for kept in (queue.pending_messages_per_session, queue.pending_event_ids_session):
        idle = [session for session in list(kept) if session not in busy | LISTENERS.open.keys()]
        heard = [  # and not about to listen to what has ended just now
            session
            for session in idle
            if session in LISTENERS.left and used.get(session, old) < idle_since
        ]
        for session in {*heard, *idle[: max(0, len(idle) - MAX_KEPT)]}:
            kept.pop(session, None)
    for name in [*uploads._signals][:-MAX_KEPT]:
        uploads._signals.pop(name, None)
        uploads._statuses.pop(name, None)
    for token in [*page.app.tokens][:-MAX_KEPT]:
        page.app.tokens.pop(token, None)
    LISTENERS.forget(KEEP_SECONDS)
    forget_files()


# --- connections and logs -----------------------------------------------------------------------


class Connection(H11Protocol):
    """Closes connections that ask for nothing: they would take the files that visitors need."""

    most = MAX_CONNECTIONS
    every: dict["Connection", None] = {}  # the oldest first

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.seen = None
        self.timer = self.loop.call_later(STALLED_SECONDS, self.close_if_idle)
        self.every[self] = None
        if len(self.every) > self.most:
            idle = (other for other in self.every if other is not self and other.is_idle())
            oldest = next(idle, None) or self.find_crowd()
            del self.every[oldest]  # now, or others that come in this moment would end it again
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        self.every.pop(self, None)
        super().connection_lost(exc)

    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def find_crowd(self) -> "Connection":
        """The oldest connection of the address that has the most: streams are never idle."""
        addresses = [(other.client or ("",))[0] for other in self.every]
        [(most, _)] = Counter(addresses).most_common(1)
        return next(other for other in self.every if (other.client or ("",))[0] == most)

    def close_if_idle(self) -> None:
        if self.is_idle() and self.seen is self.cycle:  # no request since the last look
            self.transport.abort()
            return
        self.seen = self.cycle
        self.timer = self.loop.call_later(STALLED_SECONDS, self.close_if_idle)


def limit_connections() -> None:
    """Uvicorn uses our Connection, and leaves files free for what visitors ask for."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"
    options = {"backlog": ACCEPTED_AT_ONCE, "log_config": None}  # its records go to the root's
    uvicorn.Config.__init__ = partialmethod(uvicorn.Config.__init__, **options)
    if resource:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        if soft != resource.RLIM_INFINITY:
            in_use = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else FILES_KEPT
            Connection.most = max(8, min(MAX_CONNECTIONS, soft - in_use - FILES_KEPT))


def lengthen_queue(page: object) -> None:
    """The system's queue of connections, which asyncio made no longer than what it accepts."""
    for server in getattr(getattr(page, "server", None), "servers", ()):
        for listening in server.sockets:
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.listen(QUEUED)


class OneLine(logging.Filter):
    """Every record one line, a few a second: strangers must not fill the disk with tracebacks."""

    def __init__(self):
        super().__init__()
        self.left, self.then, self.skipped = float(LOG_BURST), time.monotonic(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        self.left = min(LOG_BURST, self.left + (now - self.then) / LOG_SECONDS)
        self.then = now
        if self.left < 1:
            self.skipped += 1
            return False
        self.left -= 1
        text = describe(record)
        if self.skipped:
            text += f" ({self.skipped} lines before it left out)"
            self.skipped = 0
        record.msg, record.args, record.exc_info, record.exc_text = text, (), None, None
        return True


def describe(record: logging.LogRecord) -> str:
    """A log record in one line: what it says, and of an error its kind and its place."""
    lines = record.getMessage().strip().splitlines() or [""]
    text = lines[0]
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""
        text += f": {type(error).__name__}: {str(error)[:LOG_LENGTH]}{place}"
    return show_controls(text)[: 2 * LOG_LENGTH]


LOG_LIMIT = OneLine()  # one for all


def log_failure() -> None:
    """Notes on stderr what failed in a call, within an except."""
    record = logging.makeLogRecord({"msg": "A call failed", "exc_info": sys.exc_info()})
    if LOG_LIMIT.filter(record):
        print(record.msg, file=sys.stderr, flush=True)


def limit_logs() -> None:
    """One limit for all loggers and warnings, and for Gradio, which prints tracebacks past them."""
    import gradio

    handler = logging.StreamHandler()
    handler.addFilter(LOG_LIMIT)  # a logger's own filter does not see what its children say
    logging.basicConfig(format="%(message)s", handlers=[handler], force=True)
    logging.captureWarnings(True)
    for module in (gradio.queueing, gradio.routes):
        module.traceback = SimpleNamespace(print_exc=log_failure)


# --- start and end ------------------------------------------------------------------------------


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Within it, PyTorch and Gradio take two thirds of the time.

    Gradio writes its editor stubs anew at each start, 1 s, but not for classes without a file; and
    the garbage collector looks in vain at what stays. A port that is no number would be a
    traceback: whoever reads it later can say what is wrong.
    """
    find_file, collects = inspect.getfile, gc.isenabled()
    port = os.environ.pop("GRADIO_SERVER_PORT", None)

    def find_others_file(thing: object) -> str:
        if str(getattr(thing, "__module__", "")).startswith("gradio."):
            raise OSError("no stubs")
        return find_file(thing)

    inspect.getfile = find_others_file
    gc.disable()
    try:
        yield
    finally:
        inspect.getfile = find_file
        if port:
            os.environ["GRADIO_SERVER_PORT"] = port
        if collects:
            gc.enable()


async def refuse_address(host: str) -> None:
    import gradio

    raise gradio.Error("Addresses are not fetched: upload the file.", print_exception=False)


def start(
    page: object,
    folder: Folder,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    password: str | None = None,
    **look: object,
) -> str:
    """Starts the server of a gr.Blocks -> one line that says where.

    Args:
        look: what else launch() takes: theme, css, js, head.
    """
    import safehttpx

    safehttpx.async_validate_url = refuse_address  # or visitors could send it to any address
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder.ensure())
    limit_connections()
    limit_logs()
    keep_little()
    page.queue(api_open=False, max_size=MAX_WAITING, default_concurrency_limit=MAX_JOBS)
    with contextlib.redirect_stdout(io.StringIO()):  # Gradio explains a refused link at length
        _, local, public = page.launch(
            share=share,
            server_name=host,
            server_port=port,
            auth=make_log_in(password) if password else None,
            auth_message="Any name, and the password that you were given.",
            app_kwargs={"middleware": [Middleware(Guard, folder=folder)]},
            max_file_size=MAX_UPLOAD_BYTES,
            state_session_capacity=MAX_KEPT,
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            footer_links=["api"],
            quiet=True,
            prevent_thread_lock=True,
            **look,
        )
    lengthen_queue(page)
    if public:
        return f"Serving at {local}, and for whoever has the link at {public}"
    reason = "Gradio could not be reached" if share else "none was asked for"
    return f"Serving at {local} (no public link: {reason})"


def serve_until_stopped(page: object, folder: Folder) -> None:
    """Waits for Ctrl-C or SIGTERM, and keeps disk and memory free meanwhile."""
    with deferred_signals() as signals:  # an interrupt that is raised can get lost among imports
        for second in itertools.count(1):
            time.sleep(1)
            if signals:
                return
            with contextlib.suppress(OSError):  # a full disk must not end the page
                folder.ensure()
                if second % SWEEP_SECONDS == 0:
                    folder.sweep(KEEP_SECONDS)
                    forget_visitors(page)
                    gc.collect()  # sessions that ended are cycles; Python would leave them a while
