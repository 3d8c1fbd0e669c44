"""predict.py against the models themselves, speech/audio.py and speech/report.py."""

import csv
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import predict
from common import CNNDNN, Members, load_weights, save_weights
from predict import NOTICE, SYNTHETIC_NOTICE
from speech import familiarity
from speech.audio import cut_clips, log_mel, read_sound
from speech.cli import InputError, locked
from speech.dataset import min_max, read_spectrogram
from speech.labelled import match_labels
from speech.metadata import unknown_metadata
from speech.report import format_summary, summarize_predictions
from speech.verdict import Row

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import (
    ROOT,
    SHAPE,
    SHARED,
    SOUND,
    call_script,
    error_line,
    run_script,
    weights_file,
    write_clips,
    write_weights,
)
from hypothesis import given
from hypothesis import strategies as st


def make_weights(path, name="lstm", seed=0, **changes):
    """Weights for clips of SHAPE; `changes` goes over their metadata."""
    write_weights(path, name, SHAPE, seed=seed)
    model, metadata = load_weights(path)
    for key, value in changes.items():
        metadata[key] = (metadata[key] or {}) | value if isinstance(value, dict) else value
    save_weights(path, model, metadata)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def pair(folder):
    """The paths of an LSTM and a CNN with temperatures of their own."""
    lstm = make_weights(folder / "lstm.safetensors", temperature=1.7)
    return [lstm, make_weights(folder / "cnn.safetensors", "cnn", seed=1, temperature=2.5)]


@pytest.fixture(scope="module")
def sound_weights(folder):
    """Weights that know their sound settings."""
    return make_weights(folder / "sound_weights.safetensors", preprocessing={"sound": SOUND})


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).random((70, *SHAPE), np.float32)


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- models -------------------------------------------------------------------------------------


def test_an_ensemble_of_one_is_the_model(pair, clips):
    model, metadata = load_weights(pair[1])
    with torch.inference_mode():
        logits = model(torch.from_numpy(clips)) / metadata["temperature"]
    expected = logits.softmax(1)[:, 1].numpy()
    found = predict.predict_probabilities(predict.load_models(pair[1:]), clips)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_ensemble_of_two_is_the_mean_of_their_scaled_logits(pair, clips):
    logits = []
    for path in pair:
        model, metadata = load_weights(path)
        with torch.inference_mode():
            logits.append(model(torch.from_numpy(clips)) / metadata["temperature"])
    expected = (sum(logits) / 2).softmax(1)[:, 1].numpy()
    models = predict.load_models(pair)
    np.testing.assert_allclose(predict.predict_probabilities(models, clips), expected, atol=1e-6)
    assert predict.predict_probabilities(models, []).shape == (0,)


def test_weights_are_read_once_and_the_file_may_change(pair, clips, tmp_path):
    """A memory map would answer with the new file's weights, or end the process with a signal."""
    path = Path(shutil.copy(pair[1], tmp_path))
    models = predict.load_models([path])
    before = predict.predict_probabilities(models, clips)
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes(len(content)))
    np.testing.assert_array_equal(predict.predict_probabilities(models, clips), before)
    os.truncate(path, 0)
    np.testing.assert_array_equal(predict.predict_probabilities(models, clips), before)


def test_the_notebooks_ensemble_gives_the_same_class(weights):
    paths = sorted(weights.glob("*.safetensors"))  # of one temperature, as the notebooks' have none
    models = predict.load_models(paths)
    clips = np.random.default_rng(1).random((8, 128, 251), np.float32)
    spectrogram = torch.from_numpy(clips)
    with torch.no_grad():
        cnn_output, lstm_output = (model(spectrogram) for model, _ in models)
        combined_output = (cnn_output + lstm_output) / 2
        _, predicted = torch.max(combined_output, 1)
    assert ((predict.predict_probabilities(models, clips) > 0.5) == predicted.numpy()).all()


def test_weights_are_found_in_their_order(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "__file__", str(tmp_path / "predict.py"))
    assert predict.find_weights() == []
    with pytest.raises(InputError, match="train_\\*.py"):
        predict.load_models(predict.find_weights())
    example = make_weights(tmp_path / "examples" / "lstm.safetensors")
    assert predict.find_weights() == [example]
    make_weights(tmp_path / "weights" / "lstm.safetensors")
    make_weights(tmp_path / "weights" / "cnn.safetensors", "cnn")
    assert [path.name for path in predict.find_weights()] == ["cnn.safetensors", "lstm.safetensors"]
    assert [path.name for path in predict.find_weights(["a/b.safetensors"])] == ["b.safetensors"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"preprocessing": {"sound": SOUND}}, "preprocessing"),
        ({"shape": [17, 24], "arguments": {"n_mels": 17}}, "shape"),
    ],
)
def test_weights_that_differ_are_no_ensemble(pair, tmp_path, changes, named):
    other = make_weights(tmp_path / "other.safetensors", **changes)
    with pytest.raises(InputError, match=f"other.safetensors: {named} .* but .*lstm.safetensors"):
        predict.load_models([pair[0], other])


def test_weights_of_other_classes_are_refused(pair, parts, tmp_path):
    header, metadata, data = parts
    metadata = metadata | {"class_names": ["Depressed", "Not Depressed"]}
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights_file(header, metadata, data))
    with pytest.raises(InputError, match="other.safetensors: .* class_names .*'Depressed', 'Not"):
        predict.load_models([pair[0], other])


