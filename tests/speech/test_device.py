"""Precision, memory and oneDNN's layout."""

import os
import platform
import subprocess
import sys
from pathlib import Path

from speech import device

import pytest
import torch
from conftest import ROOT


def test_precision_follows_the_processors_flags(monkeypatch):
    cpu = torch.device("cpu")
    for flag, expected in (("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flag=flag: {flag: True})
        assert isinstance(device.pick_precision("auto", cpu), torch.autocast) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # of PyTorch before 2.11
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert isinstance(device.pick_precision("auto", cpu), torch.autocast) == native
    assert isinstance(device.pick_precision("bf16", cpu), torch.autocast)
    assert not isinstance(device.pick_precision("fp32", cpu), torch.autocast)


FREED_AND_TAKEN = """
import resource
for _ in range(10):  # it takes some until no gap is too small
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    cleared = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(cleared)
"""
THREADS_IN_TURN = """
import re, threading
def fill():
    with turn:
        blocks = [b"x" * number for number in range(50_000, 51_000)]
        kept.append(blocks[-1])
        del blocks
    end.wait()  # a thread that ends leaves its heap to the next
turn, end, kept = threading.Lock(), threading.Barrier(8), []
threads = [threading.Thread(target=fill) for _ in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(
    ("code", "setting"),
    [
        (FREED_AND_TAKEN, "reuse_freed_memory()"),  # pages cleared for 64 MB
        (THREADS_IN_TURN, "keep_little_memory()"),  # KiB at the peak: eight threads' 50 MB each
    ],
)
def test_memory_that_was_freed_serves_the_next(code, setting):
    assert run_code(f"device.{setting}", code) < run_code("", code) / 1.5


def run_code(start, code):
    """The number that `code` prints, in a process of its own."""
    command = [sys.executable, "-c", f"import torch; from speech import device; {start}\n{code}"]
    env = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}  # demo.py, imported here, sets it
    return int(subprocess.check_output(command, cwd=ROOT, env=env))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_the_next_clips_of_the_page_find_memory_that_was_freed():
    code = FREED_AND_TAKEN.replace("2**24", "2**21")  # of 8 MB, as the CNN's largest tensor
    assert run_code("device.keep_little_memory()", code) < 64  # pages cleared


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here"
)
def test_tensors_get_huge_pages():
    code = """
import re
kept = torch.ones(2**26)  # 256 MB
smaps = open("/proc/self/smaps").read()
print(sum(map(int, re.findall(r"AnonHugePages:\\s+(\\d+)", smaps))))
"""
    assert run_code("device.reuse_freed_memory()", code) > 0.9 * 2**18


def test_where_no_memory_can_be_reserved_none_is():
    assert (
        run_code("device.reuse_freed_memory(2**62)", "print(torch.ones(7).sum().int().item())") == 7
    )
