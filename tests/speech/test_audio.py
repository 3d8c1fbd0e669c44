"""Sound against librosa's own, unreadable recordings, memory, and the files of a dataset."""

import json
import os
import subprocess
import sys
import tracemalloc
import unicodedata
from pathlib import Path

from speech import audio
from speech.audio import (
    DATASET_FORMAT,
    choose_channel,
    count_samples,
    cut_clips,
    is_complete,
    list_files,
    log_mel,
    match_names,
    read_info,
    read_notes,
    read_sound,
    write_dataset,
    write_info,
)
from speech.cli import InputError
from speech.dataset import write_clip

import librosa
import numpy as np
import pytest
import soundfile
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from recordings import FAULTS, RATE, hears_tone, make_voice, spoil, write_recording

# --- the transform ------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("peak", "silent"), [(9e-5, True), (1.2e-4, False)])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_near_silence_is_silence(peak, silent, offset):
    """-80 dBFS is 1e-4."""
    noise = np.random.default_rng(0).uniform(-peak, peak, 8 * RATE).astype(np.float32) + offset
    if silent:
        with pytest.raises(InputError, match="silent"):
            log_mel(noise.astype(np.float32))
    else:
        assert log_mel(noise.astype(np.float32)).max() == 1


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_has_no_spectrogram(level):
    with pytest.raises(InputError, match="silent"):
        log_mel(np.full(8 * RATE, level, np.float32))


def test_the_tone_would_be_heard(tmp_path):
    """What the tests of corpora and prepare.py rely on."""
    clean = write_recording(tmp_path / "clean.wav", 8)
    for length in (0.05, 0.2, 4):
        mixed = write_recording(tmp_path / "mixed.wav", 8, [(0, 5 - length), (5, 8)])
        (clip,) = cut_clips(read_sound(mixed), 8 * RATE)
        assert hears_tone(log_mel(clip)) > 0.3
    (clip,) = cut_clips(read_sound(clean), 8 * RATE)
    assert hears_tone(log_mel(clip)) < 0.1


def test_warmed_up_processes_have_nothing_left_to_load(tmp_path):
    """Seconds in each of prepare.py's processes otherwise; BLAS's threads must not run yet.

    Nothing is compiled, which takes 15 s where numba has nothing in its cache, and BLAS has one
    thread in every process: with two clips are others in their last bits.
    """
    code = """if True:
        import sys, numpy as np, threadpoolctl
        from speech import audio
        multiply, np.einsum = np.einsum, None
        audio.warm_up()
        np.einsum, before = multiply, set(sys.modules)
        audio.log_mel(np.random.default_rng(0).normal(size=4096).astype(np.float32))
        print(audio.mel_filters.cache_info().hits, set(sys.modules) - before)
        print(*{pool["num_threads"] for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"})
    """
    command = [sys.executable, "-c", code]
    settings = {"OMP_NUM_THREADS": "2", "NUMBA_CACHE_DIR": str(tmp_path)}
    options = {"cwd": ROOT, "env": os.environ | settings, "timeout": 60}
    process = subprocess.run(command, capture_output=True, text=True, **options)
    assert process.stdout == "1 set()\n1\n", process.stderr
    assert not list(tmp_path.rglob("*.nbi"))


# --- decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [2**18, 1001])
def test_read_sound_gives_the_samples_asked_for(tmp_path, monkeypatch, block):
    monkeypatch.setattr(audio, "SAMPLES_PER_BLOCK", block)
    stereo = np.random.default_rng(0).uniform(-0.5, 0.5, (5 * RATE, 2)).astype(np.float32)
    path, mono = tmp_path / "a.wav", stereo.mean(axis=1)
    soundfile.write(path, stereo, RATE, subtype="FLOAT")
    for start, stop in ((0, None), (1.5, None), (1.25, 3.5), (4, 9), (7, 9)):
        read = np.concatenate([np.empty(0, np.float32), *read_sound(path, RATE, start, stop)])
        last = None if stop is None else round(stop * RATE)
        np.testing.assert_array_equal(read, mono[round(start * RATE) : last])
        assert count_samples(path, RATE, start, stop) == len(read)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_in_blocks_equals_librosas_of_the_whole(tmp_path, monkeypatch, rate):
    monkeypatch.setattr(audio, "SAMPLES_PER_BLOCK", 10_007)
    path = write_recording(tmp_path / "a.wav", 3.3, rate=rate)
    whole, _ = librosa.load(path, sr=RATE, res_type="soxr_hq")
    blocks = np.concatenate(list(read_sound(path)))
    assert abs(len(blocks) - 3.3 * RATE) <= 1
    assert abs(len(blocks) - count_samples(path, RATE, 0, None)) <= 1
    np.testing.assert_allclose(blocks[: len(whole)], whole[: len(blocks)], atol=1e-4)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "w64"])
