"""From recordings to a dataset: sound, turns, the corpora with their traps, whole and killed runs.

In every made-up recording a pure tone sounds wherever the participant does not speak: a turn that
is read a moment too early, too late or too long brings the tone into a clip.
"""

import json
import multiprocessing
import os
import re
import signal
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from conftest import SHARED, call_script, run_script, told
from hypothesis import given
from hypothesis import strategies as st

import prepare
from dataset import InputError, read_labels, read_spectrogram, split_clips
from prepare import SETTINGS, cut_clips, log_mel, read_sound

RATE = 16_000
TONE = 5_000  # Hz: the interviewer


# --- recordings ---------------------------------------------------------------------------------


def make_voice(samples, seed, rate=RATE):
    """Harmonics up to 3 kHz in a little noise."""
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * rng.uniform(90, 220) * np.arange(samples) / rate
    harmonics = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 13))
    loudness = 1 + np.sin(2 * np.pi * 3 * np.arange(samples) / rate)
    return (0.05 * loudness * harmonics + rng.normal(0, 0.002, samples)).astype(np.float32)


def write_recording(path, seconds, turns=None, rate=RATE, seed=0):
    """The tone, and a voice in `turns` (all of it by default)."""
    samples = 0.3 * np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)
    for start, stop in turns if turns is not None else [(0, seconds)]:
        first, last = round(start * rate), round(stop * rate)
        samples[first:last] = make_voice(last - first, seed, rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.astype(np.float32), rate)
    return path


def hears_tone(clip):
    """How far the tone's mel bin rises above the bins around it, at its loudest."""
    bins = librosa.mel_frequencies(SETTINGS["n_mels"] + 2, fmax=RATE / 2)[1:-1]
    here = int(np.abs(bins - TONE).argmin())
    around = np.median(clip[here - 12 : here + 13], axis=0)
    return float((clip[here - 1 : here + 2].max(axis=0) - around).max())


def run_prepare(source, out, *arguments):
    return call_script("prepare.py", source, "--out", out, "--jobs", 2, *arguments)


def read_dataset(out):
    """(rows by id, dataset.json), having checked that rows and clips are each other's."""
    rows = read_labels(out / "dataset.csv").set_index("id", drop=False)
    assert sorted(rows.index) == sorted(p.stem for p in (out / "Spectrograms").iterdir())
    assert sorted(p.name for p in out.iterdir()) == ["Spectrograms", "dataset.csv", "dataset.json"]
    clips = {name: read_spectrogram(out / "Spectrograms" / f"{name}.npy") for name in rows.index}
    assert {clip.shape for clip in clips.values()} == {(128, 251)}
    loudest = {name: hears_tone(clip) for name, clip in clips.items()}
    assert max(loudest.values()) < 0.2, loudest
    return rows, json.loads((out / "dataset.json").read_text())


