"""prepare.py from recordings to a dataset: what it writes and reports, killed runs, second runs."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import prepare
from speech.audio import SETTINGS, log_mel
from speech.cli import locked
from speech.corpora import Findings, Session
from speech.dataset import read_labels, read_spectrogram, split_clips

import librosa
import numpy as np
import pytest
import soundfile
from conftest import SHARED, call_script, error_line
from recordings import (
    FAULTS,
    RATE,
    hears_tone,
    make_rows,
    spoil,
    write_daic_session,
    write_recording,
)


def run_prepare(source, out, *arguments):
    return call_script("prepare.py", source, "--out", out, "--jobs", 2, *arguments)


def read_dataset(out):
    """(rows by id, dataset.json), having checked that rows and clips are each other's."""
    rows = read_labels(out / "dataset.csv")[0].set_index("id", drop=False)
    assert sorted(rows.index) == sorted(p.stem for p in (out / "Spectrograms").iterdir())
    assert sorted(p.name for p in out.iterdir()) == ["Spectrograms", "dataset.csv", "dataset.json"]
    clips = {name: read_spectrogram(out / "Spectrograms" / f"{name}.npy") for name in rows.index}
    assert {clip.shape for clip in clips.values()} == {(128, 251)}
    loudest = {name: hears_tone(clip) for name, clip in clips.items()}
    assert max(loudest.values()) < 0.2, loudest
    return rows, json.loads((out / "dataset.json").read_text())