def test_formats_of_libsndfile(tmp_path, suffix):
    path = write_recording(tmp_path / f"a.{suffix}", 2)
    assert abs(sum(map(len, read_sound(path))) - 2 * RATE) < 0.1 * RATE


@pytest.mark.parametrize("fault", FAULTS)
def test_unreadable_sound_is_one_error(tmp_path, fault):
    spoil(tmp_path / "a.wav", fault)
    with pytest.raises(InputError, match=FAULTS[fault]):
        list(read_sound(tmp_path / "a.wav"))


def test_sound_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        next(read_sound(tmp_path / "a.wav"))


@pytest.mark.parametrize("rate", [1, 2**31 - 1])
def test_a_sampling_rate_that_no_sound_has(tmp_path, rate):
    path = write_recording(tmp_path / "a.wav", 2)
    damaged = bytearray(path.read_bytes())
    damaged[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=f"malformed header: 32000 samples at {rate} Hz"):
        next(read_sound(path))


def test_a_wav_from_a_pipe_is_not_cut_short(tmp_path):
    path = write_recording(tmp_path / "a.wav", 2)
    whole = bytearray(path.read_bytes())
    whole[4:8] = whole[40:44] = b"\xff\xff\xff\xff"  # the length was not known
    path.write_bytes(whole)
    assert sum(map(len, read_sound(path))) == 2 * RATE