@pytest.mark.parametrize(
    ("probability", "band", "expected"),
    [
        (0.61, predict.UNCERTAIN, "Depressed"),
        (0.6, predict.UNCERTAIN, "uncertain"),
        (0.4, predict.UNCERTAIN, "uncertain"),
        (0.39, predict.UNCERTAIN, "Not Depressed"),
        (0.39, (0.2, 0.8), "uncertain"),
        (0.51, (0.5, 0.5), "Depressed"),
    ],
)
def test_verdict(probability, band, expected):
    assert predict.verdict(probability, band) == expected


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(0, "under 5%"), (0.0499, "under 5%"), (0.05, "5%"), (0.634, "63%"), (0.95, "95%")]
    + [(0.951, "over 95%"), (1, "over 95%")],
)
def test_no_certainty_is_shown(probability, expected):
    assert predict.format_probability(probability) == expected


# --- clips without a verdict --------------------------------------------------------------------


def speak(rng, people, clips, shape=SHAPE):
    """Clips (N, M, T) alike within a person and across people: what familiarity learns."""
    voices = np.repeat(rng.normal(0, 0.2, (people, shape[0], 1)), clips, axis=0)
    return [min_max(one) for one in voices + rng.normal(size=(people * clips, *shape))]


@pytest.fixture(scope="module")
def knowing(folder):
    """Weights that know what their training clips sound like."""
    rng = np.random.default_rng(0)
    known = familiarity.fit(speak(rng, 20, 10), np.repeat(np.arange(20), 10))
    return make_weights(folder / "knowing.safetensors", familiarity=known)


@pytest.fixture(scope="module")
def mixed(folder):
    """A folder: of a and b 3 of 4 clips are familiar, of c 1 of 4."""
    (folder / "mixed").mkdir()
    rng = np.random.default_rng(1)
    for person, strange in (("a", 0), ("b", 1), ("c", 3)):
        for n, clip in enumerate(speak(rng, 1, 4)):
            clip = clip * np.linspace(0, 1, 16)[:, None] if n < strange else clip
            np.save(folder / "mixed" / f"{person}_clip_{n}.npy", clip.astype(np.float32))
    return folder / "mixed"


def test_unfamiliar_clips_have_no_verdict_and_keep_their_probability(knowing, mixed, tmp_path):
    run = call_script("predict.py", mixed, "--weights", knowing, "--csv", tmp_path / "o.csv")
    assert run.returncode == 0 and predict.NOT_CHECKED not in run.stdout
    rows = read_rows(tmp_path / "o.csv")
    paths, models = sorted(mixed.glob("*.npy")), predict.load_models([knowing])
    expected = predict.predict_probabilities(models, map(read_spectrogram, paths))
    known = models[0][1]["familiarity"]
    for row, path, probability in zip(rows[:12], paths, expected, strict=True):
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-6)
        strange = path.stem in ("b_clip_0", "c_clip_0", "c_clip_1", "c_clip_2")
        assert (row["verdict"] == "no verdict") == strange
        times = familiarity.score(known, read_spectrogram(path))
        note = f"unlike the training clips, {np.ceil(10 * times) / 10:.1f} times the limit"
        assert row["note"] == (note if strange else "")
    a, b, c = rows[12:]
    assert a["note"] == "mean of 4"
    assert float(a["probability"]) == pytest.approx(expected[:4].mean(), abs=1e-6)
    assert b["note"] == "mean of 3, 1 without a verdict left out"
    assert float(b["probability"]) == pytest.approx(expected[5:8].mean(), abs=1e-6)
    assert c["verdict"] == "no verdict" and c["note"] == "3 of 4 without a verdict"
    assert float(c["probability"]) == pytest.approx(expected[8:].mean(), abs=1e-6)


def test_predictions_are_those_of_the_weights_as_trained(tmp_path, monkeypatch):
    """Batch-norms are folded into the convolutions on loading, and nothing else changes."""
    torch.manual_seed(0)
    model = CNNDNN(*SHAPE)
    for norm in (model.batchnorm1, model.batchnorm2, model.batchnorm3):
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.5, 2)
    path = tmp_path / "cnn.safetensors"
    save_weights(path, model, unknown_metadata("cnn", model.arguments))
    clips = np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32)
    models = predict.load_models([path])
    assert isinstance(models[0][0].batchnorm1, torch.nn.Identity)
    expected = torch.softmax(model.eval()(torch.from_numpy(clips)), 1)[:, 1].detach().numpy()
    for available in (torch.backends.mkldnn.is_available(), False):  # oneDNN's layout, PyTorch's
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda found=available: found)
        for count in (1, 2, 5):  # clips: the convolutions take two at a time
            found = predict.predict_probabilities(models, clips[:count])
            np.testing.assert_allclose(found, expected[:count], atol=1e-6, rtol=0)


