"""What a weights file says about itself, and what it may not say."""

from common import load_weights
from speech.cli import InputError

import pytest
from conftest import changed, weights_file

UNUSABLE = [
    (("model",), "gru", "model 'gru', expected one of cnn, lstm"),
    (("model",), "cnn", "unexpected keyword"),
    (("arguments", "hidden_size"), 10**9, "unusable arguments"),
    (("arguments", "hidden_size"), 4, "size mismatch"),
    (("arguments", "hidden_size"), -4, "damaged"),
    (("arguments", "hidden_size"), "4", "hidden_size '4', expected int"),
    (("arguments", "hidden_size"), [4], "unusable arguments"),
    (("arguments", "hidden_size"), None, "unusable arguments"),
    (("arguments", "steps"), "x" * 101, "unusable arguments"),
    (("arguments", "hidden_size"), float("nan"), "unusable arguments"),
    (("arguments", "hidden_size"), True, "hidden_size True, expected int"),
    (("arguments", "num_layers"), 10**6, "unusable arguments"),
    (("arguments", "num_layers"), [1], "unusable arguments"),
    (("arguments", "emphasis"), 1, "emphasis 1, expected a number >= 0 and < 1"),
    (("arguments", "steps"), "bins", "expected mel or time"),
    (("arguments", "pool"), 7, "pool 7, expected str"),
    (("arguments", "colour"), 7, "unexpected keyword"),
    (("shape",), [16, 25], r"unusable shape \[16, 25\]"),
    (("members",), 0, "unusable members 0"),
    (("members",), 10**9, "unusable members"),
    (("members",), True, "unusable members True"),
    (("members",), 2, "Missing key"),
    (("data", "participants", "test"), None, "unusable data"),
    (("data", "clips", "train"), -1, "unusable data"),
    (("temperature",), 0, "unusable temperature 0"),
    (("temperature",), 0.99, "unusable temperature 0.99"),  # training gives none below 1
    (("temperature",), float("inf"), "unusable temperature inf"),
    (("temperature",), "1", "not supported"),
    (("preprocessing", "sound", "sample_rate"), 0, "unusable preprocessing"),
    (("preprocessing", "sound", "hop_length"), 0, "unusable preprocessing"),
    (("preprocessing", "sound", "hop_length"), "340", "unusable preprocessing"),
    (("preprocessing", "sound", "n_mels"), 10**6, "unusable preprocessing"),
    (("preprocessing", "sound", "n_fft"), 2**30, "unusable preprocessing"),
    (("preprocessing", "sound"), {}, "'sample_rate' is missing"),
    (("data",), {"clips": {"test": 1}, "participants": {}}, "damaged|missing"),
    (("data", "synthetic"), "no", "unusable data"),
    (("data", "corpus"), "\ud800", "surrogates not allowed"),
    (("data", "seen"), 7, "not iterable"),
    (("test", "clips", "auroc", "low"), "0.5", "damaged"),
    (("test", "participants"), 7, "damaged"),
    (("versions",), None, "damaged"),
    (("versions",), {"torch": 2}, "unusable versions"),
    (("data", "total"), {"clips": "42"}, "unusable data"),
    (("data", "total"), {"clips": 10**400}, "unusable data"),  # no float: found by 100,000 inputs
    (("data", "on_both_sides"), {"train and val": "x"}, "unusable data"),
    (("data", "sha256"), 7, "unusable data"),
    (("data", "split"), None, "unusable data"),
    (("data", "corpus"), ["a"], "unusable data"),
]


@pytest.mark.parametrize("where, value, expected", UNUSABLE)
def test_unusable_metadata_are_one_line(parts, tmp_path, where, value, expected):
    header, metadata, data = parts
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights_file(*parts))
    load_weights(path)
    path.write_bytes(weights_file(header, changed(metadata, *where, value), data))
    with pytest.raises(InputError, match=f"w.safetensors: .*{expected}") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
