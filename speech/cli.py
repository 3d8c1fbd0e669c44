"""What every script does at its edges: errors, argument types, files, signals, processes.

The standard library only, so that --help is quick.
"""

import argparse
import errno
import json
import math
import os
import signal
import stat
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import parent_process
from pathlib import Path
from typing import BinaryIO, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RANK = int(os.environ.get("RANK", 0))  # torchrun's: which process of the run this is
WORLD = int(os.environ.get("WORLD_SIZE", 1))  # and of how many
HANGUP = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has none
MAX_NAMED = 10  # of a list of problems; the others are counted


# --- errors -------------------------------------------------------------------------------------


class InputError(ValueError):
    """A user's mistake, in one line: the thing, what was found, what was expected, what to do."""


def run(main: Callable[[], int | None]) -> None:
    """Runs a script's `main`; a user's mistake or a failing disk is one line and exit status 2.

    Whatever ends it, but for SIGKILL, it takes its unfinished files with it.
    """
    end_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names need not be UTF-8, terminals need not show it
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except BrokenPipeError:  # whoever reads the table has seen enough
        status = 141  # as SIGPIPE would; Windows has none
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        if not (message := explain(error)):
            raise
        print_lines(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    if WORLD > 1:  # gloo's threads abort an interpreter that ends, one in sixty
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status or 0)
    sys.exit(status)


def explain(error: Exception) -> str:
    """What goes wrong on a user's machine, in words; "" of a fault of the program."""
    message = str(error).strip()
    if message.startswith("Caught "):  # in a process that reads clips: the last line is ours
        message = message.splitlines()[-1].removeprefix("speech.cli.InputError: ")
    if isinstance(error, InputError | OSError):
        return message
    if "shared memory" in message:
        return "/dev/shm is too small for --workers: --workers 0 goes without it"
    lacks = ("can't allocate memory", "killed by signal: Killed")  # PyTorch's words
    if isinstance(error, MemoryError) or any(words in message for words in lacks):
        return "out of memory: smaller batches, shorter recordings or fewer processes need less"
    return ""


def show_controls(text: str) -> str:
    """One line of what can be seen: newlines, escapes and marks of direction as Python writes them.

    Undecodable bytes too: a lone surrogate would end the answer that it stands in.
    """
    return "".join(
        char if char.isprintable() and unicodedata.category(char)[0] != "C" else repr(char)[1:-1]
        for char in text
    )


def safe_name(text: str) -> str:
    """A name for Markdown and HTML alike: it is shown as it stands, and links to nothing.

    An entity is text in both, never a mark: `*`, `[`, `<` and also the `:` and `.` of an address.
    The word joiner after a dollar keeps Gradio from setting two of them as a formula.
    """
    entities = (
        char
        if char.isalnum() or char == " " or ord(char) > 127 or (char == "-" and place)
        else f"&#{ord(char)};"
        for place, char in enumerate(show_controls(text))  # a - at the start would be a list
    )
    return "".join(entities).replace("&#36;", "&#36;&#8288;")