@pytest.mark.parametrize(("riff", "data"), [(0, 0), (36, 0), (8, 0), (1036, 1000), (0, 1000)])
def test_a_header_never_finalised_is_read_to_its_end(tmp_path, riff, data):
    path = write_recording(tmp_path / "a.wav", 2)
    expected = np.concatenate(list(read_sound(path)))
    whole = bytearray(path.read_bytes())
    whole[4:8], whole[40:44] = riff.to_bytes(4, "little"), data.to_bytes(4, "little")
    path.write_bytes(whole)
    notes = []
    np.testing.assert_array_equal(np.concatenate(list(read_sound(path, notes=notes))), expected)
    assert notes == ["its header was never finalised: read to its end"] == read_notes(path)
    turn = np.concatenate(list(read_sound(path, start=0.5, stop=1.5)))
    np.testing.assert_array_equal(turn, expected[RATE // 2 : 3 * RATE // 2])


@pytest.mark.parametrize("after", [b"LIST\x04\0\0\0INFO", b"ID3\3" + bytes(20), bytes(512)])
def test_what_may_follow_the_samples(tmp_path, after):
    path = write_recording(tmp_path / "a.wav", 2)
    path.write_bytes(path.read_bytes() + after)
    assert sum(map(len, read_sound(path))) == 2 * RATE and not read_notes(path)


def write_stereo(path, left, right):
    soundfile.write(path, np.stack([left, right], axis=1), RATE)
    return path


def test_opposite_phase_is_read_from_the_louder_channel(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "SAMPLES_PER_BLOCK", 10_007)
    voice = make_voice(4 * RATE, 0)
    noise = np.random.default_rng(0).normal(0, 1e-4, len(voice)).astype(np.float32)
    voice[:RATE] = 0  # nothing there tells which channel to read
    path = write_stereo(tmp_path / "a.wav", 0.9 * voice, noise - voice)
    for start, stop in ((0, None), (0.2, 0.8), (1, 3)):
        notes = []
        read = np.concatenate(list(read_sound(path, start=start, stop=stop, notes=notes)))
        last = len(voice) if stop is None else int(stop * RATE)
        np.testing.assert_allclose(read, (noise - voice)[int(start * RATE) : last], atol=1e-4)
        assert len(notes) == 1 and "channel 2, the louder" in notes[0]
    assert len(read_notes(path)) == 1


def test_other_stereo_is_averaged_without_a_note(tmp_path):
    one, two = make_voice(2 * RATE, 0), make_voice(2 * RATE, 1)
    for left, right in ((one, one), (one, two), (one, 0 * one), (0 * one, 0 * one)):
        path, notes = write_stereo(tmp_path / "a.wav", left, right), []
        read = np.concatenate(list(read_sound(path, notes=notes)))
        np.testing.assert_allclose(read, (left + right) / 2, atol=1e-4)
        assert not notes


def test_channels_are_compared_for_ten_minutes_only(tmp_path):
    """Stop and limits wait for it: an hour's would be 9 s of an MP3."""
    voice = np.zeros(660 * 1000, np.float32)
    path = tmp_path / "a.wav"
    for begin, expected in ((590, 0), (601, None)):
        voice[begin * 1000 :] = 0.5
        soundfile.write(path, np.stack([voice, -0.9 * voice], axis=1), 1000, "PCM_U8")
        assert choose_channel(path) == expected
        voice[:] = 0


def test_a_pipe_is_no_recording(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(InputError, match="not a regular file"):
        next(read_sound(tmp_path / "a.wav"))


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


# --- files --------------------------------------------------------------------------------------


def test_files_are_listed_without_hidden_ones(tmp_path):
    for name in ("b/2.wav", "b/._2.wav", ".git/1.wav", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = {name: tmp_path / name for name in ("a.txt", "b/2.wav")}
    assert list_files(tmp_path) == expected


def test_linked_folders_are_followed_once_and_pipes_not_listed(tmp_path):
    source, other = tmp_path / "source", tmp_path / "other"
    for name in ("b/2.wav", "1.wav"):
        write = source / name
        write.parent.mkdir(parents=True, exist_ok=True)
        write.touch()
    other.mkdir()
    (other / "3.wav").touch()
    (source / "a").symlink_to(".")
    (source / "b" / "up").symlink_to("..")
    (source / "a_link_to_b").symlink_to("b")
    (source / "linked").symlink_to(other)
    (other / "back").symlink_to(source)
    os.mkfifo(source / "pipe.wav")
    (source / "gone.wav").symlink_to("nowhere")
    assert sorted(list_files(source)) == ["1.wav", "b/2.wav", "linked/3.wav"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "lost+found").mkdir()  # of every disk, and the system's
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.wav").touch()
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path):  # the tests may run as root, to whom nothing is closed
        if Path(path).name in ("closed", "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"closed: cannot be read \(Permission denied\)"):
        list_files(tmp_path)
    (tmp_path / "closed").rmdir()
    assert list(list_files(tmp_path)) == ["a/1.wav"]
    for no_folder in ("none", "a/1.wav"):
        assert list_files(tmp_path / no_folder) == {}


def test_names_match_in_either_unicode_form():
    composed, decomposed = (unicodedata.normalize(form, "Zoé.wav") for form in ("NFC", "NFD"))
    for name, file in ((composed, decomposed), (decomposed, composed)):
        assert match_names([name], [file]) == ({name: file}, [])
    assert match_names(["A.wav", "b.wav"], ["a.wav"]) == (
        {},
        ["A.wav (a.wav differs in case: rename it)", "b.wav"],
    )


def test_a_name_without_suffix_means_the_one_recording_of_that_name():
    composed, decomposed = (unicodedata.normalize(form, "Zoé") for form in ("NFC", "NFD"))
    files = [f"{decomposed}.WAV", "v1.2.wav", "a.wav", "a.mp3", "b.txt", "c", "c.wav"]
    found = {composed: files[0], decomposed: files[0], "v1.2": "v1.2.wav", "c": "c"}
    assert match_names([*found, "v1", "a", "b"], files) == (found, ["v1", "a", "b"])
    assert match_names(["V1.2"], files)[1] == ["V1.2 (v1.2.wav differs in case: rename it)"]


@pytest.mark.parametrize("seconds", [1, 8, 30])
def test_a_clip_is_complete_or_not(tmp_path, seconds):
    settings = audio.SETTINGS | {"clip_seconds": seconds}
    path = tmp_path / "a.npy"
    assert not is_complete(path, settings)
    write_clip(path, log_mel(make_voice(seconds * RATE, 0)))
    assert is_complete(path, settings)
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_complete(path, settings)


def test_dataset_json_has_a_format_and_a_newer_one_is_refused(tmp_path):
    assert read_info(tmp_path) is None and read_info(tmp_path / "none") is None
    rows = [{"id": f"{n}_clip_0", "label": n, "participant": str(n)} for n in (0, 1)]
    write_dataset(tmp_path, rows, {"corpus": "two", "more": 1})
    expected = "id,label,participant\n0_clip_0,0,0\n1_clip_0,1,1\n"
    assert (tmp_path / "dataset.csv").read_text() == expected
    info = read_info(tmp_path)
    assert info["format"] == DATASET_FORMAT and info["corpus"] == "two" and info["more"] == 1
    assert info["counts"] == {"clips": 2, "participants": 2} and info["synthetic"] is False
    assert info["settings"] == audio.SETTINGS and info["versions"]["librosa"]
    del info["format"]  # as they were written before the numbers
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    assert read_info(tmp_path) == info
    (tmp_path / "dataset.json").write_text(json.dumps(info | {"format": DATASET_FORMAT + 1}))
    with pytest.raises(InputError, match=f"dataset.json: format {DATASET_FORMAT + 1}, .* update"):
        read_info(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "1", '{"a": '])
def test_another_programs_dataset(tmp_path, content):
    (tmp_path / "dataset.csv").touch()
    assert read_info(tmp_path) == {}
    (tmp_path / "dataset.json").write_text(content)
    assert read_info(tmp_path) == {}
    write_info(tmp_path, {"corpus": None})
    assert read_info(tmp_path) == {"format": DATASET_FORMAT, "corpus": None}
