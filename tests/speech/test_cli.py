"""Errors in one line, argument types, atomic files, signals, processes."""

import argparse
import math
import os
import signal
import subprocess
import sys
import threading

from speech import cli
from speech.cli import (
    InputError,
    at_least,
    check_writable,
    join_names,
    join_problems,
    locked,
    map_processes,
    open_file,
    open_for_writing,
    optional,
    print_lines,
    run,
    write_atomically,
)

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    "error, words",
    [
        (InputError("a\nb\x1b[31m: no clip"), r"a\nb\x1b[31m: no clip"),
        (InputError("Caught X in worker 0.\nOriginal Traceback:\n a.npy: gone"), "a.npy: gone"),
        (MemoryError(), "out of memory"),
        (RuntimeError("alloc_cpu.cpp:117: can't allocate memory: 9 bytes"), "out of memory"),
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."), "out of memory"),
        (RuntimeError("unable to allocate shared memory(shm) for </torch_1>"), "--workers 0"),
        (RuntimeError("Bus error. Might be out of shared memory."), "--workers 0"),
        (OSError(28, "No space left"), "No space left"),
    ],
)
def test_what_a_machine_lacks_and_a_users_mistakes_are_one_line(error, words, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(fail)
    [line] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and words in line


def test_a_fault_of_the_program_keeps_its_traceback():
    def fail():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run(fail)


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py")))
def test_ctrl_c_during_the_imports_is_quiet(script, tmp_path):
    """Each script imports one of these early, as PyTorch takes seconds to."""
    for name in ("numpy", "torch", "gradio", "pandas", "huggingface_hub"):
        stop = f"import os, signal\nos.kill(os.getpid(), {signal.SIGINT:d})\n"
        (tmp_path / f"{name}.py").write_text(stop)
    stopped = subprocess.run(
        [sys.executable, ROOT / script, "x"],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert stopped.returncode in (-signal.SIGINT, 130, 0, 2), stopped.stderr
    assert "Traceback" not in stopped.stderr


SIGNALLED = """
import os, sys, time
from speech.cli import map_processes, run, write_atomically

def wait(seconds):
    if seconds == 1:
        time.sleep(0.3)
        os._exit(1)
    time.sleep(seconds)

def main():
    if sys.argv[1] == "0":
        list(map_processes(wait, [1, 2], jobs=2))
    with write_atomically("out") as file:
        file.write_text("whole")
        os.kill(os.getpid(), int(sys.argv[1]))

run(main)
"""


def signalled(folder, number, *before):
    """A script that a signal comes to while it writes -> the finished process."""
    command = [*before, sys.executable, "-c", SIGNALLED, str(int(number))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
    return subprocess.run(command, timeout=60, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_script_as_an_error_does(tmp_path, number):
    process = signalled(tmp_path, number)
    assert (process.returncode, process.stderr) == (128 + number, "")
    assert not os.listdir(tmp_path)


def test_nohup_is_left_alone(tmp_path):
    process = signalled(tmp_path, signal.SIGHUP, "nohup")
    assert process.returncode == 0 and (tmp_path / "out").read_text() == "whole"


def test_a_pools_process_is_killed_by_a_signal(tmp_path):
    """One that was lost lets the pool kill the others; it waits for them."""
    assert "a process was killed" in signalled(tmp_path, 0).stderr


def test_a_line_is_a_line_whatever_stands_in_it(capsys):
    print_lines("note: f\nAUROC 0.999\x1b[31m", "", 7)
    assert capsys.readouterr().out == r"note: f\nAUROC 0.999\x1b[31m" + "\n\n7\n"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="No space left"), write_atomically(path) as file:
        file.write_bytes(b"ne")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["w.safetensors"]


def test_a_link_is_written_through_and_what_is_no_file_stays(tmp_path):
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    with write_atomically(link) as file:
        file.write_text("new")
    assert link.is_symlink() and real.read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/null"):
        refused = pytest.raises(InputError, match="not a regular file|a folder")
        with refused, write_atomically(path) as file:
            file.write_text("never")
        with pytest.raises(InputError, match="not a regular file|a folder"):
            check_writable(path)
    assert sorted(os.listdir(tmp_path)) == ["link.txt", "pipe", "real.txt"]


def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    for path in (tmp_path / "pipe", "/dev/null", tmp_path / "file"):
        with open_for_writing(path) as file:
            file.write("a,b\r\n")
    reader.join()
    assert found == ["a,b\n"] and sorted(os.listdir(tmp_path)) == ["file", "pipe"]
    assert (tmp_path / "file").read_bytes() == b"a,b\r\n"
    with pytest.raises(InputError, match="a folder"), open_for_writing(tmp_path):
        pass


def test_a_lock_refuses_the_second_and_ends_with_the_first(tmp_path):
    path = tmp_path / "w"
    refused = pytest.raises(InputError, match="another run is writing it")
    with locked(path), refused, locked(path):
        pass
    with locked(path):
        pass
    assert not os.listdir(tmp_path)


def test_a_lock_is_of_the_file_and_not_of_its_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    refused = pytest.raises(InputError, match="another run is writing it")
    with locked(tmp_path / "real"), refused, locked(tmp_path / "link"):
        pass
    refused = pytest.raises(InputError, match="another run is writing it")
    with open_for_writing(tmp_path / "link") as file, refused, open_for_writing(tmp_path / "real"):
        pass
    assert file.closed and sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        open_file(tmp_path / "pipe")


@pytest.mark.parametrize(
    "low, kind, below, text, expected",
    [
        (1, int, math.inf, "0", "expected an integer >= 1, found '0'"),
        (1, int, math.inf, "1.5", "expected an integer >= 1, found '1.5'"),
        (0, float, 1, "1", "expected a number >= 0 and < 1, found '1'"),
        (0, float, math.inf, "nan", "expected a number >= 0, found 'nan'"),
    ],
)
def test_argument_types_say_what_they_expect(low, kind, below, text, expected):
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        at_least(low, kind, below)(text)
    assert str(caught.value) == expected
    assert at_least(1)("7") == 7 and at_least(0, float, 1)("0.5") == 0.5


def test_problems_are_counted_and_ten_named():
    line = join_problems("x.csv", [f"row {i}" for i in range(25)])
    assert line.startswith("x.csv: 25 problems: row 0; row 1;") and line.endswith("; and 15 more")
    assert join_problems("x.csv", ["row 1"]) == "x.csv: 1 problem: row 1"
    assert join_names("abc", 2) == "a, b and 1 more" and join_names("ab", 2) == "a, b"


def test_what_is_optional_destroys_nothing(capsys):
    with optional("picture"):
        raise ValueError("no\nfont")
    assert capsys.readouterr().out == "picture: not available (no)\n"


def test_processes_keep_the_order_and_a_killed_one_is_one_line():
    assert list(map_processes(abs, [-3, 2, -1], jobs=2)) == [3, 2, 1]
    with pytest.raises(InputError, match="a process was killed"):
        list(map_processes(os._exit, [1, 1], jobs=2))


def test_a_process_of_several_ends_without_the_interpreter(monkeypatch):
    ended = []
    monkeypatch.setattr(cli, "WORLD", 2)
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(SystemExit):
        cli.run(lambda: 3)
    assert ended == [3]
