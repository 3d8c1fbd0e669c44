"""Errors in one line, argument types, atomic files, signals, processes."""

import os

import pytest

from speech.cli import InputError, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="No space left"), write_atomically(path) as file:
        file.write_bytes(b"ne")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["w.safetensors"]
