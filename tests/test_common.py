"""Models, augmentation, the loop and weights files."""

import json
import math
import os
import signal

import common
import demo
import experiment
import members
import predict
import train_cnn
import train_lstm
from benchmarks.notebooks import NotebookCNN, NotebookLSTM
from common import CNNDNN, LSTMClassifier, load_weights, save_weights
from speech import device, familiarity
from speech.cli import InputError
from speech.dataset import split_clips
from speech.metadata import hash_participant

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from conftest import (
    QUICK,
    SHAPE,
    SOUND,
    changed,
    data_flags,
    fuzzed,
    refused_or_read,
    weights_file,
    write_clips,
    write_weights,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

# --- models -------------------------------------------------------------------------------------


def test_the_notebooks_cnn_weights_give_the_same_logits():
    torch.manual_seed(0)
    theirs, ours, x = NotebookCNN(), CNNDNN(), torch.rand(3, 128, 251)
    for norm in (theirs.batchnorm1, theirs.batchnorm2, theirs.batchnorm3):  # as after training
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    ours.load_state_dict(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == 32_665_410
    with torch.no_grad():
        expected = theirs.eval()(x.unsqueeze(1))
        for model in (ours.eval(), ours.to(memory_format=torch.channels_last)):
            assert (model(x) - expected).abs().max() < 1e-5


def test_the_notebooks_lstm_weights_give_the_same_logits():
    torch.manual_seed(0)
    theirs, ours, x = NotebookLSTM(), LSTMClassifier(), torch.rand(3, 128, 251)
    ours.load_state_dict(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == 327_426
    with torch.no_grad():
        assert (ours.eval()(x) - theirs.eval()(x)).abs().max() < 1e-5


def test_steps_and_pool_by_hand():
    x = torch.rand(2, 10, 7)
    for steps in ("mel", "time"):
        for pool in ("last", "mean"):
            model = LSTMClassifier(10, 7, 5, 2, steps=steps, pool=pool).eval()
            sequence = x if steps == "mel" else x.permute(0, 2, 1)
            out = model.lstm(sequence)[0]
            assert out.shape == (2, 10 if steps == "mel" else 7, 5)
            pooled = out[:, -1] if pool == "last" else out.sum(1) / out.shape[1]
            torch.testing.assert_close(model(x), model.fc(pooled))


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 0.02), (True, 0.2)])
def test_the_cnn_learns_the_same_in_onednns_layout_and_in_pytorchs(monkeypatch, bf16, tolerance):
    torch.manual_seed(0)
    x, y = torch.rand(8, 40, 99), torch.tensor([0, 1] * 4)
    results, layouts, here = [], set(), torch.backends.cpu.get_cpu_capability()
    for capability in (here, "DEFAULT"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        torch.manual_seed(0)
        model = CNNDNN(40, 99, dropout=0)
        model.pool.register_forward_pre_hook(lambda _, inputs: layouts.add(inputs[0].layout))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        learnt = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results.append(learnt | dict(model.named_buffers()) | {"loss": loss.detach()})
    assert len(layouts) == (2 if here == "AVX512" or (here == "AVX2" and not bf16) else 1)
    for name, tensor in results[1].items():
        difference = (results[0][name] - tensor).double().norm()
        assert difference <= tolerance * tensor.double().norm(), name


def test_rotations_are_the_mean_over_starts_of_the_features():
    torch.manual_seed(0)
    once = CNNDNN(16, 56).eval()
    turned = CNNDNN(16, 56, rotations=3).eval()
    turned.load_state_dict(once.state_dict())
    x = torch.rand(23, 16, 56)  # a folded one takes 10, 10 and 3 of them
    features = once.extract(x.unsqueeze(1))
    assert features.shape == (23, 128, 2, 7)

    def answer(features):
        return once.fc3(once.fc2(once.fc1(features.flatten(1)).relu()).relu())

    expected = sum(answer(features.roll(start, dims=3)) for start in (0, 2, 5)) / 3
    torch.testing.assert_close(turned(x), expected)
    assert (turned(x) - once(x)).abs().max() > 1e-4
    folded = CNNDNN(16, 56, rotations=3).eval()
    folded.load_state_dict(once.state_dict())
    folded.fold()
    torch.testing.assert_close(folded(x), expected, atol=1e-6, rtol=1e-5)
    for wrong in (0, 9):
        with pytest.raises(InputError, match=f"rotations {wrong}, expected 1 to 8"):
            CNNDNN(rotations=wrong)


def test_batch_norm_takes_away_what_a_bias_adds():
    model, x = CNNDNN(*SHAPE, dropout=0).train(), torch.rand(4, *SHAPE)
    before = model(x)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["conv1.bias", "conv2.bias", "conv3.bias"]
    for name in frozen:
        model.get_parameter(name).add_(1.0)
    torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)


