"""What speech/apart.py is tested with: decoders as bad files make them."""

import os
import signal
import time

from speech.cli import InputError

import numpy as np


def count(most):
    yield from range(most)


def die(*_):
    os.kill(os.getpid(), signal.SIGSEGV)
    yield


def sleep(*_):
    time.sleep(60)
    yield


def work(*_):
    while True:
        pass
    yield


def eat(*_):
    yield len(bytearray(2**31))


def fill_disk(path):
    with open(path, "wb") as file:
        file.write(bytes(2**20))
    yield


def flood(*_):
    while True:
        yield np.zeros(2**20, np.float32)


def die_in_the_middle(*_):
    yield [8000, []]
    yield np.ones(3000, np.float32)
    yield from die()


def complain(*_):
    yield 1
    raise InputError("holds NaN\udce9")
