"""Files that earlier versions wrote are still read; those of later versions are refused in a line.

tests/formats/ holds files of format 1, which had no number, as they were written before format 2:
weights, the report of a cross-validation, and the checkpoint of an interrupted run.
"""

import json
import re
import shutil

import common
from speech.cli import InputError
from speech.report import METRICS

import pytest
import torch
from conftest import ROOT, call_script, error_line, train, write_clips, write_weights

FORMATS = ROOT / "tests" / "formats"
RUN = ("--members", 1, "--epochs", 2, "--hidden-size", 3, "--num-layers", 1, "--precision", "fp32")


def test_weights_of_format_1_give_the_logits_they_gave():
    model, metadata = common.load_weights(FORMATS / "weights.safetensors")
    clip = torch.linspace(0, 1, 16 * 24).reshape(1, 16, 24)
    expected = torch.tensor([[0.388852596282959, 0.5505080819129944]])
    torch.testing.assert_close(model(clip), expected, atol=1e-6, rtol=0)
    assert metadata["format"] == 3 and metadata["model"] == "lstm"


def test_the_shipped_weights_load():
    for path in (ROOT / "examples").glob("*.safetensors"):
        model, metadata = common.load_weights(path)
        assert model(torch.rand(1, *metadata["shape"])).shape == (1, 2)
        assert metadata["data"]["synthetic"] is True


def test_a_report_of_format_1_is_read():
    process = call_script("report.py", FORMATS / "folds.json")
    assert process.returncode == 0 and "24 clips of 8 people" in process.stdout


def test_a_checkpoint_of_format_1_is_gone_on_from(tmp_path):
    folder, out = write_clips(tmp_path / "d", 8, 3), tmp_path / "run.safetensors"
    shutil.copy(FORMATS / "run.checkpoint", tmp_path)
    process = train("train_lstm.py", folder, out, *RUN, "--resume")
    assert process.returncode == 0 and "going on from" in process.stdout, process.stderr
    assert "epoch   2/2" in process.stdout and common.load_weights(out)


def test_weights_with_other_metrics_load(tmp_path, monkeypatch):
    """A metric that is new, or gone, makes no file unreadable."""
    path = write_weights(tmp_path / "w.safetensors", "lstm", (16, 24))
    monkeypatch.setitem(METRICS, "youden", METRICS["f1"])
    monkeypatch.delitem(METRICS, "brier")
    common.load_weights(path)
    process = call_script("predict.py", ROOT / "examples", "--weights", path)
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("found", [99, 0, "2", None, [2]])
def test_a_later_format_is_refused_in_one_line(tmp_path, found):
    content = (FORMATS / "weights.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["speech-depression"]) | {"format": found}
    header["__metadata__"]["speech-depression"] = json.dumps(metadata)
    header = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    with pytest.raises(InputError, match="this version reads 1 to 3"):
        common.load_weights(path)
    report = json.loads((FORMATS / "folds.json").read_text()) | {"format": found}
    (tmp_path / "r.json").write_text(json.dumps(report))
    line = error_line(call_script("report.py", tmp_path / "r.json"))
    assert "r.json: format" in line and "this version reads 1 to 2: update it" in line


def test_a_models_arguments_may_be_booleans_and_strings(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "MODELS", dict(common.MODELS))

    class Odd(common.SpectrogramModel, name="odd"):
        def __init__(self, n_mels=16, n_frames=24, twice=False, how="mean", rate=0.5):
            super().__init__()
            self.fc = torch.nn.Linear(n_mels, 2)
            self.twice, self.how = twice, how

        def forward(self, x):
            return self.fc(getattr(x, self.how)(2)) * (2 if self.twice else 1)

    path = write_weights(tmp_path / "w.safetensors", "odd", (16, 24), twice=True, how="sum")
    model, metadata = common.load_weights(path)
    assert model.twice is True and model.how == "sum"
    assert metadata["arguments"] == {
        "n_mels": 16,
        "n_frames": 24,
        "twice": True,
        "how": "sum",
        "rate": 0.5,
    }


def test_a_notebooks_pth_becomes_weights_as_the_readme_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = common.CNNDNN()
    torch.save(model.state_dict(), "cnn_dnn_model.pth")
    process = call_script("predict.py", ROOT / "examples", "--weights", "cnn_dnn_model.pth")
    assert "a PyTorch file, expected .safetensors: README.md" in error_line(process)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", readme, re.DOTALL)
    exec(code, {})
    loaded, metadata = common.load_weights("notebook.safetensors")
    clip = torch.rand(2, 128, 251)
    torch.testing.assert_close(loaded(clip), model.eval()(clip), atol=1e-5, rtol=0)
    assert metadata["data"]["split"] == "not known" and metadata["temperature"] == 1