def test_relu_after_the_pool_is_the_same_function():
    x = torch.randn(2, 3, 9, 11)
    pool = nn.MaxPool2d(2)
    assert torch.equal(pool(x.relu()), pool(x).relu())


@pytest.mark.parametrize("shape", [(128, 251), (64, 400), (8, 8), (40, 99)])
def test_any_shape_is_served(shape):
    x = torch.rand(2, *shape)
    assert CNNDNN(*shape)(x).shape == LSTMClassifier(*shape)(x).shape == (2, 2)


# --- augmentation -------------------------------------------------------------------------------


def test_augmentation_stays_in_range_and_changes_each_clip_differently():
    torch.manual_seed(0)
    x = torch.rand(1, 128, 251).repeat(16, 1, 1)
    y = common.augment(x, 1.0)
    assert y.shape == x.shape and y.min() >= 0 and y.max() <= 1
    assert len({clip.sum().item() for clip in y}) == 16


def test_masks_are_at_most_20_wide_and_silent():
    torch.manual_seed(0)
    x = torch.ones(500, 64, 100)
    for dim, axis in ((1, 2), (2, 1)):
        silent = (common.mask(x, 1.0, dim) == 0).all(axis)  # (B, bins or frames)
        widths = silent.sum(1)
        assert widths.max() == 20 and widths.min() == 0
        edges = silent.int().diff(dim=1).abs().sum(1)
        assert edges.max() <= 2, "one band"
        assert silent.any(0).all(), "every place can be masked"
    assert torch.equal(common.mask(x, 0.0, 1), x)


def test_levels_are_mixed_between_clips_and_what_is_said_stays():
    torch.manual_seed(0)
    level = torch.arange(200.0).view(-1, 1, 1)
    x = level + torch.randn(200, 3, 50) * (1 + level)
    mixed = common.mix_levels(x, 1.0)
    changed = (mixed - x).abs().amax((1, 2)) > 1e-2
    assert 0.5 < changed.float().mean() < 0.8  # MIXED, but some are mixed with little of another
    whiten = [(y - y.mean(2, keepdim=True)) / y.std(2, keepdim=True) for y in (x, mixed)]
    torch.testing.assert_close(*whiten, atol=0.02, rtol=0)
    means, deviations = mixed.mean(2), mixed.std(2)
    assert means.min() > x.mean(2).min() - 1 and deviations.max() < x.std(2).max() + 1
    assert torch.equal(common.mix_levels(x[:1], 1.0).round(decimals=2), x[:1].round(decimals=2))


def test_a_quarter_of_the_clips_repeat_half_or_more_of_theirs():
    torch.manual_seed(0)
    x = torch.arange(40.0).repeat(2000, 2, 1)
    y = common.repeat_part(x, 1.0)
    assert torch.equal(y[:, 0], y[:, 1]) and y.shape == x.shape
    lengths = []
    for frames in y[:, 0].int().tolist():
        start = frames[0]
        length = max(frames) + 1 - start
        lengths.append(length)
        assert frames == [start + t % length for t in range(40)]
    repeated = [length for length in lengths if length < 40]
    assert 0.2 < len(repeated) / 2000 < 0.27 and min(repeated) == 20
    assert len(set(repeated)) == 20, "every length from a half occurs"
    assert {clip[0] for clip in y[:, 0].int().tolist()} == set(range(21)), "from everywhere"
    torch.manual_seed(0)
    odd = common.repeat_part(torch.rand(500, 1, 7), 1.0)
    assert odd.shape == (500, 1, 7)


# --- the loop -----------------------------------------------------------------------------------


def training_of(folder, script=train_lstm, *flags):
    """A Training on a small dataset, as the scripts make it."""
    words = [str(word) for word in (*data_flags(folder), *QUICK, *flags)]
    args = experiment.parse_training(script.make_parser(), words)
    clips = experiment.load_dataset(args).clips
    split = split_clips(clips.frame, "participant", args.seed, validate=args.patience > 0)
    dataset = common.SpectrogramDataset(clips.frame["path"], clips.frame["label"])
    torch.manual_seed(args.seed)
    model = script.build(args, *clips.shape)
    return members.make_training(args, model, dataset, split, torch.device("cpu"))