def test_the_spread_is_of_the_networks_probabilities(pair, corpus):
    """A file of two members is the ensemble of two files, and their spread its own."""
    models = predict.load_models(pair)
    facts = [metadata | {"temperature": 1.5} for _, metadata in models]
    clips = [read_spectrogram(path) for path in sorted((corpus / "Spectrograms").glob("*"))[:5]]
    apart = [(model, one) for (model, _), one in zip(models, facts, strict=True)]
    found = [predict.predict_probabilities([one], clips) for one in apart]
    members = [(Members([model for model, _ in models]), facts[0])]
    for ensemble in (apart, members):
        log_odds = predict.predict_log_odds(ensemble, clips)
        np.testing.assert_allclose(predict.measure_spread(log_odds), np.std(found, 0), atol=1e-6)
        mean = predict.mean_probability(log_odds)
        np.testing.assert_allclose(mean, predict.predict_probabilities(apart, clips), atol=1e-6)
    assert predict.measure_spread(predict.predict_log_odds(apart[:1], clips)) is None


def test_half_of_the_clips_are_enough():
    clips = [
        predict.Row("a_1", "a", 0.9, "Depressed", "", 0.2),
        predict.Row("a_2", "a", 0.1, predict.NO_VERDICT, predict.SILENT, 0.4),
    ]
    row = predict.summarize_person("a", clips, predict.UNCERTAIN)
    assert row == ("", "a", 0.9, "Depressed", "mean of 1, 1 without a verdict left out", 0.2)
    row = predict.summarize_person("a", clips[1:], predict.UNCERTAIN)
    assert row == ("", "a", 0.1, "no verdict", "1 of 1 without a verdict", 0.4)


def test_the_table_shows_no_probability_without_a_verdict(knowing, mixed):
    run = call_script("predict.py", mixed / "c_clip_0.npy", "--weights", knowing)
    assert re.search(
        r"\nc_clip_0 +no verdict +unlike the training clips, .* the limit\n", run.stdout
    )
    assert re.search(r"\nc +no verdict +1 of 1 without a verdict\n", run.stdout)


def test_one_member_of_an_ensemble_can_refuse(knowing, pair, mixed):
    clip, models = read_spectrogram(mixed / "c_clip_0.npy"), predict.load_models([*pair, knowing])
    alone = predict.explain_refusal(models[2:], clip)
    assert alone.startswith("unlike") and predict.explain_refusal(models, clip) == alone
    assert predict.explain_refusal(models[:2], clip) == ""
    assert predict.NOT_CHECKED in predict.notice(models)
    assert predict.NOT_CHECKED not in predict.notice(models[2:])
    far = dict(models[2][1]["familiarity"])
    far["limits"] = np.full((2, 2), 1e-30, np.float32)
    strict = [(None, {"familiarity": far})]
    assert "over 1000 times the limit" in predict.explain_refusal(strict, clip)


def test_a_repeated_clip_has_limits_of_its_own(knowing, mixed):
    known = dict(load_weights(knowing)[1]["familiarity"])
    known["limits"] = np.float32([[1e9, 1e9], [1e-9, 1e-9]])
    clip = read_spectrogram(mixed / "a_clip_0.npy")
    models = [(None, {"familiarity": known})]
    assert predict.explain_refusal(models, clip) == ""
    assert predict.explain_refusal(models, clip, f"75% {predict.REPEATED}").startswith("unlike")


@pytest.mark.parametrize(("frames", "expected"), [(7, "mostly silence"), (8, "")])
def test_mostly_silent_clips_have_no_verdict(pair, tmp_path, frames, expected):
    clip = np.full(SHAPE, 0.4, np.float32)
    clip[0, 0], clip[3, :frames] = 0, 1
    np.save(tmp_path / "a.npy", clip)
    clip_row, person = predict.predict(predict.load_models(pair), [tmp_path / "a.npy"])
    assert clip_row.note == expected and 0 < clip_row.probability < 1
    assert (clip_row.verdict == "no verdict") == bool(expected) == (person.verdict == "no verdict")


def test_labels_also_score_what_is_left(knowing, mixed, tmp_path):
    names = sorted(path.stem for path in mixed.glob("*.npy"))
    labels = pd.DataFrame({"id": names, "label": [name[0] == "b" for name in names]})
    labels.astype({"label": int}).to_csv(tmp_path / "labels.csv", index=False)
    flags = ["--weights", knowing, "--labels", tmp_path / "labels.csv"]
    run = call_script("predict.py", mixed, *flags, "--csv", tmp_path / "o.csv")
    assert "12 clips of 3 people, 1 Depressed" in run.stdout
    assert "67% have a verdict: 8 clips of 3 people, 1 Depressed" in run.stdout


# --- occlusion ----------------------------------------------------------------------------------


