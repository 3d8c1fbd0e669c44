"""Made-up recordings: a voice where the participant speaks, a pure tone everywhere else.

A turn that is read a moment too early, too late or too long brings the tone into a clip.
"""

from speech.audio import SETTINGS
from speech.corpora import merge, subtract

import librosa
import numpy as np
import soundfile

RATE = 16_000  # Hz
TONE = 5_000  # Hz: the interviewer


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


# Why a recording cannot be read, and what the message says.
FAULTS = {
    "empty": "not readable as sound",
    "header": "(empty|not readable)",
    "text": "not readable as sound",
    "truncated": "cut short",
    "nan": "NaN",
    "damaged": "(cut short|not readable as sound)",
    "half": "cut short",
}


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


def make_rows(*times, text="well you know", speaker="Participant"):
    """Rows of a transcript of DAIC-WOZ."""
    return [(a, b, speaker, text) for a, b in times]


def write_daic_session(root, who, seconds, rows, late=0.0, silent=(), folder=None):
    """Sound and transcript; what the participant says in the transcript sounds `late` later."""
    folder = root / (folder or f"{who}_P")
    turns = [(a + late, b + late) for a, b, speaker, text in rows if speaker == "Participant"]
    turns = subtract(merge(turns), silent)
    write_recording(folder / f"{who}_AUDIO.wav", seconds, turns, seed=int(who))
    lines = [f"{a:.3f}\t{b:.3f}\t{speaker}\t{text}" for a, b, speaker, text in rows]
    header = "start_time\tstop_time\tspeaker\tvalue"
    (folder / f"{who}_TRANSCRIPT.csv").write_text("\n".join([header, *lines, ""]))
    (folder / f"._{who}_TRANSCRIPT.csv").write_bytes(b"\x00\x05\x16\x07\x00\x02")
    (folder / f"._{who}_AUDIO.wav").write_bytes(b"\x00\x05\x16\x07\x00\x02")
    (folder / f"{who}_COVAREP.csv").write_text("0,0,0\n")