def test_validation_and_test_clips_are_never_augmented(small_dataset, monkeypatch):
    seen = []
    monkeypatch.setattr(common, "augment", lambda x, strength: seen.append(len(x)) or x)
    training = training_of(small_dataset, train_lstm, "--patience", 3)
    training.fit()
    assert sum(seen) == 2 * len(training.split["train"])
    before = len(seen)
    training.predict("val"), training.predict("test")
    assert len(seen) == before


def test_the_class_weighted_loss_is_pytorchs(tmp_path):
    folder = write_clips(tmp_path / "d", 12, 2, labels=[1, 0, 0] * 4)
    flags = ("--no-augment", "--dropout", 0, "--precision", "fp32", "--lr", 0)
    training = training_of(folder, train_lstm, *flags)
    x, y = torch.rand(12, *SHAPE), torch.tensor([0, 0, 1] * 4)
    weight = training.class_weights
    expected = nn.functional.cross_entropy(training.model(x), y, weight, reduction="sum")
    assert weight[1] > weight[0]
    torch.testing.assert_close(training.step(x, y, 12), expected.detach())


def test_class_weights_are_inverse_to_the_training_shares(tmp_path):
    folder = write_clips(tmp_path / "d", 12, 2, labels=[1, 0, 0] * 4)
    training = training_of(folder)
    counts = np.bincount(training.labels[training.split["train"]], minlength=2)
    weights = training.class_weights.numpy()
    np.testing.assert_allclose(weights * counts, counts.sum() / 2, rtol=1e-6)
    unweighted = training_of(folder, train_lstm, "--no-balance")
    assert torch.equal(unweighted.class_weights, torch.ones(2))


@pytest.mark.parametrize("script", [train_cnn, train_lstm])
def test_centralised_gradients_lack_what_a_units_inputs_have_in_common(small_dataset, script):
    x, y = torch.rand(12, *SHAPE), torch.tensor([0, 0, 1] * 4)
    gradients = []
    for flag in ("--no-centralise", "--centralise"):
        training = training_of(small_dataset, script, flag, "--precision", "fp32")
        torch.manual_seed(0)
        training.step(x, y, 12)
        parameters = training.model.named_parameters()
        gradients.append({name: p.grad for name, p in parameters if p.requires_grad})
    for name, plain in gradients[0].items():
        expected = plain
        if plain.ndim > 1:  # biases and batch-norms have one input
            mean = plain.flatten(1).mean(1)
            expected = (plain.flatten(1) - mean[:, None]).view_as(plain)
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-7, rtol=1e-4)


def test_the_epoch_of_least_validation_loss_is_kept(small_dataset, monkeypatch, capsys):
    flags = ("--patience", 2, "--epochs", 9, "--schedule", "constant")
    training = training_of(small_dataset, train_lstm, *flags)
    losses = iter([0.9, 0.5, 0.6, 0.7, 0.1])
    weights = []

    def scripted(name, autocast=None):
        loss = next(losses)
        weights.append({k: v.clone() for k, v in training.model.state_dict().items()})
        right = math.log(math.expm1(loss))  # cross-entropy of logits (right, 0)
        logits = np.zeros((len(training.split[name]), 2), np.float32)
        labels = training.labels[training.split[name]]
        logits[np.arange(len(labels)), 1 - labels] = right
        return logits

    monkeypatch.setattr(training, "predict", scripted)
    training.fit()
    assert [record["epoch"] for record in training.history] == [1, 2, 3, 4]
    assert "no better epoch in 2: the weights of epoch 2 are kept" in capsys.readouterr().out
    assert training.history[1]["val_loss"] == pytest.approx(0.5, abs=1e-5)
    assert training.best["epoch"] == 2
    kept = training.model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights[1].items())


def test_losses_are_sums_over_clips(small_dataset):
    """With a rate of 0 the training loss is that of the untrained model over all clips."""
    flags = ("--lr", 0, "--no-augment", "--dropout", 0, "--precision", "fp32")
    flags += ("--batch-size", 7, "--weight-decay", 0, "--no-balance", "--patience", 1)
    training = training_of(small_dataset, train_lstm, *flags)
    labels = torch.from_numpy(training.labels)
    training.fit()
    for side, got in (("train", "train_loss"), ("val", "val_loss")):
        logits = torch.from_numpy(training.predict(side))
        expected = nn.functional.cross_entropy(logits, labels[training.split[side]]).item()
        assert training.history[0][got] == pytest.approx(expected, rel=1e-5)