def join_names(names: Iterable[object], most: int = MAX_NAMED) -> str:
    """The first names, and how many more there are."""
    names = [show_controls(str(name)) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def join_problems(subject: str, problems: list[str]) -> str:
    """One line for any number of problems: all counted, the first ten named."""
    named = "; ".join(map(show_controls, problems[:MAX_NAMED]))
    more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{subject}: {count}: {named}{more}"


# --- the command line ---------------------------------------------------------------------------


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, but not that a flag is off or not given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Shows defaults in --help, and reports a mistake in one line."""

    def __init__(self, **options):
        # --epoch would be taken for --epochs, and train over weights with a wrong flag's value.
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False} | options)

    def error(self, message: str):
        raise InputError(f"{message} (see --help)")


def at_least(low: float, kind: type = int, below: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number of this kind that is >= low and < below."""
    noun = "an integer" if kind is int else "a number"
    expected = f"{noun} >= {low}" + (f" and < {below}" if math.isfinite(below) else "")

    def number(text: str) -> float:
        with suppress(ValueError):
            if low <= kind(text) < below:
                return kind(text)
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")

    return number


def print_lines(*lines: object, file: TextIO | None = None) -> None:
    """Prints each at once, as one line whatever stands in it: names and cells are strangers'."""
    try:
        for line in lines:
            print(show_controls(str(line)), file=file, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        # `| head` has seen enough, or the terminal was closed: the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), (file or sys.stdout).fileno())


def print0(*lines: object) -> None:
    """As print_lines, on the first process only."""
    if RANK == 0:
        print_lines(*lines)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Reports in one line what fails within: nothing optional may destroy a result."""
    try:
        yield
    except Exception as error:  # statistics, drawing and disks fail in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        print0(f"{what}: not available ({reason})")


# --- files --------------------------------------------------------------------------------------


def open_file(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading: a pipe would wait for ever, a device might never end."""
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, os.O_RDONLY | nonblocking | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("not a regular file")
    return os.fdopen(descriptor, "rb")


def read_file(path: str | Path) -> bytes:
    """All of a regular file, read once."""
    with open_file(path) as file:
        return file.read()


def check_regular(path: str | Path) -> None:
    """Refuses a path where there is something that a file must not replace."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder, expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a regular file, and would be replaced by one")


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed over it on success.

    A crash at any moment leaves the old file or the new one, never a part of either. A link is
    followed: the file that it names is replaced.

    Raises:
        InputError: the disk is full, the folder is missing or may not be written, or the path is
            no regular file.
    """
    check_regular(path)
    path = Path(path).resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written ({reason}); nothing there changed") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def is_stream(path: str | Path) -> bool:
    """Whether it is a pipe, a device or this process's output: never replaced by a file."""
    path = Path(path)
    if not path.exists() or path.is_dir():
        return False
    with suppress(OSError):  # there may be no output
        if os.path.samestat(path.stat(), os.fstat(1)):
            return True
    return not path.is_file()


@contextmanager
def open_for_writing(path: str | Path) -> Iterator[TextIO]:
    """Opens for writing text: a file as write_atomically does, a pipe or a device as it is."""
    options = {"newline": "", "encoding": "utf-8"}
    if is_stream(path):
        with open(path, "w", **options) as file:
            yield file
        return
    check_writable(path)
    with locked(path), write_atomically(path) as part, part.open("w", **options) as file:
        yield file


def write_json(path: str | Path, content: dict) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_writable(path: str | Path) -> None:
    """Makes the folder of `path` and writes there, before hours are spent on what goes into it."""
    check_regular(path)
    path = Path(path).resolve()  # where write_atomically goes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of torchrun's may have done it
    except OSError as error:
        raise InputError(f"{path}: cannot be written there ({error.strerror})") from error


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Refuses a second run that would write `path`, by whatever name, while the first one does.

    Raises:
        InputError: another run holds it.
    """
    if not fcntl:  # Windows
        yield
        return
    path = Path(path).resolve()
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            busy = "another run is writing it: wait until it ends, or choose another"
            raise InputError(f"{path}: {busy}") from error
        except OSError:  # some file systems have no locks, as Windows has none
            pass
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # the system forgets a killed run's lock by itself


def check_format(content: dict, newest: int) -> int:
    """The format number of what was read; files from before the numbers are format 1.

    Raises:
        InputError: written by a newer version of this project. The message does not name the file.
    """
    found = content.get("format", 1)
    if type(found) is not int or not 1 <= found <= newest:
        raise InputError(f"format {found!r:.20}, but this version reads 1 to {newest}: update it")
    return found


# --- signals and processes ----------------------------------------------------------------------


def ending_signals() -> list[int]:
    """Ctrl-C, SIGTERM, and that the terminal was closed, unless `nohup` has that ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if HANGUP and signal.getsignal(HANGUP) != signal.SIG_IGN:
        numbers.append(HANGUP)
    return numbers


def end_on_signals() -> None:
    """From now on SIGTERM and the terminal's end this process as an error does, and Ctrl-C."""
    process = os.getpid()

    def end(number: int, _frame: object) -> None:
        if os.getpid() != process:  # a pool keeps what its task raises, and waits for its death
            os._exit(128 + number)
        sys.exit(128 + number)

    for number in {*ending_signals()} - {signal.SIGINT}:
        signal.signal(number, end)


@contextmanager
def deferred_signals(also: Callable[[int], None] | None = None) -> Iterator[list[int]]:
    """Yields the list of ending signals received, for the loop to look at between batches.

    Args:
        also: called at once with the number of each.
    """
    received = []

    def receive(number: int, _frame: object) -> None:
        received.append(number)
        if also:
            also(number)

    before = {number: signal.signal(number, receive) for number in ending_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def count_cores() -> int:
    """Those that this process may use: containers and job queues allow fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def start_worker() -> None:
    """Leaves what a terminal sends to the parent, and ends with it, should it be killed."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)  # BLAS threads of several processes in each other's way halve the speed
    for number in {*ending_signals()} - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)

    def end_with_parent():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def map_processes(
    function: Callable,
    tasks: list,
    jobs: int,
    chunk: int = 1,
    on_error: Callable[[], None] = lambda: None,
) -> Iterator:
    """Yields `function(task)` for every task, in order, computed in `jobs` processes.

    Args:
        on_error: called when one has failed, before the others are waited for.

    Raises:
        InputError: a process was killed.
    """
    pool = ProcessPoolExecutor(max(1, min(jobs, len(tasks))), initializer=start_worker)
    try:
        yield from pool.map(function, tasks, chunksize=chunk)
    except BrokenProcessPool as error:
        advice = "Run again to go on (training with --resume), with fewer --jobs"
        raise InputError(f"a process was killed, for lack of memory? {advice}") from error
    except BaseException:
        on_error()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
