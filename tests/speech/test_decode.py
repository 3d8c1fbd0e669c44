"""speech/decode.py: recordings that libsndfile does not read."""

import time

from speech import apart, audio, decode
from speech.cli import InputError
from speech.dataset import read_spectrogram

import av
import numpy as np
import pytest
from phone_recordings import write_recording

KINDS = {"m4a": "aac", "mp4": "aac", "mov": "aac", "3gp": "aac", "aac": "aac", "webm": "libopus"}
KINDS |= {"mka": "libopus", "wma": "wmav2", "amr": "libopencore_amrnb"}
RATES = {"amr": 8000}  # all that it knows


def read(path, start=0.0, stop=None):
    rate, *blocks = apart.run(decode.read_frames, str(path), start, stop)
    return rate, np.concatenate([np.empty(0, np.float32), *blocks])


@pytest.mark.parametrize(("suffix", "codec"), KINDS.items())
def test_a_phones_recording_is_read(suffix, codec, tmp_path):
    path = tmp_path / f"a.{suffix}"
    right = write_recording(path, codec, rate=RATES.get(suffix, 48_000))
    assert decode.is_foreign(path)
    rate, samples = read(path)
    assert rate == RATES.get(suffix, 48_000) and samples.dtype == np.float32
    assert len(samples) == pytest.approx(len(right), abs=0.15 * rate)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * rate / len(samples) == pytest.approx(440, abs=2)
    thirds = [np.std(part) for part in np.array_split(samples, 3)]
    assert thirds == sorted(thirds)  # louder and louder


def test_a_part_is_read_from_where_it_starts(tmp_path):
    path = tmp_path / "a.m4a"
    write_recording(path, "aac", seconds=20)
    rate, whole = read(path)
    _, part = read(path, 12.0, 14.0)
    assert len(part) == 2 * rate
    # AAC's priming shifts what a seek finds by less than a frame of 1024 samples.
    loud = np.std(whole[12 * rate : 14 * rate])
    assert np.std(part) == pytest.approx(loud, rel=0.02)


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "a.m4a"
    right = write_recording(path, "aac", channels=2)
    rate, samples = read(path)
    assert np.std(samples) == pytest.approx(np.std(right), rel=0.05)


def test_what_libsndfile_reads_is_left_to_it(tmp_path):
    for name, start in {"a.wav": b"RIFF1234WAVE", "a.mp3": b"\xff\xfb", "b.flac": b"fLaC"}.items():
        (tmp_path / name).write_bytes(start)
        assert not decode.is_foreign(tmp_path / name)


def test_what_is_no_sound_is_named(tmp_path):
    path = tmp_path / "a.m4a"
    for start, kind in decode.KINDS.items():
        path.write_bytes(start + b" rest")
        assert decode.name_kind(path) == kind
    path.write_bytes(b"something")
    assert decode.name_kind(path) == ""


FTYP, RIFF = b"\0\0\0\x18", b"RIFF\x10\0\0\0"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("labels.csv", b"id,label\n1,0\n", "text"),
        ("a.wav", b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Office document"),
        ("a.m4a", b"{\\rtf1", "an RTF document"),
        ("a.wav", b"MThd\0\0\0\6", "a MIDI file"),
        ("a.wav", RIFF + b"WEBPVP8 ", "a WebP picture"),
        ("a.m4a", FTYP + b"ftypheic\0\0\0\0", "a HEIC picture"),
        ("a.m4a", FTYP + b"ftypavif\0\0\0\0", "an AVIF picture"),
        ("a.wav", b"\x1f\x8b\x08\0", "an archive"),
        ("a.wav", b"7z\xbc\xaf\x27\x1c", "an archive"),
        ("a.wav", b"Rar!\x1a\x07", "an archive"),
        ("a.wav", b"a.wav".ljust(257, b"\0") + b"ustar", "an archive"),
        ("a.wav", b"\x93NUMPY\1\0", "a NumPy array: name it .npy"),
        ("a.npy", b"%PDF-1.7", "a PDF"),
        ("a.npy", b"id,label\n1,0\n", "text"),
        ("a.npy", RIFF + b"WAVE", "sound: name it .wav"),
        ("a.npy", b"fLaC\0\0\0", "sound: name it .flac"),
        ("a.npy", FTYP + b"ftypM4A ", "sound: name it .m4a"),
    ],
)
def test_both_readers_name_what_a_file_is(name, content, kind, tmp_path):
    (tmp_path / name).write_bytes(content)
    if name.endswith(".npy"):
        for source in (tmp_path / name, content):
            with pytest.raises(InputError, match=rf"not a \.npy file \({kind}"):
                read_spectrogram(source)
        return
    with pytest.raises(audio.UnreadableSound, match=rf"not readable as sound \({kind}"):
        audio.read_facts(tmp_path / name)


def test_a_video_without_sound_is_named(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(audio.UnreadableSound, match=r"\(a video without sound\)"):
        audio.read_facts(tmp_path / "a.mp4")


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "a.m4a"
    write_recording(path, "aac")
    content = path.read_bytes()
    for damaged in (content[:100], content[:8] + b"\0" * 500, b"\x1aE\xdf\xa3 nonsense"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="^[^\n]+$"):
            read(path)


def test_a_playlist_opens_no_other_file(tmp_path):
    secret, path = tmp_path / "secret.m4a", tmp_path / "list.m4a"
    write_recording(secret, "aac")
    path.write_text(f"#EXTM3U\n#EXTINF:3,\n{secret}\n")
    with pytest.raises(InputError, match="not readable"):
        read(path)
    path.write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    with pytest.raises(InputError, match="not readable"):
        read(path)


def test_the_child_adds_little(tmp_path):
    path = tmp_path / "a.m4a"
    write_recording(path, "aac")
    times = []
    for _ in range(8):
        started = time.monotonic()
        read(path)
        times.append(time.monotonic() - started)
    assert min(times) < 1.0  # 0.3 s on a quiet machine


def test_read_sound_reads_it_under_any_name(tmp_path):
    path = tmp_path / "a.mp3"  # misnamed
    write_recording(tmp_path / "a.m4a", "aac")
    (tmp_path / "a.m4a").rename(path)
    samples = np.concatenate(list(audio.read_sound(path, 16_000)))
    assert len(samples) == pytest.approx(3 * 16_000, abs=2500)
    assert audio.count_samples(path, 16_000, 0, None) == pytest.approx(len(samples), abs=2)
    part = np.concatenate(list(audio.read_sound(path, 16_000, 1, 2)))
    assert len(part) == pytest.approx(16_000, abs=1)
    (tmp_path / "b.m4a").write_bytes(b"%PDF-1.7 and so on")
    with pytest.raises(audio.UnreadableSound, match="a PDF"):
        list(audio.read_sound(tmp_path / "b.m4a", 16_000))
    with pytest.raises(audio.UnreadableSound, match="No such file"):
        list(audio.read_sound(tmp_path / "none.m4a", 16_000))