def test_the_number_of_threads_is_what_is_asked_for_or_quickest_and_a_state_keeps_it(
    small_dataset, monkeypatch
):
    monkeypatch.setattr(common, "quickest_threads", lambda: 3)
    assert training_of(small_dataset, train_lstm, "--threads", 2).threads == 2
    assert training_of(small_dataset, train_cnn, "--threads", 1).threads == 1
    words = [*data_flags(small_dataset), "--epochs", 2]
    monkeypatch.setitem(globals(), "QUICK", words)
    assert training_of(small_dataset, train_lstm).threads == 1
    state = training_of(small_dataset, train_cnn).state()
    assert state["progress"]["threads"] == 3
    monkeypatch.setattr(common, "quickest_threads", lambda: 1)
    resumed = training_of(small_dataset, train_cnn)
    assert torch.get_num_threads() == 1
    resumed.load_state(state)
    assert resumed.threads == torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("seconds", "expected"), [({1: 0.004, 4: 0.002}, 4), ({1: 0.004, 4: 0.006}, 1)]
)
def test_many_threads_are_taken_where_they_are_quicker(monkeypatch, seconds, expected):
    def work(*_):
        nonlocal now
        now += seconds[torch.get_num_threads()]

    now = 0.0
    monkeypatch.setattr(device.time, "perf_counter", lambda: now)
    monkeypatch.setattr(device, "MOST_THREADS", 4)
    monkeypatch.setattr(torch, "conv2d", work)
    assert device.quickest_threads() == expected
    monkeypatch.setattr(device, "suitable", {"threads": 7, "until": -1})
    device.suit_threads()
    torch.set_num_threads(1)
    device.suit_threads()  # it is known for a while
    assert torch.get_num_threads() == expected
    monkeypatch.setattr(device, "MOST_THREADS", 1)
    monkeypatch.setattr(torch, "conv2d", None)  # nothing to try
    assert device.quickest_threads() == 1


def test_a_state_taken_in_mid_epoch_goes_on_to_the_same_weights(small_dataset):
    whole = training_of(small_dataset, train_lstm, "--patience", 5)
    whole.fit()
    states = []
    cut = training_of(small_dataset, train_lstm, "--patience", 5)
    taken = cut.step

    def step(*batch):
        loss = taken(*batch)
        if len(states) == 0 and cut.epoch == 2 and cut.batch == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    cut.step = step
    with pytest.raises(common.Interrupted):
        cut.fit(save=lambda state: states.append(json_round_trip(state)))
    resumed = training_of(small_dataset, train_lstm, "--patience", 5)
    resumed.load_state(states[0])
    assert (resumed.epoch, resumed.batch) == (2, 4)
    resumed.fit()
    assert resumed.history == whole.history
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_a_signal_while_the_last_epoch_is_validated_is_not_lost(small_dataset):
    training, states = training_of(small_dataset, train_lstm, "--patience", 5), []
    predict_side = training.predict

    def predict_last(*arguments):
        if training.epoch == training.epochs:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict_side(*arguments)

    training.predict = predict_last
    with pytest.raises(common.Interrupted):
        training.fit(save=lambda state: states.append(json_round_trip(state)))
    resumed = training_of(small_dataset, train_lstm, "--patience", 5)
    resumed.load_state(states[-1])
    resumed.fit()  # chooses the best epoch, and trains none
    assert resumed.history == training.history and len(resumed.history) == training.epochs
    assert training.best["epoch"] == resumed.best["epoch"]
    for name, tensor in training.best["weights"].items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def json_round_trip(state):
    """What a checkpoint file makes of a state."""
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_best(small_dataset, capsys):
    training = training_of(small_dataset, train_lstm, "--epochs", 5, "--patience", 0)
    taken = training.step
    broken = torch.tensor(float("nan"))
    training.step = lambda *b: broken if (training.epoch, training.batch) == (3, 1) else taken(*b)
    training.fit()
    assert len(training.history) == 2 and training.best["epoch"] == 2
    assert "loss nan in epoch 3, batch 2: stopped" in capsys.readouterr().out
    training = training_of(small_dataset)
    training.step = lambda *batch: broken
    with pytest.raises(common.Diverged, match="epoch 1, batch 1"):
        training.fit()