def read_bytes(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


# --- a corpus -----------------------------------------------------------------------------------


def test_a_corpus_becomes_a_dataset(tmp_path):
    """DAIC-WOZ: a transcript that runs early, a wrong label, one without the interviewer."""
    root = tmp_path / "daic"
    ellie = make_rows((0, 2), (17, 18), text="how are you today", speaker="Ellie")
    write_daic_session(root, "321", 60, ellie + make_rows((2.001, 16.5), (18, 40)), late=3.84)
    write_daic_session(root, "409", 25, ellie + make_rows((2, 12)))
    write_daic_session(root, "451", 25, make_rows((2, 20.5)))
    header = "Participant_ID,PHQ8_Binary,PHQ8_Score,Gender\n"
    train = header + "321,1,20,0\n409,0,10,1\n"
    (root / "train_split_Depression_AVEC2017.csv").write_text(train)
    (root / "dev_split_Depression_AVEC2017.csv").write_text(f"{header}451,1,17,0\n")
    process = run_prepare(root, tmp_path / "out")
    assert process.returncode == 0, process.stdout + process.stderr
    rows, info = read_dataset(tmp_path / "out")
    clips = [
        *(f"321_clip_{s}" for s in (0, 8, 16, 24)),
        *("409_clip_0", "451_clip_0", "451_clip_8"),
    ]
    assert list(rows.index) == clips and set(rows["label"]) == {1}
    assert rows["split"].tolist() == ["train"] * 5 + ["val"] * 2
    assert rows["gender"].tolist() == ["male"] * 4 + ["female"] + ["male"] * 2
    assert info["corpus"] == "DAIC-WOZ" and info["settings"] == SETTINGS
    assert info["synthetic"] is False and info["counts"] == {"clips": 7, "participants": 3}
    assert sorted(line[:3] for line in info["corrections"]) == ["321", "409"]
    assert all(f"corrected: {line}" in process.stdout for line in info["corrections"])
    assert "DAIC-WOZ (3 files like 321_P/321_TRANSCRIPT" in process.stdout
    assert "note: 451: no interviewer" in process.stdout
    # Clips are cut from the joined turns.
    samples, _ = soundfile.read(root / "321_P" / "321_AUDIO.wav", dtype="float32")
    turns = [(5.841, 20.34), (21.84, 43.84)]
    joined = np.concatenate([samples[round(a * RATE) : round(b * RATE)] for a, b in turns])
    for start in (0, 8, 16, 24):
        clip = read_spectrogram(tmp_path / "out" / "Spectrograms" / f"321_clip_{start}.npy")
        by_hand = log_mel(joined[start * RATE : (start + 8) * RATE])
        np.testing.assert_allclose(clip, by_hand, atol=1e-6)


def test_turns_past_the_end_of_the_sound(tmp_path):
    path = write_recording(tmp_path / "a.wav", 20)
    session = Session("300", "300", 0, None, None, [(path, 2, 15), (path, 18, 25)])
    findings = Findings()
    assert prepare.plan([session], SETTINGS, findings) and session.seconds == 15
    assert findings.notes == ["300: 5.0 s of its turns are past the sound's end"]


# --- a folder of recordings ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Four people's recordings, of which one in two files with two labels."""
    root = tmp_path / "recordings"
    for seed, name in enumerate(["a.wav", "b.wav", "more/c.flac", "d1.wav", "d2.wav"]):
        write_recording(root / name, 17, seed=seed, rate=(RATE, 22_050)[seed % 2])
    rows = ["a.wav,0,a,m,train", "b.wav,1,bea,F,dev", "more/c.flac,1,007,,test"]
    rows += ["d1.wav,0,dee,female,train", "d2.wav,1,dee,female,train"]
    header = "File,label,participant,gender,split"
    (tmp_path / "labels.csv").write_text("\n".join([header, *rows, ""]))
    return root


def edit_labels(folder, *changes):
    path = folder.parent / "labels.csv"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def prepare_folder(folder, *arguments, out=None):
    out = out or folder.parent / "out"
    return run_prepare(folder, out, "--labels", folder.parent / "labels.csv", *arguments)


def test_folder(folder):
    process = prepare_folder(folder)
    assert process.returncode == 0, process.stdout + process.stderr
    rows, info = read_dataset(folder.parent / "out")
    assert rows.loc["dee_clip_0", "label"] == 0 and rows.loc["dee_clip_16", "label"] == 1
    assert list(rows.index) == [
        *("a_clip_0", "a_clip_8", "bea_clip_0", "bea_clip_8", "007_clip_0", "007_clip_8"),
        *("dee_clip_0", "dee_clip_8", "dee_clip_16", "dee_clip_24"),
    ]
    facts = [tuple(row) for row in rows[["split", "gender"]].fillna("none").to_numpy()]
    assert facts[:6:2] == [("train", "male"), ("val", "female"), ("test", "none")]
    assert info["corpus"] == "recordings"


def test_clip_seconds(folder):
    out = folder.parent / "out"
    assert prepare_folder(folder, "--clip-seconds", 5).returncode == 0
    assert json.loads((out / "dataset.json").read_text())["settings"]["clip_seconds"] == 5
    rows, _ = read_labels(out / "dataset.csv")
    assert rows["id"][:4].tolist() == ["a_clip_0", "a_clip_5", "a_clip_10", "bea_clip_0"]
    assert read_spectrogram(out / "Spectrograms" / "a_clip_5.npy").shape == (128, 157)


def test_dry_run_tells_what_a_run_does_and_writes_nothing(folder):
    dry = prepare_folder(folder, "--dry-run")
    assert dry.returncode == 0 and not (folder.parent / "out").exists()
    lines = dict(line.split(maxsplit=1) for line in dry.stdout.splitlines()[2:])
    assert lines["all"].split() == ["4", "3", "5", "1.4", "10"]
    assert lines["train"].split() == ["2", "1", "3", "0.8", "6"]
    wet = prepare_folder(folder)
    assert wet.stdout.startswith(dry.stdout)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data with EMO-DB is not there")
def test_emodb_becomes_a_dataset(tmp_path):
    emodb = SHARED / "emodb"
    process = run_prepare(emodb / "recordings", tmp_path, "--labels", emodb / "labels.csv")
    assert process.returncode == 0, process.stdout + process.stderr
    rows, _ = read_labels(tmp_path / "dataset.csv")
    lengths = {p.name: soundfile.info(p).duration for p in (emodb / "recordings").iterdir()}
    assert len(rows) == sum(int(length // 8) for length in lengths.values())
    split = split_clips(rows, "participant", 0)
    assert all(len(side) for side in split.values())
    first, _ = librosa.load(emodb / "recordings" / "203_high.wav", sr=None, duration=8)
    clip = read_spectrogram(tmp_path / "Spectrograms" / "203_clip_0.npy")
    np.testing.assert_allclose(clip, log_mel(first), atol=1e-6)


# --- bad input ----------------------------------------------------------------------------------


def test_mistakes_are_one_line(folder, tmp_path):
    out = tmp_path / "out"
    assert "no such folder" in error_line(run_prepare(tmp_path / "none", out))
    assert "found 4 .wav, 1 .flac" in error_line(run_prepare(folder, out))
    edit_labels(folder, ("a.wav,0", "a.wav,2"), ("bea", "../bea"))
    line = error_line(prepare_folder(folder))
    assert "labels.csv: 2 problems: " in line and "row 2: label '2'" in line
    assert not out.exists()


def test_bad_recordings_are_named_and_the_others_done(folder):
    faults = [*FAULTS, "silent", "short"]
    for fault in faults:
        spoil(folder / f"{fault}.wav", fault)
    labels = folder.parent / "labels.csv"
    labels.write_text(labels.read_text() + "".join(f"{f}.wav,0,p_{f},,train\n" for f in faults))
    process = prepare_folder(folder)
    assert process.returncode == 1 and not process.stderr
    problems = [line for line in process.stdout.splitlines() if line.startswith("problem: ")]
    named = Counter(re.match(r"problem: recordings/(\w+)\.wav: ", line)[1] for line in problems)
    assert named == Counter(faults)
    assert "short.wav: 7.0 s of speech make no clip" in process.stdout
    rows, info = read_dataset(folder.parent / "out")
    assert len(rows) == 10 and len(info["problems"]) == len(faults)
    again = prepare_folder(folder)
    assert (again.returncode, again.stdout) == (1, process.stdout)


def test_silent_clips_are_counted(folder):
    samples, rate = soundfile.read(folder / "a.wav")
    samples[8 * rate : 16 * rate] = 0
    soundfile.write(folder / "a.wav", samples, rate)
    process = prepare_folder(folder)
    assert process.returncode == 0
    assert "note: recordings/a.wav: 1 silent clips are left out" in process.stdout
    rows, _ = read_dataset(folder.parent / "out")
    assert len(rows) == 9 and "a_clip_8" not in rows.index


def test_nothing_readable(folder):
    for path in folder.rglob("*.*"):
        path.write_text("text")
    process = prepare_folder(folder)
    assert "none of 5 sessions gave a clip" in error_line(process)
    assert process.stdout.count("problem:") == 5 and not (folder.parent / "out").exists()
    for path in folder.rglob("*.*"):  # headers are whole, the sound is not
        spoil(path, "damaged")
    assert "none of 5 sessions gave a clip" in error_line(prepare_folder(folder))
    assert not [path for path in (folder.parent / "out").rglob("*") if path.is_file()]


def test_recordings_shorter_than_a_clip_name_the_flag(folder):
    for seconds, path in zip((3.5, 3.2, 4.9, 3.3, 7), sorted(folder.rglob("*.*")), strict=True):
        write_recording(path, seconds)
    process = prepare_folder(folder)
    line = error_line(process)
    assert "they hold 3.2 to 7.0 s of speech, a clip 8 s: try --clip-seconds 3" in line
    assert "5 with too little speech for a clip" in process.stdout
    assert prepare_folder(folder, "--clip-seconds", 3).returncode == 0


def test_out_is_a_file_is_told_at_the_start(folder):
    (folder.parent / "out").write_text("a file")
    for flags in ((), ("--dry-run",)):
        process = prepare_folder(folder, *flags)
        assert "out: a file, expected a folder" in error_line(process) and not process.stdout


@pytest.mark.parametrize("flags", [(), ("--dry-run",), ("--overwrite",)])
def test_labels_that_the_run_would_replace(folder, monkeypatch, flags):
    monkeypatch.chdir(folder.parent)
    labels = (folder.parent / "labels.csv").rename("dataset.csv")
    content = labels.read_text()
    for name in ("dataset.csv", "./dataset.csv", folder / ".." / "dataset.csv"):
        process = call_script("prepare.py", folder, "--labels", name, *flags)
        line = error_line(process)
        assert f"--labels {Path(name)}: " in line and "dataset.csv of --out" in line
        assert "rename" in line and not process.stdout
    assert labels.read_text() == content and not (folder.parent / "Spectrograms").exists()


@pytest.mark.parametrize("person", ["a" * 240, "ü" * 120])
def test_names_too_long_for_a_clips_file_are_told_by_the_plan(folder, person):
    edit_labels(folder, ("bea", person))
    line = error_line(prepare_folder(folder, "--dry-run"))
    assert person[:20] in line and "bytes" in line and "shorten" in line and len(line) < 300
    assert line == error_line(prepare_folder(folder)) and not (folder.parent / "out").exists()
    edit_labels(folder, (person, person[: len(person) * 9 // 10]))
    assert prepare_folder(folder).returncode == 0


def test_how_recordings_are_read_is_noted(folder):
    voice, _ = soundfile.read(folder / "a.wav")
    soundfile.write(folder / "a.wav", np.stack([voice, -0.9 * voice], axis=1), RATE)
    whole = bytearray((folder / "d1.wav").read_bytes())
    whole[4:8] = whole[40:44] = bytes(4)
    (folder / "d1.wav").write_bytes(whole)
    for flags in (("--dry-run",), (), ()):
        process = prepare_folder(folder, *flags)
        assert process.returncode == 0
        assert "note: recordings/a.wav: the channels cancel each other out" in process.stdout
        assert "note: recordings/d1.wav: its header was never finalised" in process.stdout
    rows, info = read_dataset(folder.parent / "out")
    assert len(rows) == 10 and len(info["notes"]) == 3  # and somebody's both labels


def test_pipes_and_loops_below_the_source(folder):
    os.mkfifo(folder / "pipe.wav")
    (folder / "loop").symlink_to(".")
    process = prepare_folder(folder)
    assert process.returncode == 0
    assert process.stdout.splitlines()[-2] == "accounted for: 5 of 5 sound files: 5 used"
    assert len(read_dataset(folder.parent / "out")[0]) == 10


def test_folds_of_the_labels_are_those_of_the_dataset(folder):
    path = folder.parent / "labels.csv"
    lines = path.read_text().splitlines()
    folds = ["Fold", "1", "2", "3", "1", "1"]
    path.write_text("\n".join(map(",".join, zip(lines, folds, strict=True))))
    assert prepare_folder(folder).returncode == 0
    rows, _ = read_dataset(folder.parent / "out")
    assert rows.groupby("participant")["fold"].first().to_dict() == {
        "007": "3",
        "a": "1",
        "bea": "2",
        "dee": "1",
    }


def test_as_many_processes_as_this_one_may_use_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    monkeypatch.setattr("sys.argv", ["prepare.py", "recordings"])
    assert prepare.parse_arguments().jobs == 3


@pytest.mark.parametrize("flag", ["--jobs", "--clip-seconds"])
def test_flags_out_of_range(folder, flag):
    assert run_prepare(folder, folder.parent / "out", flag, 0).returncode == 2


# --- a second run -------------------------------------------------------------------------------


def test_another_dataset_is_not_overwritten_unasked(folder):
    out = folder.parent / "out"
    edit_labels(folder, ("d2.wav,1,dee,female,train\n", ""))
    assert prepare_folder(folder).returncode == 0
    before = read_bytes(out)
    for change in (
        ("a.wav,0", "a.wav,1"),
        ("train\nb", "val\nb"),
        (",m,", ",f,"),
        (",007,", ",8,"),
    ):
        edit_labels(folder, change)
        assert "holds another dataset" in error_line(prepare_folder(folder))
        edit_labels(folder, change[::-1])
    recording = (folder / "a.wav").read_bytes()
    write_recording(folder / "a.wav", 17.1)
    assert "holds another dataset" in error_line(prepare_folder(folder))
    (folder / "a.wav").write_bytes(recording)
    assert "holds another dataset" in error_line(prepare_folder(folder, "--clip-seconds", 4))
    planned = prepare_folder(folder, "--clip-seconds", 4, "--dry-run")
    assert planned.returncode == 0 and "holds another dataset" in planned.stdout
    assert "accounted for" in planned.stdout
    assert read_bytes(out) == before
    assert prepare_folder(folder, "--clip-seconds", 4, "--overwrite").returncode == 0
    assert len(read_labels(out / "dataset.csv")[0]) == len(os.listdir(out / "Spectrograms")) == 16


@pytest.mark.parametrize("name", ["dataset.csv", "dataset.json", "Spectrograms/1.npy"])
def test_a_strangers_dataset_is_not_overwritten(folder, name):
    path = folder.parent / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert "holds another dataset" in error_line(prepare_folder(folder))
    assert read_bytes(folder.parent / "out") == {name: b"{}"}


def test_second_run_redoes_only_what_is_missing(folder):
    out = folder.parent / "out"
    assert prepare_folder(folder).returncode == 0
    before = read_bytes(out)
    times = {path: path.stat().st_mtime_ns for path in (out / "Spectrograms").iterdir()}
    (out / "Spectrograms" / "a_clip_8.npy").unlink()
    (out / "Spectrograms" / "bea_clip_0.npy").write_bytes(b"")  # as a power cut leaves it
    (out / "Spectrograms" / ".bea_clip_8.npy.123.tmp").write_bytes(b"half")
    (out / "dataset.csv").unlink()
    info = json.loads((out / "dataset.json").read_text())
    del info["format"]  # as an earlier version left it
    (out / "dataset.json").write_text(json.dumps(info))
    assert prepare_folder(folder).returncode == 0
    assert read_bytes(out) == before
    redone = {path.stem for path, then in times.items() if path.stat().st_mtime_ns != then}
    assert redone == {"a_clip_8", "bea_clip_0"}


def test_another_recording_of_equal_length_is_noticed(folder):
    assert prepare_folder(folder).returncode == 0
    path = folder / "a.wav"
    size = path.stat().st_size
    write_recording(path, 17, seed=99)
    assert path.stat().st_size == size
    assert "holds another dataset" in error_line(prepare_folder(folder))
    assert prepare_folder(folder, "--overwrite").returncode == 0


def test_a_dataset_that_knows_sizes_only_is_kept_and_that_is_said(folder, monkeypatch):
    out = folder.parent / "out"
    with monkeypatch.context() as patch:  # as a version of before format 3 wrote it
        patch.setattr(prepare, "hash_file", lambda path: path.stat().st_size)
        assert prepare_folder(folder).returncode == 0
    info = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps(info | {"format": 2}))
    times = {path: path.stat().st_mtime_ns for path in (out / "Spectrograms").iterdir()}
    process = prepare_folder(folder)
    assert process.returncode == 0 and "name and size only: its clips are kept" in process.stdout
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    assert "size only" not in prepare_folder(folder).stdout  # now it knows more
    (out / "dataset.json").write_text(json.dumps(info | {"format": 2}))
    assert prepare_folder(folder, "--overwrite").returncode == 0
    assert all(path.stat().st_mtime_ns != then for path, then in times.items())
    (out / "dataset.json").write_text(json.dumps(info | {"format": 2}))
    write_recording(folder / "a.wav", 17.1)
    assert "holds another dataset" in error_line(prepare_folder(folder))


def test_a_recording_that_was_repaired_is_added(folder):
    out = folder.parent / "out"
    whole = (folder / "more" / "c.flac").read_bytes()
    for broken in (whole[:10], whole[: len(whole) // 2] + bytes(1000)):
        (folder / "more" / "c.flac").write_bytes(broken)
        assert prepare_folder(folder).returncode == 1
        assert len(read_dataset(out)[0]) == 8
    times = {path: path.stat().st_mtime_ns for path in (out / "Spectrograms").iterdir()}
    (folder / "more" / "c.flac").write_bytes(whole)
    assert prepare_folder(folder).returncode == 0
    assert len(read_dataset(out)[0]) == 10
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())


def prepare_killed(folder, out, is_time):
    """Starts a run in a process group of its own and kills its parent as soon as `is_time()`."""

    def target():
        os.setsid()
        prepare_folder(folder, out=out)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    while process.is_alive() and not is_time():
        time.sleep(0.001)
    process.kill()
    process.join()
    for _ in range(200):  # its workers end by themselves
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("workers outlive a killed run")


def test_killed_at_any_moment_and_run_again(folder):
    whole, out = folder.parent / "whole", folder.parent / "out"
    assert prepare_folder(folder, out=whole).returncode == 0
    expected, left = read_bytes(whole), []
    for clips in (0, 1, 2, 5, 8):

        def is_time(clips=clips):
            return len(list(out.glob("Spectrograms/*.npy"))) >= clips and out.exists()

        prepare_killed(folder, out, is_time)
        left.append(len(list(out.glob("Spectrograms/*.npy"))))
        found = {name: data for name, data in read_bytes(out).items() if name.endswith(".npy")}
        assert found.items() <= expected.items()
    assert left[0] < left[-1] and 0 < left[2] < 10, left
    assert prepare_folder(folder, out=out).returncode == 0
    assert read_bytes(out) == expected


def test_ctrl_c_stops_a_run_soon(folder, capfd):
    noise = np.random.default_rng(0).normal(0, 0.1, 80 * RATE)
    soundfile.write(folder / "0.wav", noise, RATE)
    for number in range(1, 40):
        (folder / f"{number}.wav").symlink_to(folder / "0.wav")
    rows = [f"{number}.wav,0" for number in range(40)]
    (folder.parent / "labels.csv").write_text("\n".join(["file,label", *rows]))
    out = folder.parent / "out"

    def target():
        os.setsid()
        os._exit(prepare_folder(folder, out=out).returncode)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    while process.is_alive() and len(list(out.glob("Spectrograms/*.npy"))) < 5:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.join(30)
    assert process.exitcode == 130 and not capfd.readouterr().err
    assert 5 <= len(list(out.glob("Spectrograms/*.npy"))) <= 100  # of 400
    assert not (out / "dataset.csv").exists() and not list(out.rglob("*.tmp"))


def test_a_second_run_on_one_folder_is_refused(folder):
    out = folder.parent / "out"
    (out / "Spectrograms").mkdir(parents=True)
    part = out / "Spectrograms" / ".a.npy.1.tmp"
    part.write_text("of the first run")
    with locked(out / "dataset.csv"):
        line = error_line(prepare_folder(folder))
        assert "another run is writing it" in line and part.exists()
    assert prepare_folder(folder).returncode == 0 and not part.exists()
    read_dataset(out)


def test_a_full_disk_is_one_line_and_what_is_whole_stays(folder, monkeypatch):
    out = folder.parent / "out"
    write, written = Path.write_bytes, []

    def full_after_three(path, data):
        if path.name.endswith(".tmp"):
            written.append(path)
            if len(written) > 3:
                write(path, bytes(data)[:1000])
                raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_after_three)
        process = call_script(
            *("prepare.py", folder, "--labels", folder.parent / "labels.csv"),
            *("--out", out, "--jobs", 1),
        )
    assert "No space left on device" in error_line(process)
    assert len(os.listdir(out / "Spectrograms")) == 3 and not (out / "dataset.csv").exists()
    assert prepare_folder(folder).returncode == 0
    assert len(read_dataset(out)[0]) == 10


def test_output_that_cannot_be_a_folder(folder):
    (folder.parent / "out").write_text("a file")
    assert "out" in error_line(prepare_folder(folder))
