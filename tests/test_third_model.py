"""A third model is a file: the README's own, put beside the scripts, with no other file edited."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, data_flags, write_clips


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The scripts, with train_crnn.py as the README shows it, and clips to try it on."""
    folder = tmp_path_factory.mktemp("project")
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    shutil.copytree(ROOT / "speech", folder / "speech")
    shutil.copytree(ROOT / "examples", folder / "examples")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Your own model")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    (folder / "train_crnn.py").write_text(code, encoding="utf-8")
    write_clips(folder / "data", shape=(16, 24))
    return folder


def in_project(project, *words):
    command = [sys.executable, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": ""}
    process = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_a_third_model_is_trained_predicted_tuned_and_served(project):
    flags = [*data_flags(project / "data"), "--epochs", 2, "--batch-size", 8]
    in_project(project, "train_crnn.py", *flags)
    in_project(project, "train_lstm.py", *flags, "--hidden-size", 4, "--members", 1)
    assert (project / "weights" / "crnn.json").exists()
    clips = project / "data" / "Spectrograms"
    in_project(
        project, "predict.py", clips, "--csv", "crnn.csv", "--weights", "weights/crnn.safetensors"
    )
    in_project(project, "predict.py", clips, "--csv", "both.csv")  # with the LSTM: an ensemble
    tables = [(project / name).read_text() for name in ("crnn.csv", "both.csv")]
    assert tables[0] != tables[1] and tables[0].count("\n") == tables[1].count("\n") > 72
    tuned = in_project(project, "tune.py", "crnn", *flags, "--trials", 2, "--folds", 2)
    assert re.search(r"^  python train_crnn.py .*--labels", tuned, re.MULTILINE), tuned
    served = "import demo, predict; paths = predict.find_weights(); "
    served += "print(list(demo.name_choices(paths, predict.load_models(paths))))"
    assert {"crnn", "lstm", "Both"} == set(eval(in_project(project, "-c", served)))