def test_a_weight_that_is_not_finite_stops_the_run_though_the_pooling_hides_it(small_dataset):
    training = training_of(small_dataset, train_cnn)
    with torch.no_grad():
        training.model.conv2.weight[0] = math.nan
    with pytest.raises(common.Diverged, match="nan in epoch 1|non-finite weights"):
        training.fit()


def test_the_temperature_minimises_the_loss():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    logits = np.stack([np.zeros(2000), rng.normal(size=2000) + (2 * labels - 1)], 1)
    overconfident = (3 * 2 * logits).astype(np.float32)
    found = common.fit_temperature(overconfident, labels)
    assert found == pytest.approx(3.0, rel=0.1)
    timid = (logits / 3).astype(np.float32)  # may be the luck of a few people: it stays as it is
    assert common.fit_temperature(timid, labels) == pytest.approx(1.0, rel=1e-3)
    assert common.fit_temperature(overconfident[:0], labels[:0]) == 1.0


# --- weights files ------------------------------------------------------------------------------


def test_weights_come_back_as_they_were(tmp_path):
    path = write_weights(tmp_path / "w.safetensors", "lstm", SHAPE, steps="time", num_layers=1)
    model, metadata = load_weights(path)
    assert not model.training and metadata["shape"] == list(SHAPE)
    assert metadata["arguments"]["steps"] == "time"
    torch.manual_seed(0)
    before = LSTMClassifier(*SHAPE, steps="time", num_layers=1).eval()
    x = torch.rand(2, *SHAPE)
    assert torch.equal(model(x), before(x))
    assert metadata["familiarity"] is None, "weights from before it was there"


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(0)
    return familiarity.fit(rng.random((60, *SHAPE), np.float32), np.arange(60) // 5)


def test_familiarity_comes_back_as_it_was_and_costs_little(tmp_path, known):
    path = write_weights(tmp_path / "w.safetensors", "lstm", SHAPE)
    before, (model, metadata) = path.stat().st_size, load_weights(path)
    save_weights(path, model, metadata | {"familiarity": known})
    again, found = load_weights(path)
    assert found["familiarity"].keys() == known.keys()
    assert all(np.array_equal(found["familiarity"][name], known[name]) for name in known)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert path.stat().st_size - before < 100_000
    first = path.read_bytes()
    save_weights(path, again, found)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("mean", np.float32([np.nan] * 48)),
        ("mean", np.zeros(47, np.float32)),
        ("scale", np.zeros(48, np.float32)),
        ("limits", np.ones((2, 2))),
        ("more", np.ones(3, np.float32)),
        ("components", torch.ones(2, 48, dtype=torch.bfloat16)),
    ],
)
def test_hostile_familiarity_is_one_line(tmp_path, known, name, array):
    path = write_weights(tmp_path / "w.safetensors", "lstm", SHAPE)
    model, metadata = load_weights(path)
    save_weights(path, model, metadata | {"familiarity": known})
    tensors = {f"familiarity.{one}": torch.from_numpy(part) for one, part in known.items()}
    tensors |= model.state_dict() | {f"familiarity.{name}": torch.as_tensor(array)}
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])["__metadata__"]
    path.write_bytes(safetensors.torch.save(tensors, header))
    with pytest.raises(InputError, match="w.safetensors: damaged, or no weights file") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


