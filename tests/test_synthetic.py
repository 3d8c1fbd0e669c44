"""Synthetic voices: deterministic, as training reads them, different only as --signal says."""

import json
import os
import signal
import subprocess
import sys
import time

import synthetic
from speech.audio import log_mel, read_sound
from speech.cli import InputError, locked
from speech.dataset import read_labels, read_spectrogram
from synthetic import (
    RATE,
    draw_label_and_gender,
    draw_person,
    glottal_pulses,
    make_clip,
    make_dataset,
)

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, call_script, error_line
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict


def speak(number=0, label=0, clip=0, signal=1.0, seed=7, **traits):
    person = draw_person(number, label, "female", signal, seed)._replace(**traits)
    return make_clip(person, np.random.default_rng([seed, clip]))


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    out = tmp_path_factory.mktemp("voices") / "out"
    assert make_dataset(out, participants=4, clips=2, seed=5, wav=True, jobs=2) == 8
    return out


# --- the dataset --------------------------------------------------------------------------------


def test_training_reads_what_is_written(voices):
    frame, notes = read_labels(voices / "dataset.csv")
    assert list(frame) == ["id", "label", "participant", "gender"] and not notes
    assert frame["id"].tolist()[:3] == ["S001_clip_0", "S001_clip_8", "S002_clip_0"]
    assert frame["participant"].tolist() == [f"S00{n}" for n in (1, 1, 2, 2, 3, 3, 4, 4)]
    assert {path.stem for path in (voices / "Spectrograms").iterdir()} == set(frame["id"])
    for name in frame["id"]:
        clip = np.load(voices / "Spectrograms" / f"{name}.npy")
        assert clip.shape == (128, 251) and clip.dtype == np.float32
        assert clip.min() == 0 and clip.max() == 1
        assert np.array_equal(read_spectrogram(voices / "Spectrograms" / f"{name}.npy"), clip)


def test_the_dataset_says_that_it_is_synthetic(voices):
    about = json.loads((voices / "dataset.json").read_text())
    assert about["synthetic"] is True and about["corpus"] == "synthetic voices"
    assert about["settings"]["sample_rate"] == 16_000 and about["versions"]["numpy"]
    assert about["counts"] == {"clips": 8, "participants": 4}


def test_recordings_give_the_very_same_spectrograms(voices):
    for path in (voices / "Recordings").iterdir():
        (samples,) = read_sound(path)
        assert samples.shape == (8 * RATE,)
        clip = np.load(voices / "Spectrograms" / f"{path.stem}.npy")
        np.testing.assert_allclose(log_mel(samples), clip, atol=1e-6)
    assert len(list((voices / "Recordings").iterdir())) == 8


def test_same_bytes_with_other_jobs_and_without_wav(voices, tmp_path):
    make_dataset(tmp_path, participants=4, clips=2, seed=5, jobs=1)
    expected = {k: v for k, v in contents(voices).items() if not k.startswith("Recordings")}
    assert contents(tmp_path) == expected


def test_a_clip_depends_on_seed_participant_and_clip_alone(voices, tmp_path):
    make_dataset(tmp_path / "more", participants=6, clips=1, seed=5)
    make_dataset(tmp_path / "other", participants=4, clips=1, seed=6)
    clips, more, other = (contents(out) for out in (voices, tmp_path / "more", tmp_path / "other"))
    shared = [f"Spectrograms/S00{n}_clip_0.npy" for n in (1, 2, 3, 4)]
    assert all(more[name] == clips[name] for name in shared)
    assert not any(other[name] == clips[name] for name in shared)
    spectrograms = [v for k, v in (clips | more).items() if k.startswith("Spectrograms")]
    assert len(set(spectrograms)) == len(spectrograms) == 10


@pytest.mark.parametrize("seed", range(20))
def test_labels_and_genders_are_balanced(seed):
    table = pd.DataFrame(
        [draw_label_and_gender(n, seed) for n in range(48)], columns=["label", "gender"]
    )
    assert (table.value_counts() == 12).all() and len(table.value_counts()) == 4
    assert table["label"][:6].sum() == 3


def test_the_order_of_labels_is_a_coin():
    first = [[draw_label_and_gender(n, seed)[0] for n in range(0, 48, 2)] for seed in range(40)]
    assert 0.45 < np.mean(first) < 0.55
    assert len(set(map(tuple, first))) == 40


# --- the signal ---------------------------------------------------------------------------------


def test_without_signal_the_label_changes_nothing():
    for number in range(3):
        well, depressed = (draw_person(number, label, "male", 0.0, 7) for label in (0, 1))
        sounds = [make_clip(person, np.random.default_rng(1)) for person in (well, depressed)]
        assert np.array_equal(*sounds)
    assert not np.array_equal(speak(label=0), speak(label=1))