class PatchDetector(torch.nn.Module):
    """Looks at one patch: the more sound in it, the surer of Depressed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        level = self.weight * x[:, 32:44, 96:120].sum((1, 2)) / 288
        return torch.stack([torch.zeros_like(level), level], 1)


def test_explain_finds_what_the_model_looks_at():
    clip = np.random.default_rng(0).random((128, 251), np.float32)
    moved = predict.explain([(PatchDetector(), {"temperature": 1.0})], clip)
    assert moved.shape == predict.PATCHES
    assert np.unravel_index(moved.argmax(), moved.shape) == (1, 3)
    assert moved.max() > 0.1 and (np.delete(moved.ravel(), moved.argmax()) == 0).all()


def test_explain_is_one_silenced_patch_after_another(pair, clips):
    models, clip = predict.load_models(pair), clips[0]
    whole = predict.predict_probabilities(models, [clip])[0]
    expected = np.empty(predict.PATCHES)
    for m, bins in enumerate(np.array_split(np.arange(16), predict.PATCHES[0])):
        for t, frames in enumerate(np.array_split(np.arange(24), predict.PATCHES[1])):
            silenced = clip.copy()
            silenced[bins[0] : bins[-1] + 1, frames[0] : frames[-1] + 1] = 0
            expected[m, t] = whole - predict.predict_probabilities(models, [silenced])[0]
    np.testing.assert_allclose(predict.explain(models, clip), expected, atol=1e-6)
    assert np.abs(expected).max() > 1e-4


def test_explain_of_a_clip_with_fewer_bins_than_patches():
    moved = predict.explain([(PatchDetector(), {"temperature": 1.0})], np.ones((3, 5), np.float32))
    assert moved.shape == (3, 5)


# --- clips --------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 20), st.booleans())
def test_windows_cover_everything_once_but_for_the_last(total, length, flat):
    array = np.arange(1.0, total + 1) if flat else np.arange(1.0, 2 * total + 1).reshape(2, total)
    pieces, starts, note = predict.cut_windows(array, length)
    assert all(piece.shape == (*array.shape[:-1], length) for piece in pieces)
    if total < length:
        assert starts == [0] and note == f"{total / length:.0%} {predict.REPEATED}"
        repeats = np.concatenate([array] * -(-length // total), axis=-1)
        np.testing.assert_array_equal(pieces[0], repeats[..., :length])
        return
    assert note == "" and starts[-1] == total - length and len(pieces) == -(-total // length)
    assert starts[:-1] == list(range(0, total - length, length))
    for piece, start in zip(pieces, starts, strict=True):
        np.testing.assert_array_equal(piece, array[..., start : start + length])


def test_spectrograms_longer_and_shorter_than_the_model(pair, tmp_path):
    metadata = load_weights(pair[0])[1]
    array = np.random.default_rng(0).normal(size=(16, 60)).astype(np.float32)
    np.save(tmp_path / "long.npy", array)
    clips, starts, note = predict.read_input(tmp_path / "long.npy", metadata)
    scaled = min_max(array)
    expected = [min_max(scaled[:, start : start + 24]) for start in (0, 24, 36)]
    np.testing.assert_array_equal(clips, expected)
    np.testing.assert_allclose(starts, np.array([0, 24, 36]) * 512 / 16_000)
    assert note == "" and clips.dtype == np.float32
    same = predict.read_input((tmp_path / "long.npy").read_bytes(), metadata)[0]
    np.testing.assert_array_equal(same, clips)
    np.save(tmp_path / "short.npy", array[:, :18])
    clips, _, note = predict.read_input(tmp_path / "short.npy", metadata)
    np.testing.assert_array_equal(clips[0, :, :18], min_max(array[:, :18]))
    np.testing.assert_array_equal(clips[0, :, 18:], clips[0, :, :6])
    assert note == "75% of a clip's length, repeated to fill it"
    np.save(tmp_path / "shorter.npy", array[:, :11])
    with pytest.raises(InputError, match="^11 frames; at least 12 are needed, better 24$"):
        predict.read_input(tmp_path / "shorter.npy", metadata)
    np.save(tmp_path / "other.npy", array[:8])
    with pytest.raises(InputError, match=r"expected clips of \(16, 24\).*found \(8, 24\)"):
        predict.read_input(tmp_path / "other.npy", metadata)


def test_a_clip_of_the_right_length_is_left_as_it_is(pair, tmp_path, clips):
    np.save(tmp_path / "clip.npy", clips[0])
    (clip,), starts, note = predict.read_input(tmp_path / "clip.npy", load_weights(pair[0])[1])
    np.testing.assert_array_equal(clip, read_spectrogram(tmp_path / "clip.npy"))
    assert starts.tolist() == [0] and note == ""


def test_a_recording_is_cut_and_transformed_as_for_training(sound_weights, tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.1, 8000 * 5 // 2).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    clips, starts, note = predict.read_input(tmp_path / "a.wav", load_weights(sound_weights)[1])
    assert starts.tolist() == [0, 1, 1.5] and note == ""
    expected = [log_mel(samples[n : n + 8000], SOUND) for n in (0, 8000, 12_000)]
    np.testing.assert_array_equal(clips, expected)


def test_a_recording_is_resampled_as_for_training(sound_weights, tmp_path):
    time = np.arange(44_100 * 3) / 44_100
    soundfile.write(tmp_path / "a.flac", 0.5 * np.sin(2 * np.pi * 440 * time**2), 44_100)
    clips, starts, _ = predict.read_input(tmp_path / "a.flac", load_weights(sound_weights)[1])
    blocks = read_sound(tmp_path / "a.flac", 8000)
    expected = [log_mel(samples, SOUND) for samples in cut_clips(blocks, 8000)]
    np.testing.assert_array_equal(clips, expected)
    assert starts.tolist() == [0, 1, 2]


def test_silence_in_a_recording_is_skipped(sound_weights, tmp_path, monkeypatch):
    metadata = load_weights(sound_weights)[1]
    samples = np.random.default_rng(0).normal(0, 0.1, 24_000)
    samples[8000:16_000] = 0
    soundfile.write(tmp_path / "a.wav", samples, 8000)
    clips, starts, note = predict.read_input(tmp_path / "a.wav", metadata)
    assert starts.tolist() == [0, 2] and len(clips) == 2 and note == "1 silent clips skipped"
    soundfile.write(tmp_path / "c.wav", 0 * samples, 8000)
    with pytest.raises(InputError, match="^silent$"):
        predict.read_input(tmp_path / "c.wav", metadata)
    monkeypatch.setattr(predict, "MAX_SECONDS", 1.8)
    with pytest.raises(InputError, match="longer than 0.0005 hours"):
        predict.read_input(tmp_path / "a.wav", metadata)


def test_a_short_recording_is_repeated_and_a_shorter_one_refused(sound_weights, tmp_path):
    metadata, path = load_weights(sound_weights)[1], tmp_path / "a.wav"
    samples = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32)
    soundfile.write(path, samples, 8000, subtype="FLOAT")
    clips, _, note = predict.read_input(path, metadata)
    expected = log_mel(np.concatenate([samples, samples[:3000]]), SOUND)
    np.testing.assert_array_equal(clips, [expected])
    assert note == "62% of a clip's length, repeated to fill it"
    soundfile.write(path, samples[:3999], 8000)
    with pytest.raises(InputError, match=r"^0.4 s; at least 0.5 s are needed, better 1$"):
        predict.read_input(path, metadata)


@pytest.mark.parametrize(
    ("seconds", "refused"), [(2.1, "2.1 s"), (3.99, "3.9 s"), (4, ""), (5, ""), (8, "")]
)
def test_half_a_clip_is_needed_in_seconds(weights, tmp_path, seconds, refused):
    metadata = load_weights(weights / "lstm.safetensors")[1]
    samples = np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    np.save(tmp_path / "a.npy", log_mel(samples))
    for name in ("a.wav", "a.npy"):
        if refused:
            words = f"^{refused}; at least 4 s are needed, better 8$"
            with pytest.raises(InputError, match=words if name == "a.wav" else "at least 4 s are"):
                predict.read_input(tmp_path / name, metadata)
        else:
            assert predict.read_input(tmp_path / name, metadata)[0].shape == (1, 128, 251)


def test_weights_without_sound_settings_take_the_notebooks(pair, weights, tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000 * 8)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    clips, _, note = predict.read_input(
        tmp_path / "a.wav", load_weights(weights / "lstm.safetensors")[1]
    )
    np.testing.assert_array_equal(clips[0], log_mel(samples.astype(np.float32)))
    assert "16000 Hz assumed" in note
    with pytest.raises(InputError, match=r"expected clips of \(16, 24\).*found \(128, 251\)"):
        predict.read_input(tmp_path / "a.wav", load_weights(pair[0])[1])


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(folder):
    """Spectrograms/ of 6 people with 4 clips each, and dataset.csv."""
    return write_clips(folder / "corpus", participants=6, clips=4, shape=SHAPE)


def test_one_row_per_clip_and_participant(pair, corpus, tmp_path):
    out = tmp_path / "new" / "out.csv"
    run = call_script("predict.py", corpus / "Spectrograms", "--weights", *pair, "--csv", out)
    assert run.returncode == 0, run.stderr
    assert NOTICE in run.stdout and "24 clips of 6 participants" in run.stdout
    assert out.read_text().splitlines()[0] == "clip,participant,probability,verdict,note,spread"
    rows, models = read_rows(out), predict.load_models(pair)
    paths = sorted((corpus / "Spectrograms").glob("*.npy"))
    expected = predict.predict_probabilities(models, map(read_spectrogram, paths))
    by_clip = {row["clip"]: row for row in rows if row["clip"]}
    assert list(by_clip) == [path.stem for path in paths]
    for path, probability in zip(paths, expected, strict=True):
        row = by_clip[path.stem]
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-6)
        assert row["participant"] == path.stem[:3] and row["note"] == ""
        assert row["verdict"] == predict.verdict(probability)
    people = [row for row in rows if not row["clip"]]
    means = expected.reshape(6, 4).mean(1)
    assert [row["participant"] for row in people] == [f"{n:03}" for n in range(6)]
    assert [float(row["probability"]) for row in people] == pytest.approx(means, abs=1e-6)


def test_the_table_says_what_the_csv_says(pair, corpus, tmp_path):
    path = corpus / "Spectrograms" / "002_clip_8.npy"
    flags = ["--weights", *pair, "--uncertain", "0", "1"]
    call_script("predict.py", path, *flags, "--csv", tmp_path / "out.csv")
    run = call_script("predict.py", path, *flags)
    row = read_rows(tmp_path / "out.csv")[0]
    assert NOTICE in run.stdout and SYNTHETIC_NOTICE not in run.stdout
    shown = predict.format_probability(float(row["probability"]))
    spread = f"{float(row['spread']):.0%}"
    assert re.search(rf"002_clip_8 +{shown} +{spread} +uncertain", run.stdout)
    assert re.search(r"\n002 .*mean of 1\n", run.stdout)


def test_bad_files_among_good_ones(sound_weights, tmp_path):
    clips = write_clips(tmp_path, participants=2, clips=1, shape=SHAPE) / "Spectrograms"
    (clips / "bad.npy").write_bytes(b"nonsense")
    (clips / "=cmd.npy").write_bytes(b"")
    (clips / "notes.txt").write_text("not looked at")
    (clips / "broken.WAV").write_text("not sound")
    noise = np.random.default_rng(0).normal(0, 0.1, 20_000)
    soundfile.write(clips / "talk.wav", noise, 8000)
    run = call_script(
        "predict.py", clips, "--weights", sound_weights, "--csv", tmp_path / "out.csv"
    )
    assert run.returncode == 1 and "5 clips of 3 participants; 3 files could not" in run.stdout
    rows = read_rows(tmp_path / "out.csv")
    bad = {row["clip"]: row for row in rows if row["verdict"] == "error"}
    assert bad.keys() == {"bad", "'=cmd", "broken"}
    assert all(row["probability"] == "" and row["note"] for row in bad.values())
    assert "not a .npy file" in bad["bad"]["note"]
    good = [row["clip"] for row in rows if row["probability"] and row["clip"]]
    talk = ["talk_clip_0", "talk_clip_1", "talk_clip_1.5"]
    assert good == ["000_clip_0", "001_clip_0", *talk]
    assert {r["participant"] for r in rows if r["clip"] in talk} == {"talk"}


def test_synthetic_weights_say_so(tmp_path, corpus):
    path = write_weights(tmp_path / "s.safetensors", shape=SHAPE, synthetic=True)
    run = call_script("predict.py", corpus / "Spectrograms", "--weights", path)
    assert f"{NOTICE} {SYNTHETIC_NOTICE}" in run.stdout


def test_files_are_read_as_rows_are_written(pair, corpus, monkeypatch):
    read, paths = [], list((corpus / "Spectrograms").glob("*.npy")) * 10
    reader = predict.read_input
    monkeypatch.setattr(predict, "read_input", lambda p, *rest: read.append(p) or reader(p, *rest))
    rows = predict.predict(predict.load_models(pair[:1]), iter(paths))
    next(rows)
    assert len(read) <= predict.CLIPS_AT_ONCE
    assert len(list(rows)) == len(paths) - 1 + 6 and len(read) == len(paths)


def test_a_run_that_dies_leaves_the_old_csv(pair, corpus, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    out.write_text("old")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "verdict", die)
    run = call_script("predict.py", corpus / "Spectrograms", "--weights", *pair, "--csv", out)
    assert run.returncode == 130 and out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


STOPPED = """
import os, signal
import predict
from speech.cli import run