def read_bytes(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def table_of(rows, *columns):
    """{participant: facts}, which are the same in all of a participant's clips."""
    facts = rows[["participant", *columns]].drop_duplicates().set_index("participant")
    assert facts.index.is_unique
    return {who: tuple(row) for who, row in zip(facts.index, facts.to_numpy(), strict=True)}


def test_the_tone_would_be_heard(tmp_path):
    clean = write_recording(tmp_path / "clean.wav", 8)
    for length in (0.05, 0.2, 4):
        mixed = write_recording(tmp_path / "mixed.wav", 8, [(0, 5 - length), (5, 8)])
        (clip,) = cut_clips(read_sound(mixed), 8 * RATE)
        assert hears_tone(log_mel(clip)) > 0.3
    (clip,) = cut_clips(read_sound(clean), 8 * RATE)
    assert hears_tone(log_mel(clip)) < 0.1


# --- sound --------------------------------------------------------------------------------------


def test_log_mel_is_librosas_own():
    samples = make_voice(8 * RATE, 1)
    power = librosa.feature.melspectrogram(
        y=samples, sr=16000, n_mels=128, n_fft=2048, hop_length=512
    )
    decibels = librosa.power_to_db(power, ref=np.max)
    by_hand = (decibels - decibels.min()) / (decibels.max() - decibels.min())
    clip = log_mel(samples)
    assert clip.shape == (128, 251) and clip.dtype == np.float32
    assert clip.min() == 0 and clip.max() == 1
    np.testing.assert_allclose(clip, by_hand, atol=1e-6)


def test_one_second_of_sound_lands_in_its_frames():
    samples = np.random.default_rng(0).normal(0, 1e-4, 8 * RATE).astype(np.float32)
    samples[3 * RATE : 4 * RATE] += np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    clip = log_mel(samples)
    loud = np.flatnonzero(clip.max(axis=0) > 0.9)  # frame k is centred on sample 512 k
    assert abs(loud[0] - 3 * RATE / 512) < 2 and abs(loud[-1] - 4 * RATE / 512) < 2
    assert len(loud) == loud[-1] - loud[0] + 1
    bins = librosa.mel_frequencies(130, fmax=8000)[1:-1]
    assert abs(bins[clip[:, 110].argmax()] - 1000) < 30


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_has_no_spectrogram(level):
    with pytest.raises(InputError, match="silent"):
        log_mel(np.full(8 * RATE, level, np.float32))


@pytest.mark.parametrize("block", [2**18, 1001])
def test_read_sound_gives_the_samples_asked_for(tmp_path, monkeypatch, block):
    monkeypatch.setattr(prepare, "SAMPLES_PER_BLOCK", block)
    stereo = np.random.default_rng(0).uniform(-0.5, 0.5, (5 * RATE, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    mono = stereo.mean(axis=1)
    for start, stop in ((0, None), (1.5, None), (1.25, 3.5), (4, 9), (7, 9)):
        read = [np.empty(0, np.float32), *read_sound(tmp_path / "a.wav", RATE, start, stop)]
        last = None if stop is None else round(stop * RATE)
        np.testing.assert_array_equal(np.concatenate(read), mono[round(start * RATE) : last])


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_in_blocks_equals_librosas_of_the_whole(tmp_path, monkeypatch, rate):
    monkeypatch.setattr(prepare, "SAMPLES_PER_BLOCK", 10_007)
    path = write_recording(tmp_path / "a.wav", 3.3, rate=rate)
    whole, _ = librosa.load(path, sr=RATE, res_type="soxr_hq")
    blocks = np.concatenate(list(read_sound(path)))
    assert abs(len(blocks) - 3.3 * RATE) <= 1
    np.testing.assert_allclose(blocks[: len(whole)], whole[: len(blocks)], atol=1e-4)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "w64"])
def test_formats_of_libsndfile(tmp_path, suffix):
    path = write_recording(tmp_path / f"a.{suffix}", 2)
    assert abs(sum(map(len, read_sound(path))) - 2 * RATE) < 0.1 * RATE


def spoil(path, fault):
    """Writes 40 s of voice at `path`, and the fault into it; some only show after two clips."""
    write_recording(path, 40)
    whole = path.read_bytes()
    samples = make_voice(40 * RATE, 0)
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "header":
        path.write_bytes(whole[:44])
    elif fault == "text":
        path.write_text("not sound at all")
    elif fault == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif fault == "silent":
        soundfile.write(path, 0 * samples, RATE)
    elif fault == "nan":
        samples[30 * RATE] = np.nan
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    elif fault == "short":
        soundfile.write(path, samples[: 7 * RATE], RATE)
    elif fault == "damaged":  # flac whose header is whole
        soundfile.write(path, samples, RATE, format="FLAC")
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) // 2))
    elif fault == "half":  # an mp3, that libsndfile does not know to be cut short
        soundfile.write(path, samples, RATE, format="MP3")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS = {
    "empty": "no sound that can be read",
    "header": "(empty|no sound)",
    "text": "no sound that can be read",
    "truncated": "cut short",
    "nan": "NaN",
    "damaged": "(cut short|no sound that can be read)",
    "half": "cut short",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unreadable_sound_is_one_error(tmp_path, fault):
    spoil(tmp_path / "a.wav", fault)
    with pytest.raises(InputError, match=FAULTS[fault]):
        list(read_sound(tmp_path / "a.wav"))


def test_sound_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        next(read_sound(tmp_path / "a.wav"))


def test_a_wav_from_a_pipe_is_not_cut_short(tmp_path):
    path = write_recording(tmp_path / "a.wav", 2)
    whole = bytearray(path.read_bytes())
    whole[4:8] = whole[40:44] = b"\xff\xff\xff\xff"  # the length was not known
    path.write_bytes(whole)
    assert sum(map(len, read_sound(path))) == 2 * RATE


def test_an_hour_streams_in_bounded_memory(tmp_path):
    path = write_recording(tmp_path / "a.wav", 1)
    with open(path, "rb+") as file:  # an hour of zeros, which take no room on the disk
        size = 2 * 3600 * RATE
        file.truncate(44 + size)
        file.seek(4)
        file.write((36 + size).to_bytes(4, "little"))
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
    tracemalloc.start()
    clips = sum(1 for _ in cut_clips(read_sound(path, 8_000), 8 * 8_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clips == 450
    assert peak < 20e6


@given(st.lists(st.integers(0, 40)), st.integers(1, 30))
def test_clips_are_cut_as_from_the_whole(lengths, size):
    whole = np.arange(sum(lengths), dtype=np.float32)
    clips = list(cut_clips(np.split(whole, np.cumsum(lengths)[:-1]) if lengths else [], size))
    expected = whole[: len(whole) // size * size].reshape(-1, size)
    assert len(clips) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(clips, expected, strict=True))


# --- turns --------------------------------------------------------------------------------------

TURNS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).filter(lambda t: t[0] < t[1]))


@given(TURNS, TURNS)
def test_turns_are_merged_and_holes_left_out(turns, holes):
    def seconds(pieces):
        return {second for start, stop in pieces for second in range(start, stop)}

    merged = prepare.merge(turns)
    assert seconds(merged) == seconds(turns)
    assert all(a[1] < b[0] for a, b in zip(merged, merged[1:], strict=False))
    left = prepare.leave_out(merged, holes)
    assert seconds(left) == seconds(turns) - seconds(holes)
    assert sum(stop - start for start, stop in left) == len(seconds(left))


@pytest.mark.parametrize(
    ("text", "speech"),
    [
        ("<laughter> yeah", True),
        ("[laughter] i don't know", True),
        ("i <i just> think", True),
        ("", False),
        ("<sync>", False),
        ("<synch>", False),
        ("[syncing]", False),
        ("<sync.", False),
        ("<sigh> <laughter>", False),
        ("my name is scrubbed_entry", False),
        ("scrubbed_entry", False),
    ],
)
def test_rows_that_are_not_speech(text, speech):
    assert (re.fullmatch(prepare.NOT_SPEECH, text) is None) == speech


# --- DAIC-WOZ -----------------------------------------------------------------------------------

DAIC_HEADER = "start_time\tstop_time\tspeaker\tvalue"


def write_daic_session(root, who, seconds, rows, late=0.0, silent=(), folder=None):
    """Sound and transcript; what the participant says in the transcript sounds `late` later."""
    folder = root / (folder or f"{who}_P")
    turns = [(a + late, b + late) for a, b, speaker, text in rows if speaker == "Participant"]
    turns = prepare.leave_out(prepare.merge(turns), silent)
    write_recording(folder / f"{who}_AUDIO.wav", seconds, turns, seed=int(who))
    lines = [f"{a:.3f}\t{b:.3f}\t{speaker}\t{text}" for a, b, speaker, text in rows]
    (folder / f"{who}_TRANSCRIPT.csv").write_text("\n".join([DAIC_HEADER, *lines, ""]))
    (folder / f"._{who}_TRANSCRIPT.csv").write_bytes(b"\x00\x05\x16\x07\x00\x02")
    (folder / f"._{who}_AUDIO.wav").write_bytes(b"\x00\x05\x16\x07\x00\x02")
    (folder / f"{who}_COVAREP.csv").write_text("0,0,0\n")


def say(*times, text="well you know", speaker="Participant"):
    return [(a, b, speaker, text) for a, b in times]


@pytest.fixture(scope="module")
def daic(tmp_path_factory):
    root = tmp_path_factory.mktemp("daic")
    ellie = say((0, 2), text="how are you today", speaker="Ellie")
    rows = [
        *say((0.5, 3), text="<sync>"),
        *say((4.001, 12.5), (11.25, 16)),  # they overlap
        *say((16.5, 20), text='so what"s this'),  # a stray quotation mark
        *say((20.5, 29), text="scrubbed_entry"),
        *say((30, 39), text="<laughter>"),
        *say((40, 41), text="   "),
        *say((45, 57)),
    ]
    speech = [(0.5, 3), (20.5, 29), (30, 39), (40, 41)]  # of which nothing may be read
    # While the participant speaks, the interviewer says something from 47 to 48 s.
    over = say((47, 48), text="mhm", speaker="Ellie")
    write_daic_session(root, "300", 60, ellie + rows + over, silent=[*speech, (47, 48)])
    plain = ellie + say((2, 20.5))
    write_daic_session(root, "301", 25, plain, folder="301")  # without _P
    write_daic_session(root, "318", 60, plain, late=34.32)
    write_daic_session(root, "321", 60, plain, late=3.84)
    write_daic_session(root, "341", 60, plain, late=6.19)
    write_daic_session(root, "362", 60, plain, late=16.86)
    long = ellie + say((340, 440))
    write_daic_session(root, "373", 445, long, silent=[(352, 428)])
    write_daic_session(root, "409", 25, plain)
    write_daic_session(root, "444", 400, ellie + say((280, 398)), silent=[(286, 387)])
    write_daic_session(root, "451", 25, say((2, 20.5)))
    write_daic_session(root, "302", 25, plain)
    write_daic_session(root, "303", 25, plain)
    columns = "Participant_ID,PHQ8_Binary,PHQ8_Score,Gender,PHQ8_NoInterest"
    train = ["300,0,4,1,0", "301,1,12,0,3", "318,0,2,1,0", "321,1,20,0,1", "341,0,7,1,1"]
    train += ["362,1,20,0,1", "373,0,9,1,1", "409,0,10,0,1", "444,0,7,0,1"]
    (root / "train_split_Depression_AVEC2017.csv").write_text("\n".join([columns, *train]))
    (root / "dev_split_Depression_AVEC2017.csv").write_text(f"{columns}\n451,1,17,0,3\n")
    test = "participant_ID,Gender\n302,0\n303,1\n"
    (root / "test_split_Depression_AVEC2017.csv").write_text(test)
    return root


@pytest.fixture(scope="module")
def daic_out(daic, tmp_path_factory):
    full = daic / "full_test_split.csv"
    full.write_text("Participant_ID,PHQ_Binary,PHQ_Score,Gender\n\n302,1,11,0\n\n303,0,3,1\n\n")
    out = tmp_path_factory.mktemp("daic_out")
    process = run_prepare(daic, out)
    full.unlink()
    assert process.returncode == 0, process.stdout + process.stderr
    return out, process


def test_daic_woz_labels_splits_and_genders(daic_out):
    rows, info = read_dataset(daic_out[0])
    assert table_of(rows, "label", "split", "gender") == {
        "300": (0, "train", "female"),
        "301": (1, "train", "male"),
        "318": (0, "train", "female"),
        "321": (1, "train", "male"),
        "341": (0, "train", "female"),
        "362": (1, "train", "male"),
        "373": (0, "train", "female"),
        "409": (1, "train", "male"),
        "444": (0, "train", "male"),
        "451": (1, "val", "male"),
        "302": (1, "test", "male"),
        "303": (0, "test", "female"),
    }
    assert info["corpus"] == "DAIC-WOZ" and info["settings"] == SETTINGS
    assert info["synthetic"] is False and info["counts"]["participants"] == 12


def test_daic_woz_speech(daic_out):
    rows, _ = read_dataset(daic_out[0])  # has listened for the tone
    # 300: 4.001 to 16, 16.5 to 20 and 45 to 57 but for a second: 26.499 s, three clips.
    clips = Counter(rows["participant"])
    assert clips == {
        **dict.fromkeys(("301", "318", "321", "341", "362", "409", "451", "302", "303"), 2),
        "300": 3,
        "373": 3,  # 340 to 352 and 428 to 440
        "444": 2,  # 280 to 286 and 387 to 398
    }
    assert {"300_clip_0", "300_clip_8", "373_clip_16"} < set(rows.index)


def test_daic_woz_clip_is_the_joined_turns(daic, daic_out):
    samples, _ = soundfile.read(daic / "300_P" / "300_AUDIO.wav", dtype="float32")
    turns = [(4.001, 16), (16.5, 20), (45, 47), (48, 57)]
    joined = np.concatenate([samples[round(a * RATE) : round(b * RATE)] for a, b in turns])
    for start in (0, 8, 16):
        clip = read_spectrogram(daic_out[0] / "Spectrograms" / f"300_clip_{start}.npy")
        by_hand = log_mel(joined[start * RATE : (start + 8) * RATE])
        np.testing.assert_allclose(clip, by_hand, atol=1e-6)


def test_daic_woz_faults_are_told(daic_out):
    out, process = daic_out
    corrections = json.loads((out / "dataset.json").read_text())["corrections"]
    assert sorted(line[:3] for line in corrections) == [
        *("318", "321", "341", "362", "373", "409", "444")
    ]
    assert all(f"corrected: {line}" in process.stdout for line in corrections)
    assert "DAIC-WOZ" in process.stdout and "12 files like 300_P/300_TRANSCRIPT" in process.stdout
    assert "34.32 s later" in process.stdout and "352 to 428 s" in process.stdout
    assert "note: 451: no interviewer" in process.stdout and "past the sound" not in process.stdout


def test_daic_woz_without_test_labels(daic, tmp_path):
    process = run_prepare(daic, tmp_path / "out", "--dry-run")
    assert process.returncode == 0
    assert "2 sessions without a label: 302, 303" in process.stdout
    assert re.search(r"^all +10 ", process.stdout, re.MULTILINE)


def test_turns_past_the_end_of_the_sound(tmp_path):
    path = write_recording(tmp_path / "a.wav", 20)
    session = prepare.Session("300", "300", 0, None, None, [(path, 2, 15), (path, 18, 25)])
    told_of = prepare.Told()
    assert prepare.plan([session], SETTINGS, told_of) and session.seconds == 15
    assert told_of.notes == ["300: 5.0 s of its turns are past the sound's end"]


def test_daic_woz_labels_elsewhere(daic, tmp_path):
    for name in ("dev", "train"):
        path = daic / f"{name}_split_Depression_AVEC2017.csv"
        (tmp_path / path.name).write_bytes(path.read_bytes())
    small = tmp_path / "small"
    small.mkdir()
    (small / "301").symlink_to(daic / "301")
    assert "train_split" in told(run_prepare(small, tmp_path / "out"))
    process = run_prepare(small, tmp_path / "out", "--labels", tmp_path, "--dry-run")
    assert process.returncode == 1 and "9 labelled sessions lack sound" in process.stdout


def test_daic_woz_participant_in_two_splits(daic, tmp_path):
    path = tmp_path / "full_test_split.csv"
    path.write_text("Participant_ID,PHQ_Binary,PHQ_Score,Gender\n300,0,4,1\n")
    line = told(run_prepare(daic, tmp_path / "out", "--labels", path))
    assert "1 participants are in more than one split: 300" in line


# --- the other corpora --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edaic(tmp_path_factory):
    root = tmp_path_factory.mktemp("edaic")
    turns = [(3, 9.5), (9.5, 14), (20, 29.25)]
    for who in ("300", "302", "600", "700"):
        folder = root / "data" / f"{who}_P"
        write_recording(folder / f"{who}_AUDIO.wav", 31, turns, seed=int(who))
        rows = [f'{a},{b},"well, ""you"" know",0.9' for a, b in turns]
        header = "Start_Time,End_Time,Text,Confidence"
        (folder / f"{who}_Transcript.csv").write_text("\n".join([header, *rows, ""]))
        (folder / f"._{who}_Transcript.csv").write_bytes(b"\x00\x05\x16")
    header = "Participant_ID,Gender,PHQ_Binary,PHQ_Score,PCL-C (PTSD),PTSD Severity\n"
    (root / "labels").mkdir()
    (root / "labels" / "train_split.csv").write_text(
        header + "300,male,0,9,0,20\n302,female,0,12,0,1\n"
    )
    (root / "labels" / "dev_split.csv").write_text(header + "600,female,1,10,0,20\n")
    (root / "labels" / "test_split.csv").write_text(header + "700,male,0,3,0,20\n")
    return root


def test_edaic(edaic, tmp_path):
    process = run_prepare(edaic, tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    rows, info = read_dataset(tmp_path)
    assert table_of(rows, "label", "split", "gender") == {
        "300": (0, "train", "male"),
        "302": (1, "train", "female"),  # by the score
        "600": (1, "val", "female"),
        "700": (0, "test", "male"),
    }
    assert set(Counter(rows["participant"]).values()) == {2}  # 20.25 s
    assert len(info["corrections"]) == 1 and info["corrections"][0].startswith("302: label 0")
    assert info["corpus"] == "E-DAIC"


@pytest.fixture(scope="module")
def eatd(tmp_path_factory):
    root = tmp_path_factory.mktemp("eatd")
    for number, (who, score) in enumerate({"t_1": 53, "t_12": 52.5, "v_3": 61.25}.items()):
        folder = root / "EATD-Corpus" / who
        for feeling in ("positive", "neutral", "negative"):
            # The original begins with noise, here the tone, that was cut from the cleaned one.
            write_recording(folder / f"{feeling}.wav", 8, [(2, 8)], seed=number)
            write_recording(folder / f"{feeling}_out.wav", 6, seed=number)
            (folder / f"{feeling}.txt").write_text("我很好")
        (folder / "label.txt").write_text(f"{score / 1.25}")
        (folder / "new_label.txt").write_text(f"{score}\n")
    empty = root / "EATD-Corpus" / "v_3"
    soundfile.write(empty / "neutral_out.wav", np.zeros(0, np.float32), RATE)
    write_recording(empty / "neutral.wav", 6, seed=2)
    return root


def test_eatd(eatd, tmp_path):
    process = run_prepare(eatd, tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    rows, info = read_dataset(tmp_path)
    expected = {"t_1": (1, "train"), "t_12": (0, "train"), "v_3": (1, "val")}
    assert table_of(rows, "label", "split") == expected
    assert set(Counter(rows["participant"]).values()) == {2}  # three answers of 6 s, joined
    assert info["corrections"] == ["v_3/neutral_out.wav: empty or not there; neutral.wav is used"]
    assert "gender" not in rows and info["corpus"] == "EATD-Corpus"


def test_eatd_without_new_label(eatd, tmp_path):
    for path in sorted(eatd.rglob("*.*")):
        if path.name != "new_label.txt":
            copy = tmp_path / "in" / path.relative_to(eatd)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    process = run_prepare(tmp_path / "in", tmp_path / "out", "--dry-run")
    assert re.search(r"^all +3 +2 ", process.stdout, re.MULTILINE)  # 42.4 * 1.25 = 53


@pytest.fixture(scope="module")
def androids(tmp_path_factory):
    root = tmp_path_factory.mktemp("androids") / "Androids-Corpus"
    timedata = []
    for seed, (group, speaker) in enumerate(
        [("HC", "01_CF56_1"), ("PT", "01_PM33_2"), ("PT", "12_PF40_X")]
    ):
        write_recording(root / "Reading-Task" / group / f"{speaker}.wav", 9, rate=44_100, seed=seed)
        turns = [(2 * k, 2 * k + 0.8) for k in range(1, 12)]
        write_recording(
            root / "Interview-Task" / "audio" / group / f"{speaker}.wav", 26, turns, seed=seed
        )
        for number in range(1, 12):
            folder = root / "Interview-Task" / "audio_clip" / speaker
            write_recording(folder / f"{speaker}_{number}.wav", 0.8 + number / 10, seed=number)
        timedata.append(",".join([speaker, *(f"{t}" for turn in turns for t in turn)]))
    (root / "interview_timedata.csv").write_text("\n".join(timedata))
    (root / "fold-lists.csv").write_text("Reading,,Interview\n'01_CF56_1',,'01_CF56_1'\n")
    return root


def test_androids(androids, tmp_path):
    process = run_prepare(androids, tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    rows, info = read_dataset(tmp_path)
    expected = {"01_C": (0, "female"), "01_P": (1, "male"), "12_P": (1, "female")}
    assert table_of(rows, "label", "gender") == expected
    # An interview of 15.4 s and a reading of 9 s, each one clip.
    assert sorted(rows.index) == [f"{who}_clip_{s}" for who in expected for s in (0, 8)]
    assert "split" not in rows and "folds" in process.stdout


def test_androids_turns_are_joined_in_their_order(androids, tmp_path):
    told_of = prepare.Told()
    sessions = prepare.read_androids(prepare.list_files(androids), None, told_of)
    interview = next(session for session in sessions if session.name == "01_CF56_1 interview")
    names = [path.stem for path, _, _ in interview.turns]
    assert names == [f"01_CF56_1_{number}" for number in range(1, 12)]  # 10 after 9


# --- a folder of recordings ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Four people's recordings, of which one in two files with two labels."""
    root = tmp_path / "recordings"
    for seed, name in enumerate(["a.wav", "b.wav", "more/c.flac", "d1.wav", "d2.wav"]):
        write_recording(root / name, 17, seed=seed, rate=(RATE, 22_050)[seed % 2])
    rows = ["a.wav,0,,m,train", "b.wav,1,bea,F,dev", "more/c.flac,1,007,,test"]
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
    facts = table_of(rows.drop(columns="label").fillna("none"), "split", "gender")
    assert facts["a"] == ("train", "male") and facts["bea"] == ("val", "female")
    assert facts["007"] == ("test", "none") and info["corpus"] == "recordings"


def test_clip_seconds(folder):
    out = folder.parent / "out"
    assert prepare_folder(folder, "--clip-seconds", 5).returncode == 0
    assert json.loads((out / "dataset.json").read_text())["settings"]["clip_seconds"] == 5
    rows = read_labels(out / "dataset.csv")
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
    rows = read_labels(tmp_path / "dataset.csv")
    lengths = {p.name: soundfile.info(p).duration for p in (emodb / "recordings").iterdir()}
    assert len(rows) == sum(int(length // 8) for length in lengths.values())
    split = split_clips(rows, "participant", 0)
    assert all(len(side) for side in split.values())
    first, _ = librosa.load(emodb / "recordings" / "203_high.wav", sr=None, duration=8)
    clip = read_spectrogram(tmp_path / "Spectrograms" / "203_clip_0.npy")
    np.testing.assert_allclose(clip, log_mel(first), atol=1e-6)


# --- bad input ----------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_line(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    assert "no such folder" in told(run_script("prepare.py", tmp_path / "labels.csv"))
    line = told(run_prepare(empty, out))
    assert "no layout recognised" in line and "_TRANSCRIPT.csv" in line and "no file" in line
    assert "4 .wav, 1 .flac" in told(run_prepare(folder, out))
    assert "needs --labels" in told(run_prepare(folder, out, "--layout", "folder"))
    assert "no such file" in told(run_prepare(folder, out, "--labels", tmp_path / "none.csv"))
    table = tmp_path / "table.csv"
    table.write_text("name,label\na.wav,1\n")
    line = told(run_prepare(folder, out, "--labels", table))
    assert "expected a column file" in line and "name, label" in line
    table.write_text("")
    assert "cannot be read as a table" in told(run_prepare(folder, out, "--labels", table))
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ([("a.wav,0", "a.wav,2")], ["1 problems", "row 2: label '2' is neither 0 nor 1"]),
        ([("b.wav,1", "b.wav,"), ("c.flac,1", "c.flac,yes")], ["2 problems", "row 3", "'yes'"]),
        ([(",dev", ",half")], ["row 3: split 'half' is not train, val or test"]),
        ([("d2.wav", "d1.wav")], ["row 6: file 'd1.wav' repeats"]),
        ([("bea", "../bea")], ["row 3: participant '../bea' cannot begin a file name"]),
        ([("d2.wav,1,dee,female,train", "d2.wav,1,dee,female,test")], ["1 participants", "dee"]),
        ([(f"{n}.", f"{n}{n}.") for n in ("a", "b", "c", "d1", "d2")], ["5 of 5", "aa.wav", "a.w"]),
    ],
)
def test_bad_label_files(folder, changes, lines):
    edit_labels(folder, *changes)
    line = told(prepare_folder(folder))
    assert all(part in line for part in lines), line
    assert not (folder.parent / "out").exists()


def test_labels_and_recordings_that_do_not_match(folder):
    edit_labels(folder, ("a.wav", "z.wav"))
    process = prepare_folder(folder)
    assert process.returncode == 1
    assert "problem: labels.csv: 1 of 5 files are not there: z.wav" in process.stdout
    assert "note: 1 recordings without a label: a.wav" in process.stdout
    assert set(read_dataset(folder.parent / "out")[0]["participant"]) == {"bea", "007", "dee"}


def test_bad_recordings_are_named_and_the_others_done(folder):
    faults = [*FAULTS, "silent", "short"]
    for fault in faults:
        spoil(folder / f"{fault}.wav", fault)
    labels = folder.parent / "labels.csv"
    labels.write_text(labels.read_text() + "".join(f"{f}.wav,0,,,train\n" for f in faults))
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
    assert "none of 5 sessions gave a clip" in told(process)
    assert process.stdout.count("problem:") == 5 and not (folder.parent / "out").exists()
    for path in folder.rglob("*.*"):  # headers are whole, the sound is not
        spoil(path, "damaged")
    assert "none of 5 sessions gave a clip" in told(prepare_folder(folder))
    assert not [path for path in (folder.parent / "out").rglob("*") if path.is_file()]


def test_damaged_transcript_is_named(daic, tmp_path):
    root = tmp_path / "in"
    for name in ("301", "409"):
        (root / name).mkdir(parents=True)
    (root / "301" / "301_AUDIO.wav").symlink_to(daic / "301" / "301_AUDIO.wav")
    (root / "301" / "301_TRANSCRIPT.csv").write_text("who\tknows\n1\t2\n")
    (root / "409" / "409_AUDIO.wav").symlink_to(daic / "409_P" / "409_AUDIO.wav")
    (root / "409" / "409_TRANSCRIPT.csv").symlink_to(daic / "409_P" / "409_TRANSCRIPT.csv")
    labels = tmp_path / "train_split.csv"
    labels.write_text("Participant_ID,PHQ8_Binary,PHQ8_Score,Gender\n301,1,12,0\n409,0,10,0\n")
    process = run_prepare(root, tmp_path / "out", "--labels", labels)
    assert process.returncode == 1 and "301_TRANSCRIPT.csv: expected a column" in process.stdout
    assert set(read_dataset(tmp_path / "out")[0]["participant"]) == {"409"}


def test_two_corpora_in_one_folder(daic, edaic, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").symlink_to(daic)
    (tmp_path / "in" / "b").symlink_to(edaic)
    line = told(run_prepare(tmp_path / "in", tmp_path / "out"))
    assert "daic-woz and e-daic" in line and "--layout" in line


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
        assert "holds another dataset" in told(prepare_folder(folder))
        edit_labels(folder, change[::-1])
    assert "holds another dataset" in told(prepare_folder(folder, "--clip-seconds", 4))
    assert read_bytes(out) == before
    assert prepare_folder(folder, "--clip-seconds", 4, "--overwrite").returncode == 0
    assert len(read_labels(out / "dataset.csv")) == len(os.listdir(out / "Spectrograms")) == 16


@pytest.mark.parametrize("name", ["dataset.csv", "dataset.json", "Spectrograms/1.npy"])
def test_a_strangers_dataset_is_not_overwritten(folder, name):
    path = folder.parent / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert "holds another dataset" in told(prepare_folder(folder))
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
    assert prepare_folder(folder).returncode == 0
    assert read_bytes(out) == before
    redone = {path.stem for path, then in times.items() if path.stat().st_mtime_ns != then}
    assert redone == {"a_clip_8", "bea_clip_0"}


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
    assert "No space left on device" in told(process)
    assert len(os.listdir(out / "Spectrograms")) == 3 and not (out / "dataset.csv").exists()
    assert prepare_folder(folder).returncode == 0
    assert len(read_dataset(out)[0]) == 10


def test_output_that_cannot_be_a_folder(folder):
    (folder.parent / "out").write_text("a file")
    assert "out" in told(prepare_folder(folder))