def measure_f0(samples):
    """f0 in Hz and harmonicity (0 to 1) of the loud frames, by autocorrelation."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::512]
    frames = frames[frames.std(1) > 0.3 * frames.std(1).max()]
    power = np.abs(np.fft.rfft(frames * np.hanning(1024), 4096)) ** 2
    correlation = np.fft.irfft(power)[:, : RATE // 60]
    correlation /= correlation[:, :1]
    lags = RATE // 400 + correlation[:, RATE // 400 :].argmax(1)
    height = correlation[np.arange(len(lags)), lags]
    return RATE / lags[height > 0.5], height.mean()


def measure(samples):
    """What the label is said to shift, heard from outside."""
    power = uniform_filter1d(samples.astype(float) ** 2, RATE // 20)[:: RATE // 100]
    decibels = 10 * np.log10(power / power.max() + 1e-9)
    spoken = uniform_filter1d((decibels > -35).astype(float), 15) > 0  # stops are no pauses
    f0, harmonicity = measure_f0(samples)
    syllables = find_peaks(uniform_filter1d(decibels, 5), prominence=1.0, height=-25)[0]
    return {
        "pitch": np.median(f0),
        "melody": np.log(f0).std(),
        "rate": len(syllables) / spoken.sum(),
        "pauses": 1 - spoken.mean(),
        "level": samples.std(),
        "harmonicity": harmonicity,
    }


def test_f0_is_measured_right_and_pulses_do_not_alias():
    f0 = 110.0 * 2 ** np.linspace(0, 1, 8 * RATE)
    measured, _ = measure_f0(glottal_pulses(f0).astype(np.float32))
    assert abs(np.median(measured) / np.median(f0) - 1) < 0.02
    spectrum = np.abs(np.fft.rfft(glottal_pulses(np.full(RATE, 310.0)) * np.blackman(RATE)))
    near = np.abs((np.arange(len(spectrum)) + 155) % 310 - 155) < 5  # 1 Hz per bin
    assert spectrum[~near].max() < 1e-4 * spectrum.max()


QUIET = {"room": 1e-4, "colour": np.zeros(6)}


@pytest.fixture(scope="module")
def shifts():
    """Logarithm of what label 1 does to each measure, a row for each of 12 people."""
    heard = {
        label: pd.DataFrame([measure(speak(n // 2, label, n % 2, **QUIET)) for n in range(24)])
        for label in (0, 1)
    }
    return np.log(heard[1] / heard[0]).groupby(np.arange(24) // 2).mean()


@pytest.mark.parametrize("name, sign", [("pitch", -1), ("melody", -1), ("rate", -1), ("pauses", 1)])
def test_label_1_shifts_what_the_literature_reports(shifts, name, sign):
    assert sign * shifts[name].mean() > 2 * shifts[name].sem()


@pytest.mark.parametrize(
    "trait, name, sign",
    [
        ("pitch", "pitch", -1),
        ("melody", "melody", -1),
        ("rate", "rate", -1),
        ("phrase", "pauses", 1),
        ("pause", "pauses", 1),
        ("level", "level", -1),
        ("breath", "harmonicity", -1),
    ],
)
def test_each_trait_alone_is_heard(trait, name, sign):
    heard = []
    for number in range(4):
        shifted = getattr(draw_person(number, 1, "female", 2.0, 7), trait)
        well, depressed = speak(number, **QUIET), speak(number, **QUIET | {trait: shifted})
        heard.append(np.log(measure(depressed)[name] / measure(well)[name]))
    assert sign * np.mean(heard) > 0.01


def test_classes_overlap():
    people = [draw_person(n, n % 2, "male", 1.0, 7) for n in range(200)]
    for trait, (_, _, shift) in synthetic.TRAITS.items():
        values = np.array([getattr(person, trait) for person in people])
        above = np.mean(values[1::2, None] > values[None, ::2])  # the AUROC of this trait alone
        assert 0.02 < above < 0.98
        assert not shift or np.sign(above - 0.5) == np.sign(shift)


def test_people_are_recognised_without_signal():
    """The coin-flip experiment needs it: a split by clip scores higher than it should."""
    clips = [log_mel(speak(n // 5, clip=n % 5)) for n in range(40)]
    features = [np.concatenate([clip.mean(1), clip.std(1)]) for clip in clips]
    model = LogisticRegression(C=10, max_iter=1000)
    guesses = cross_val_predict(model, features, np.arange(40) // 5, cv=5)
    assert np.mean(guesses == np.arange(40) // 5) > 0.6  # chance is 0.125


# --- interruptions ------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_was(voices, tmp_path):
    def make():
        return make_dataset(tmp_path, participants=4, clips=2, seed=5, wav=True, jobs=1)

    make()
    (tmp_path / "dataset.csv").unlink()
    info = json.loads((tmp_path / "dataset.json").read_text())
    del info["format"]  # as an earlier version left it
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    lost = tmp_path / "Spectrograms" / "S002_clip_8.npy"
    lost.unlink()
    (tmp_path / "Spectrograms" / "S003_clip_0.npy").write_bytes(b"")  # as a power cut leaves it
    kept = (tmp_path / "Spectrograms" / "S001_clip_0.npy").stat().st_mtime_ns
    assert make() == 2
    assert contents(tmp_path) == contents(voices)
    assert (tmp_path / "Spectrograms" / "S001_clip_0.npy").stat().st_mtime_ns == kept
    assert make() == 0


def test_dataset_csv_comes_last(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise InputError("the disk is full")

    monkeypatch.setattr(synthetic, "map_processes", fail)
    with pytest.raises(InputError, match="the disk is full"):
        make_dataset(tmp_path, participants=4, clips=1, jobs=1)
    assert (tmp_path / "dataset.json").exists() and not (tmp_path / "dataset.csv").exists()


def test_recordings_are_added_to_a_dataset_without(voices, tmp_path):
    options = {"participants": 4, "clips": 2, "seed": 5, "jobs": 1}
    make_dataset(tmp_path, **options)
    make_dataset(tmp_path, **options, wav=True)
    assert contents(tmp_path) == contents(voices)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once_and_leaves_no_dataset_csv(tmp_path, number):
    command = [sys.executable, ROOT / "synthetic.py", "--participants", "400", "--out", tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.time() + 60
    while not list(tmp_path.glob("Spectrograms/*.npy")) and time.time() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, number)  # as a terminal does
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number and "Traceback" not in errors
    assert not (tmp_path / "dataset.csv").exists() and not (tmp_path / ".dataset.csv.lock").exists()


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    for folder in ("Spectrograms", "Recordings"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".S001_clip_0.npy.12.tmp").touch()
    with locked(tmp_path / "dataset.csv"), pytest.raises(InputError, match="another run"):
        make_dataset(tmp_path, participants=4, clips=1, jobs=1)
    assert len(list(tmp_path.rglob("*.tmp"))) == 2
    make_dataset(tmp_path, participants=4, clips=1, jobs=1)
    assert not list(tmp_path.rglob("*.tmp"))


# --- the command line ---------------------------------------------------------------------------


def test_the_command_makes_a_dataset_and_says_what_to_do_with_it(tmp_path):
    command = ("--participants", 4, "--clips-per-participant", 1, "--out", tmp_path / "v")
    process = call_script("synthetic.py", *command, "--jobs", 1)
    assert process.returncode == 0
    assert "4 clips of 4 people" in process.stdout and "--labels" in process.stdout
    assert "is there already" in call_script("synthetic.py", *command).stdout
    assert "another dataset" in error_line(call_script("synthetic.py", *command, "--seed", 1))
    assert "another dataset" in error_line(call_script("synthetic.py", *command, "--signal", 0))


def test_as_many_processes_as_this_one_may_use_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    monkeypatch.setattr("sys.argv", ["synthetic.py"])
    assert synthetic.parse_arguments().jobs == 3
    monkeypatch.setattr(synthetic, "make_all", lambda _tasks, jobs, _make: used.append(jobs))
    used = []
    make_dataset(tmp_path, participants=4, clips=1)
    assert used == [3]


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--participants", 3),
        ("--clips-per-participant", 0),
        ("--signal", -1),
        ("--signal", "nan"),
        ("--signal", 5),
        ("--seed", -1),
        ("--jobs", 0),
    ],
)
def test_numbers_out_of_range(tmp_path, flag, value):
    line = error_line(call_script("synthetic.py", "--out", tmp_path / "v", f"{flag}={value}"))
    assert flag in line and str(value) in line and "expected" in line
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("name", ["dataset.csv", "dataset.json", "Spectrograms/a.npy"])
def test_another_dataset_is_left_alone(tmp_path, name):
    (tmp_path / "Spectrograms").mkdir()
    (tmp_path / name).write_text("[]")
    line = error_line(call_script("synthetic.py", "--out", tmp_path))
    assert str(tmp_path) in line and "another dataset" in line
    assert contents(tmp_path) == {name: b"[]"}


def test_an_out_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    line = error_line(call_script("synthetic.py", "--out", tmp_path / "file" / "v"))
    assert "file" in line and "cannot be written" in line