HALVES = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}
HEADERS = {
    "empty": lambda header, metadata, data: b"",
    "junk": lambda *_: b"junk" * 99,
    "length of an exabyte": lambda *parts: weights_file(*parts, length=2**60),
    "length of 10 more": lambda *parts: weights_file(*parts, length=10**4),
    "no metadata": lambda header, _, data: weights_file({"__metadata__": {}} | header, {}, data),
    "metadata of another": lambda h, _, d: weights_file(
        h | {"__metadata__": {"format": "pt"}}, 0, d
    ),
    "metadata are a list": lambda h, _, d: weights_file(h | {"__metadata__": [1]}, 0, d),
    "metadata are no JSON": lambda header, _, data: weights_file(header, "not json", data),
    "JSON is a list": lambda header, _, data: weights_file(header, [], data),
    "JSON is nested": lambda header, _, data: weights_file(header, "[" * 10**5, data),
    "a tensor more": lambda h, m, d: weights_file(h | {"x": changed(HALVES, "shape", [0])}, m, d),
    "offsets overlap": lambda h, m, d: weights_file(h | {"x": HALVES}, m, d),
    "offsets beyond the end": lambda h, m, d: weights_file(h, m, d[:-4]),
    "bytes after the end": lambda h, m, d: weights_file(h, m, d + b"\0"),
    "a shape of 2^80": lambda h, m, d: weights_file(
        changed(h, "fc.bias", "shape", [2**40] * 2), m, d
    ),
    "another type": lambda h, m, d: weights_file(changed(h, "fc.bias", "dtype", "I32"), m, d),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_what_is_no_weights_file_is_one_line(parts, tmp_path, kind):
    path = tmp_path / "w.safetensors"
    path.write_bytes(HEADERS[kind](*parts))
    with pytest.raises(InputError, match="w.safetensors: ") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


ANYTHING = [None, True, False, 0, -1, 1, 2, 1.5, 2**31, 2**70, 10**400, 1e308, 1e-320, float("nan")]
ANYTHING += [
    float("inf"),
    -0.5,
    "",
    "1",
    "lstm",
    "time",
    "\ud800",
    "\0",
    "<b>",
    [],
    {},
    [[]],
    [1, 2],
]
ANYTHING = st.sampled_from([*ANYTHING, {"a": 1}, {"value": None}, "F16", "I32", "F64"])


@st.composite
def broken(draw, value):
    """A copy of nested dicts and lists with one part changed or gone."""
    if not isinstance(value, (dict, list)) or not value or not draw(st.integers(0, 4)):
        return draw(ANYTHING)
    copy = value.copy()
    place = draw(st.sampled_from(list(copy) if isinstance(copy, dict) else range(len(copy))))
    if draw(st.integers(0, 5)):
        copy[place] = draw(broken(copy[place]))
    else:
        del copy[place]
    return copy


@st.composite
def broken_weights(draw, parts):
    header, metadata, data = parts
    kind = draw(st.integers(0, 7))
    if kind < 5:
        metadata = draw(broken(metadata))
    if kind in (4, 5):
        header = draw(broken(header).filter(lambda header: isinstance(header, dict)))
    content = bytearray(weights_file(header, metadata, data))
    for _ in range(draw(st.integers(1, 4)) if kind > 5 else 0):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] if kind == 7 else content)


def use(path, clip, sound):
    """What predict.py and demo.py do with weights, as far as it depends on them."""
    models = predict.load_models([path])
    _, metadata = models[0]
    predict.notice(models).encode()
    "".join(demo.describe_weights("lstm", metadata)).encode()
    demo.find_ticks(SHAPE, metadata["preprocessing"]["sound"])
    assert hash_participant("nobody") not in set(metadata["data"]["seen"])
    for source in [clip] + [sound] * (metadata["preprocessing"]["sound"] != SOUND):
        clips, _, _ = predict.read_input(source, metadata)
        probabilities = predict.predict_probabilities(models, clips)
        assert all(type(predict.explain_refusal(models, clip)) is str for clip in clips)
        assert (
            probabilities.shape == (len(clips),)
            and (probabilities >= 0).all()
            and (probabilities <= 1).all()
        )


@pytest.fixture(scope="module")
def knowing_parts(parts, known, tmp_path_factory):
    """The parts of weights that know their training clips' sound."""
    header, metadata, data = parts
    path = tmp_path_factory.mktemp("knowing") / "w.safetensors"
    path.write_bytes(weights_file(header, metadata, data))
    model, loaded = load_weights(path)
    save_weights(path, model, loaded | {"familiarity": known})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    return header, metadata, content[8 + length :]


def test_fuzz_weights_are_refused_or_serve_every_script(knowing_parts, tmp_path):
    parts = knowing_parts
    path, clip, sound = (tmp_path / name for name in ("w.safetensors", "a.npy", "a.wav"))
    np.save(clip, np.random.default_rng(0).random(SHAPE))
    soundfile.write(sound, np.random.default_rng(0).normal(size=9000), 8000)

    @fuzzed
    @given(broken_weights(parts))
    def check(content):
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        with refused_or_read():
            use(path, clip, sound)

    predict.read_input(sound, parts[1])  # librosa's import takes memory, once
    path.write_bytes(weights_file(*parts))
    use(path, clip, sound)
    check()


def test_truncated_weights_and_weights_that_are_not_finite_are_refused(tmp_path):
    path = write_weights(tmp_path / "w.safetensors", "lstm", SHAPE)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(InputError, match="damaged"):
        load_weights(path)
    for value in ("nan", "inf", "-inf"):
        path.write_bytes(whole[:-4] + np.float32(value).tobytes())
        with pytest.raises(InputError, match="not finite"):
            load_weights(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(tmp_path / "none.safetensors")
