"""A third model is a file: the README's own, put beside the scripts, with no other file edited."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SHAPE, data_flags, write_clips, write_weights

SERVED = """
import sys
import demo, predict

for name, *weights in (["crnn", "--weights", "weights/crnn.safetensors"], ["both"]):
    sys.argv[2:] = ["--csv", f"{name}.csv", *weights]  # without --weights: an ensemble
    predict.main()
paths = predict.find_weights()
print(list(demo.name_choices(paths, predict.load_models(paths))))
"""


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
    write_clips(folder / "data", shape=SHAPE)
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
    write_weights(project / "weights" / "lstm.safetensors", "lstm", SHAPE)
    assert (project / "weights" / "crnn.json").exists()
    served = in_project(project, "-c", SERVED, project / "data" / "Spectrograms")
    assert {"crnn", "lstm", "Both"} == set(eval(served.splitlines()[-1]))
    tables = [(project / name).read_text() for name in ("crnn.csv", "both.csv")]
    assert tables[0] != tables[1] and tables[0].count("\n") == tables[1].count("\n") > 72
    tuned = in_project(project, "tune.py", "crnn", *flags, "--trials", 2, "--folds", 2)
    assert re.search(r"^  python train_crnn.py .*--labels", tuned, re.MULTILINE), tuned