predict.verdict = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
run(predict.main)
"""


def test_a_stopped_run_leaves_nothing_and_another_one_does_not_share_its_csv(
    pair, corpus, tmp_path
):
    out = tmp_path / "out.csv"
    flags = [corpus / "Spectrograms", "--weights", pair[0], "--csv", out]
    command = list(map(str, [sys.executable, "-c", STOPPED, *flags]))
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 143 and "Traceback" not in process.stderr
    assert not os.listdir(tmp_path)
    with locked(out):
        line = error_line(call_script("predict.py", *flags))
    assert "out.csv: another run is writing it" in line and not out.exists()


# --- labels -------------------------------------------------------------------------------------


def test_labels_score_the_predictions(pair, corpus, tmp_path):
    labels = pd.read_csv(corpus / "dataset.csv", dtype=str)[2:]
    labels.assign(mood="").to_csv(tmp_path / "labels.csv", index=False)
    flags = ["--weights", *pair, "--labels", tmp_path / "labels.csv", "--csv", tmp_path / "o.csv"]
    run = call_script("predict.py", corpus / "Spectrograms", *flags)
    assert run.returncode == 0, run.stderr
    rows = pd.read_csv(tmp_path / "o.csv", dtype=str).dropna(subset="clip")
    frame = labels.merge(rows, left_on="id", right_on="clip").astype(
        {"probability": float, "label": int}
    )
    title = f"Scored by {tmp_path / 'labels.csv'}"
    expected = format_summary(title, summarize_predictions(frame.assign(answered=True)))
    assert expected in run.stdout
    assert "2 clips have no label and are not scored" in run.stdout
    assert f"note: {tmp_path / 'labels.csv'}: columns that are not used: mood" in run.stdout
    # conftest's weights have seen participant 001
    assert "optimistic: 4 clips of 1 participants have ids that the weights were" in run.stdout


def test_labels_of_recordings_count_for_all_their_windows(sound_weights, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", rng.normal(0, 0.1, 20_000), 8000)
    (tmp_path / "labels.csv").write_text("id,label\na,0\nb,1\n")
    run = call_script(
        "predict.py", tmp_path, "--weights", sound_weights, "--labels", tmp_path / "labels.csv"
    )
    assert "6 clips of 2 people, 1 Depressed" in run.stdout and "no label" not in run.stdout
    assert "optimistic" not in run.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,label\nsomebody,1\n", "such as 'somebody': clips have names such as '000_clip_0'"),
        ("name,label\n000_clip_0,1\n", "expected columns id and label"),
        ("file,label\na.wav,1\n", "found 'file', 'label' (here id is a file's name)"),
    ],
)
def test_labels_that_match_no_clip(pair, corpus, tmp_path, content, words):
    (tmp_path / "labels.csv").write_text(content)
    flags = ["--weights", *pair, "--labels", tmp_path / "labels.csv"]
    assert words in error_line(call_script("predict.py", corpus / "Spectrograms", *flags))


# --- bad input ----------------------------------------------------------------------------------


def test_a_folder_with_nothing_usable(pair, tmp_path):
    (tmp_path / "readme.txt").write_text("")
    line = error_line(call_script("predict.py", tmp_path, "--weights", *pair))
    assert f"{tmp_path}: no .npy and no recording there" in line
    line = error_line(call_script("predict.py", tmp_path / "gone.npy", "--weights", *pair))
    assert "gone.npy: no such file or folder" in line


def test_no_such_weights(corpus, tmp_path):
    flags = ["--weights", tmp_path / "none.safetensors"]
    assert "none.safetensors" in error_line(
        call_script("predict.py", corpus / "Spectrograms", *flags)
    )


def test_a_csv_that_cannot_be_written(pair, corpus, tmp_path):
    (tmp_path / "file").write_text("")
    flags = ["--weights", *pair, "--csv", tmp_path / "file" / "out.csv"]
    assert "cannot be written" in error_line(
        call_script("predict.py", corpus / "Spectrograms", *flags)
    )


@pytest.mark.skipif(not SHARED.exists(), reason="no real speech at hand in ../shared/data")
def test_real_speech(weights, tmp_path):
    lstm = weights / "lstm.safetensors"
    recordings = sorted((SHARED / "emodb" / "recordings").glob("*.wav"))[:2]
    spectrograms = sorted((SHARED / "emodb" / "Spectrograms").glob("*.npy"))[:2]
    flags = ["--weights", lstm, "--csv", tmp_path / "out.csv"]
    run = call_script("predict.py", *recordings, *spectrograms, *flags)
    assert run.returncode == 0, run.stdout + run.stderr
    assert all(0 < float(row["probability"]) < 1 for row in read_rows(tmp_path / "out.csv"))


def test_the_same_name_in_two_folders_is_two_people(tmp_path, weights):
    rng = np.random.default_rng(0)
    for person in ("alice", "bob"):
        (tmp_path / person).mkdir()
        np.save(tmp_path / person / "interview.npy", rng.random((128, 251)))
        np.save(tmp_path / person / f"only {person}_clip_0.npy", rng.random((128, 251)))
    flags = ["--weights", weights / "lstm.safetensors", "--csv", tmp_path / "p.csv"]
    process = call_script("predict.py", tmp_path, *flags)
    assert process.returncode == 0 and "4 clips of 4 participants" in process.stdout
    table = pd.read_csv(tmp_path / "p.csv")
    people = set(table["participant"])
    assert {"only alice", "only bob"} <= people
    assert {Path(name).parent.name for name in people if "interview" in name} == {"alice", "bob"}


def test_a_label_of_two_files_is_refused(tmp_path, sound_weights):
    """Whose it is cannot be known, of clips and of recordings alike."""
    rng, labels = np.random.default_rng(0), tmp_path / "labels.csv"
    for person in ("alice", "bob"):
        (tmp_path / person).mkdir()
        np.save(tmp_path / person / "interview.npy", rng.random(SHAPE))
        np.save(tmp_path / person / f"{person}.npy", rng.random(SHAPE))
    flags = [tmp_path, "--weights", sound_weights, "--labels", labels]
    labels.write_text("id,label\ninterview,1\nalice,0\n")
    assert "several files have clips named interview" in error_line(
        call_script("predict.py", *flags)
    )
    labels.write_text("id,label\nalice,0\nbob,1\n")  # those that nobody asks for do no harm
    assert "2 clips of 2 people" in call_script("predict.py", *flags).stdout


def test_windows_of_two_recordings_of_one_name_are_not_told_apart_by_luck():
    """As on the page, where the second one's person has a number."""
    rows = [
        Row(f"interview_clip_{second}", person, 0.5, "uncertain", "")
        for person in ("interview", "interview (2)")
        for second in (0, 8)
    ]
    labels = pd.DataFrame({"id": ["interview"], "label": [1], "participant": ["interview"]})
    with pytest.raises(InputError, match="several files have clips named interview_clip_0"):
        match_labels(rows, labels)
    assert len(match_labels(rows[:2], labels)) == 2 and match_labels([], labels).empty


