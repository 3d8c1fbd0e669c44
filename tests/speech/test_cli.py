"""Errors in one line, argument types, atomic files, signals, processes."""

import argparse
import math
import os

import pytest

from speech.cli import (
    InputError,
    at_least,
    check_writable,
    join_names,
    join_problems,
    locked,
    map_processes,
    open_file,
    optional,
    write_atomically,
)


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


def test_a_lock_refuses_the_second_and_ends_with_the_first(tmp_path):
    path = tmp_path / "w"
    refused = pytest.raises(InputError, match="another run is writing it")
    with locked(path), refused, locked(path):
        pass
    with locked(path):
        pass
    assert not os.listdir(tmp_path)


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
