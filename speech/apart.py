"""Generators that run in a process of their own, with limits on time, memory and output.

What strangers send may kill a decoder, stall it or make it eat memory: whoever sent it then gets
an error, and nobody else notices. A server, started once, forks for every call: 10 ms on top.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from speech.cli import InputError

import numpy as np

STALL_SECONDS = 15.0  # without a result; an hour of AAC decodes in 5 s
CPU_SECONDS = 120  # of a call
MEMORY_BYTES = 2**29  # on top of what the server takes; an hour of AAC takes half of it
OUTPUT_BYTES = 2**33  # of a call: two hours at 192 kHz are 5.5 GB
RESULT_BYTES = 2**23  # of one result; a block of sound has 1 MB
REQUEST_BYTES = 2**16  # a path of 4096 bytes, each of them escaped, has 24 kB
NICENESS = 5  # answers that need no decoder come first
HEAD = struct.Struct("<cI")  # of a result: its kind, its size
ARRAY, JSON, ERROR, END = b"a", b"j", b"e", b"."
ENDED = "not readable as sound (its decoder was stopped: damaged, or too much to decode)"


# --- this process -------------------------------------------------------------------------------


class Server:
    """The process that forks, started when it is first needed, and again if it was killed."""

    def __init__(self):
        self.lock, self.process, self.socket, self.owner = threading.Lock(), None, None, None

    def start(self) -> None:
        """Starts it unless it runs; it ends with this process, whose end of the socket closes."""
        with self.lock:  # the page's start and its first visitor may want it at once
            self.ensure()

    def ensure(self) -> None:
        if self.owner == os.getpid() and self.process.poll() is None:
            return
        self.socket, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for us
        )
        theirs.close()
        self.owner = os.getpid()  # a fork of this process has a server of its own
        self.socket.recv(1)  # it is ready, or has ended

    def send(self, request: bytes, descriptor: int) -> None:
        with aside(), self.lock:  # to start takes a second
            self.ensure()
            socket.send_fds(self.socket, [request], [descriptor])


SERVER = Server()
everything = False  # isolate() sets it
aside: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def isolate(step_aside: Callable[[], contextlib.AbstractContextManager]) -> None:
    """From now on all sound is decoded apart: it comes from strangers.

    Args:
        step_aside: is entered while this process waits for a decoder.
    """
    global everything, aside
    everything, aside = hasattr(os, "fork"), step_aside


def run(generator: Callable[..., Iterator], *arguments: object) -> Iterator:
    """Yields what a generator function does: arrays (k,) of float32, and what JSON can say.

    Args:
        generator: of a module, by whose name the server finds it.
        arguments: what JSON can say.

    Raises:
        InputError: the generator's own, or it was stopped.
    """
    if not hasattr(os, "fork"):  # Windows: without limits
        yield from generator(*arguments)
        return
    wanted = generator.__module__, generator.__name__, arguments, STALL_SECONDS
    request = json.dumps(wanted).encode()
    ours, theirs = os.pipe()
    with open(ours, "rb", buffering=0) as pipe:
        try:
            SERVER.send(request, theirs)
        except OSError as error:
            raise InputError(ENDED) from error
        finally:
            os.close(theirs)
        left = OUTPUT_BYTES
        while left > 0:
            kind, size = HEAD.unpack(receive(pipe, HEAD.size))
            content = receive(pipe, min(size, RESULT_BYTES))
            left -= size
            if kind == END:
                return
            if kind == ERROR:
                raise InputError(content.decode(errors="replace"))
            yield np.frombuffer(content, "<f4") if kind == ARRAY else json.loads(content)
        raise InputError(ENDED)


def receive(pipe: BinaryIO, count: int) -> bytes:
    """So many bytes; InputError if the other side has ended, or writes nothing for long."""
    content, waiting = bytearray(), select.poll()
    waiting.register(pipe, select.POLLIN)
    while len(content) < count:
        if not waiting.poll(0):
            with aside():
                waiting.poll(1000 * STALL_SECONDS)
        part = pipe.read(count - len(content)) if waiting.poll(0) else b""
        if not part:
            raise InputError(ENDED)
        content += part
    return bytes(content)


# --- the server, and its forks ------------------------------------------------------------------


def serve(requests: socket.socket) -> None:
    """Forks for every request, which comes with the pipe that takes the results."""
    os.nice(NICENESS)
    for module in ("speech.audio", "soundfile", "av"):  # here and not in every fork
        importlib.import_module(module)
    gc.freeze()  # forks share it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system forgets forks that have ended
    requests.send(b".")
    while True:
        # Two requests never come as one: each brings a descriptor.
        request, descriptors, *_ = socket.recv_fds(requests, REQUEST_BYTES, 1)
        if not request:
            return
        if os.fork() == 0:
            try:
                answer(request, descriptors[0])
            finally:
                os._exit(0)
        os.close(descriptors[0])


def answer(request: bytes, descriptor: int) -> None:
    """In a fork: writes the results, and ends with it."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever stops reading ends it
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # some decoders print
    module, name, arguments, stall = json.loads(request)
    limit_resources()
    clock = partial(signal.setitimer, signal.ITIMER_REAL)  # ends the fork
    clock(stall)
    generator = getattr(importlib.import_module(module), name)
    with open(descriptor, "wb") as pipe:
        try:
            for result in generator(*arguments):
                clock(0)  # whoever reads may take their time
                write(pipe, result)
                clock(stall)
            pipe.write(HEAD.pack(END, 0))
        except InputError as error:
            content = str(error).encode(errors="backslashreplace")
            pipe.write(HEAD.pack(ERROR, len(content)) + content)


def write(pipe: BinaryIO, result: object) -> None:
    if isinstance(result, np.ndarray):
        kind, content = ARRAY, result.astype("<f4").tobytes()
    else:
        kind, content = JSON, json.dumps(result).encode()
    pipe.write(HEAD.pack(kind, len(content)) + content)
    pipe.flush()


def limit_resources() -> None:
    """No more memory, time and files than a recording needs."""
    import resource

    used = 0
    with contextlib.suppress(OSError), open("/proc/self/statm", "rb") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, used + MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit on address space
            resource.setrlimit(kind, (most, most))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        serve(ours)