def test_a_file_that_is_named_twice_is_read_once(pair, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(corpus)
    (tmp_path / "link.npy").symlink_to(corpus / "Spectrograms" / "000_clip_0.npy")
    inputs = ["Spectrograms", corpus / "Spectrograms", tmp_path / "link.npy"]
    run = call_script("predict.py", *inputs, "--weights", *pair, "--csv", tmp_path / "o.csv")
    assert "24 clips of 6 participants" in run.stdout
    assert "note: 25 files are named more than once, and read once" in run.stdout
    assert len(read_rows(tmp_path / "o.csv")) == 30


def test_no_table_and_no_name_of_it_forges_a_line(pair, corpus, tmp_path):
    labels = pd.read_csv(corpus / "dataset.csv", dtype=str)
    path = tmp_path / "a\nAUROC 0.998.csv"
    labels.assign(gender="f\nAUROC 0.999\x1b[31m", mood=1).to_csv(path, index=False)
    run = call_script("predict.py", corpus / "Spectrograms", "--weights", *pair, "--labels", path)
    assert run.returncode == 0, run.stderr
    assert r"f\nauroc 0.999\x1b[31m: 24 clips" in run.stdout
    assert r"a\nAUROC 0.998.csv: columns that are not used: mood" in run.stdout
    assert "\nauroc 0" not in run.stdout.lower()


def test_a_name_with_a_line_break_forges_no_row(tmp_path, weights):
    np.save(tmp_path / "a\nforged,Depressed.npy", np.random.default_rng(0).random((128, 251)))
    process = call_script("predict.py", tmp_path, "--weights", weights / "lstm.safetensors")
    assert process.returncode == 0 and "\nforged" not in process.stdout
    assert r"a\nforged,Depressed" in process.stdout


def test_the_table_may_go_to_a_pipe_or_stdout_and_nothing_else_does(tmp_path, pair, corpus):
    inputs = [corpus / "Spectrograms", "--weights", *pair, "--csv"]
    assert call_script("predict.py", *inputs, tmp_path / "right.csv").returncode == 0
    right = (tmp_path / "right.csv").read_text(encoding="utf-8")
    process = run_script("predict.py", *inputs, "/dev/stdout")
    assert process.returncode == 0 and process.stdout == right
    assert NOTICE in process.stderr and "participants" in process.stderr
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert call_script("predict.py", *inputs, tmp_path / "pipe").returncode == 0
    reader.join()
    assert read == [right]
    reader = threading.Thread(target=lambda: (tmp_path / "pipe").open().close())
    reader.start()
    ended = call_script("predict.py", *inputs, tmp_path / "pipe")
    assert ended.returncode == 141 and "pipe" not in ended.stderr  # nobody wants the rest
    before = os.stat("/dev/null")
    assert call_script("predict.py", *inputs, "/dev/null").returncode == 0
    assert os.stat("/dev/null").st_rdev == before.st_rdev


def test_head_ends_what_is_shown_and_not_the_work(tmp_path, pair, corpus, monkeypatch):
    (ours, theirs), rows = os.pipe(), predict.predict

    def leave(*arguments):  # once the header has been read
        os.close(ours)
        return rows(*arguments)

    monkeypatch.setattr(predict, "predict", leave)
    with open(theirs, "w", buffering=1) as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        flags = ["--weights", *pair, "--labels", corpus / "dataset.csv"]
        patch.setattr(sys, "argv", ["predict.py", *map(str, [corpus / "Spectrograms", *flags])])
        assert predict.main() == 0


def test_a_macs_hidden_twins_are_no_weights(tmp_path, pair):
    for path in pair:
        shutil.copy(path, tmp_path)
        (tmp_path / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    found = [path.name for path in predict.find_weights([tmp_path])]
    assert found == sorted(path.name for path in pair)


def test_no_name_is_a_formula_or_an_escape(tmp_path, pair):
    names = ["=1+1", "＝1+1", "\t=1", "\r=1", "@x", "a\x1b[31m\u202eb"]
    for n, name in enumerate(names):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(n).random(SHAPE))
    flags = [tmp_path, "--weights", pair[0]]
    assert call_script("predict.py", *flags, "--csv", tmp_path / "p.csv").returncode == 0
    found = {row["clip"] for row in read_rows(tmp_path / "p.csv")}
    shown = {"'=1+1", "'＝1+1", r"\t=1", r"\r=1", "'@x", r"a\x1b[31m\u202eb"}
    assert found - {""} == shown
    assert not set(call_script("predict.py", *flags).stdout) & set("\t\r\x1b\u202e")


def test_whoever_watches_hears_of_every_block_clip_and_batch(sound_weights, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(size=80 * 8000), 8000)
    models, heard = predict.load_models([sound_weights] * 2), []
    windows = predict.read_windows(
        [tmp_path / "a.wav"], models[0][1], lambda *facts: heard.append(facts)
    )
    windows = list(windows)
    assert sum(clips for clips, _ in heard) == len(windows) == 80
    assert sum(seconds for _, seconds in heard) == pytest.approx(80)
    heard.clear()
    rows = predict.predict_windows(models, iter(windows), tick=lambda *facts: heard.append(facts))
    assert len([*rows]) == 81
    assert len(heard) == 2 * 3  # 80 clips are 3 batches of each model


def test_transposed_and_power_are_named(tmp_path, weights):
    clip = np.random.default_rng(0).random((128, 251)).astype(np.float32)
    np.save(tmp_path / "transposed.npy", clip.T)
    np.save(tmp_path / "power.npy", 10 ** (20 * clip))
    np.save(tmp_path / "whole.npy", clip)
    process = call_script("predict.py", tmp_path, "--weights", weights / "lstm.safetensors")
    rows = {line.split()[0]: line for line in process.stdout.splitlines() if line.strip()}
    assert "transposed? Save its .T" in rows["transposed"] or process.returncode == 1
    assert "found (251, 128): transposed? Save its .T" in process.stdout
    assert "almost all values next to 0, as mel power has" in process.stdout


def test_labels_match_in_either_unicode_form_and_with_a_sounds_suffix():
    def match(clips, ids):
        rows = [Row(clip, clip.split("_clip_")[0], 0.5, "uncertain", "") for clip in clips]
        labels = pd.DataFrame({"id": ids, "label": 1, "participant": ids})
        return match_labels(rows, labels)[["id", "participant"]].to_numpy().tolist()

    assert len(match(["Mu\u0308ller_clip_0"], ["M\u00fcller_clip_0"])) == 1
    assert len(match(["Mu\u0308ller_clip_0", "Mu\u0308ller_clip_8"], ["M\u00fcller"])) == 2
    assert match(["talk_clip_0"], ["talk.WAV"]) == [["talk", "talk"]]
    assert match(["talk.wav"], ["talk.wav"]) == [["talk.wav", "talk.wav"]]  # of talk.wav.npy
    assert match(["talk_clip_0"], ["talk.wav", "talk.mp3"]) == []  # whose?
    assert match(["talk_clip_0"], ["talk.wav", "talk"]) == [["talk", "talk"]]
