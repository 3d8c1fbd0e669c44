"""What several test files need: small datasets, weights, and scripts run as a user runs them."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import common
from speech import report
from speech.cli import InputError, run
from speech.metadata import DataSummary, hash_participant, make_metadata
from speech.report import METRICS

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
FUZZ = int(os.environ.get("FUZZ", 2000))  # hostile inputs per reader; FUZZ=100000 pytest -k fuzz
SHAPE = (16, 24)
# One second of 8 kHz makes a clip of SHAPE: 8000 // 340 + 1 frames.
SOUND = {"sample_rate": 8000, "n_fft": 512, "hop_length": 340, "n_mels": 16, "clip_seconds": 1}
QUICK = ("--epochs", 2, "--batch-size", 8, "--members", 1, "--threads", 1)
SHARED = ROOT.parent / "shared" / "data"  # real speech, where it is at hand
LONGEST = "test_browser.py", "test_experiment.py", "test_tune.py", "test_demo.py"

# Whoever runs the tests in the background (nohup, a script's &) may have these ignored, and what
# they start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """The longest files begin first: at the end no process waits for one of them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def write_clips(folder, participants=12, clips=6, shape=SHAPE, seed=0, labels=None):
    """Spectrograms/ and dataset.csv of made-up people; label 1 is louder in the low bins."""
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    (folder / "Spectrograms").mkdir(parents=True)
    rows = []
    for person in range(participants):
        label = person % 2 if labels is None else labels[person]
        colour = rng.normal(size=(shape[0], 1))
        for clip in range(clips):
            array = rng.normal(size=shape) + colour
            array[: shape[0] // 4] += 1.5 * label
            name = f"{person:03}_clip_{8 * clip}"
            np.save(folder / "Spectrograms" / f"{name}.npy", array.astype(np.float32))
            rows.append({"id": name, "label": label})
    pd.DataFrame(rows).to_csv(folder / "dataset.csv", index=False)
    return folder


def write_weights(path, name="lstm", shape=(128, 251), synthetic=False, seed=0, **arguments):
    """Untrained weights with the metadata of trained ones."""
    torch.manual_seed(seed)
    model = common.find_model(name)(*shape, **arguments)
    table = dict.fromkeys(METRICS, {"value": 0.7, "low": 0.6, "high": 0.8})
    data = DataSummary(
        corpus="synthetic voices" if synthetic else "a test's",
        synthetic=synthetic,
        sha256="0" * 64,
        content="0" * 64,
        split="participant",
        folds=None,
        total={"clips": 42, "participants": 12},
        clips={"train": 30, "val": 4, "test": 8},
        participants={"train": 8, "val": 2, "test": 2},
        on_both_sides={},
        seen=[hash_participant("001")],
    )
    test = {"clips": table, "participants": table}
    known = 1.5, None, dataclasses.asdict(data), test
    metadata = make_metadata(model.name, model.arguments, *known)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    common.save_weights(path, model, metadata)
    return path


def run_script(script, *arguments, cwd=ROOT, **environment):
    """Runs a script of the repository in a process of its own -> the finished process."""
    return subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def call_script(script, *arguments):
    """What run_script does, in this process: without the seconds that imports take."""
    return call_main(importlib.import_module(Path(script).stem).main, script, *arguments)


def call_main(main, script, *arguments):
    """What a script does whose main() is given."""
    out, err, argv, status = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = [script, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run(main)
    except SystemExit as stopped:
        status = stopped.code or 0
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(script, status, out.getvalue(), err.getvalue())


def data_flags(folder):
    """The flags that name what write_clips wrote."""
    return ["--spectrograms", folder / "Spectrograms", "--labels", folder / "dataset.csv"]


def train(script, folder, out, *arguments, picture=False):
    """Runs a training script on a folder of write_clips.

    Args:
        picture: whether the report's is drawn, which takes two thirds of a small training.
    """
    draw = report.draw_report if picture else lambda path, *_: Path(path).touch()
    with mock.patch.object(report, "draw_report", draw):
        return call_script(script, *data_flags(folder), "--weights", out, *arguments)


fuzzed = settings(max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck))


@contextlib.contextmanager
def refused_or_read():
    """What is read within is right, or raises InputError in one line; memory stays bounded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 3000, repr(error)[:5000]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**17  # KiB


def error_line(process) -> str:
    """The one line that reports a user's mistake."""
    assert process.returncode == 2, process.stdout + process.stderr
    assert "Traceback" not in process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    return lines[0]


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with cnn.safetensors and lstm.safetensors for (128, 251) clips."""
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder / "cnn.safetensors", "cnn")
    write_weights(folder / "lstm.safetensors", "lstm", steps="time", pool="mean")
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """A small weights file taken apart: the tensors' part of its header, metadata, data."""
    path = tmp_path_factory.mktemp("parts") / "w.safetensors"
    write_weights(path, "lstm", SHAPE, hidden_size=2, num_layers=1)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__")["speech-depression"])
    metadata["preprocessing"]["sound"] = SOUND
    return header, metadata, content[8 + length :]


def weights_file(header, metadata, data, length=None):
    """A safetensors file that may say anything; what is no text is put there as JSON."""
    inner = metadata if isinstance(metadata, str) else json.dumps(metadata)
    header = {"__metadata__": {"speech-depression": inner}} | header
    header = json.dumps(header).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def changed(value, *where):
    """A copy of nested dicts and lists, with what is `where`[:-1] replaced by its last."""
    if len(where) == 1:
        return where[0]
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[where[0]] = changed(copy.get(where[0]) if isinstance(copy, dict) else None, *where[1:])
    return copy
