"""The training scripts: what they write and print, interruption, several processes."""

import argparse
import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import common
import experiment
from common import load_weights
from speech import dataset, report
from speech.cli import InputError
from speech.dataset import read_labels, split_clips

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    QUICK,
    ROOT,
    SHAPE,
    SHARED,
    SOUND,
    call_script,
    data_flags,
    error_line,
    run_script,
    train,
    write_clips,
)
from sklearn.model_selection import train_test_split

# --- the scripts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", common.list_models())
def test_a_script_trains_reports_and_saves(name, small_dataset, tmp_path):
    out = tmp_path / "weights" / f"{name}.safetensors"
    flags = *QUICK, "--patience", 5
    process = train(f"train_{name}.py", small_dataset, out, *flags, picture=True)
    assert process.returncode == 0, process.stderr
    assert "epoch   2/2  train loss" in process.stdout and "val accuracy" in process.stdout
    model, metadata = load_weights(out)
    assert metadata["model"] == name and metadata["shape"] == list(SHAPE)
    assert metadata["data"]["participants"] == {"train": 8, "val": 2, "test": 2}
    assert len(metadata["data"]["seen"]) == 10 and metadata["temperature"] > 0
    written = json.loads(out.with_suffix(".json").read_text())
    assert [sorted(r) for r in written["history"]] == [
        ["epoch", "train_loss", "val_accuracy", "val_loss"]
    ] * 2
    for level in ("clips", "participants"):
        assert set(written["test"][level]) >= set(report.METRICS)
        assert set(written["test"][level]["accuracy"]) == {"value", "low", "high"}
    left = written["test"]["answered"]  # 12 clips of 2 people are tested
    assert left["coverage"] == 1 - left["no_verdict"] / written["test"]["n_clips"]
    assert ("clip is without a verdict" in process.stdout) == (left["no_verdict"] in (0, 12))
    assert out.with_suffix(".png").stat().st_size > 20_000
    assert sorted(p.name for p in out.parent.iterdir()) == [
        f"{name}.json",
        f"{name}.png",
        f"{name}.safetensors",
    ]


def test_folds_report_every_clip_once_and_write_no_weights(small_dataset, tmp_path):
    out = tmp_path / "lstm.safetensors"
    process = train("train_lstm.py", small_dataset, out, *QUICK, "--folds", 3)
    assert process.returncode == 0, process.stderr
    assert "no weights" in process.stdout and not out.exists()
    written = json.loads(out.with_suffix(".json").read_text())
    pooled = written["out_of_fold"]
    ids = pd.read_csv(small_dataset / "dataset.csv", dtype=str)["id"]
    assert sorted(pooled["predictions"]["id"]) == sorted(ids)
    assert set(pooled["folds"]["auroc"]) == {"mean", "sd"}
    people = dict(
        zip(pooled["predictions"]["participant"], pooled["predictions"]["fold"], strict=True)
    )
    for person, fold in zip(
        pooled["predictions"]["participant"], pooled["predictions"]["fold"], strict=True
    ):
        assert people[person] == fold


def test_one_participant_can_be_left_out_at_a_time(small_dataset, tmp_path):
    out = tmp_path / "lstm.safetensors"
    process = train(
        "train_lstm.py", small_dataset, out, "--epochs", 1, "--members", 1, "--folds", "people"
    )
    assert "fold 12/12" in process.stdout and "12 people" in process.stdout


def test_the_notebooks_protocol_repeats_their_split(tmp_path):
    folder = write_clips(tmp_path / "seven", 7, 67)
    frame = pd.read_csv(folder / "dataset.csv").iloc[:464]
    frame.to_csv(folder / "dataset.csv", index=False)
    flags = (
        "--split",
        "clip",
        "--no-augment",
        "--no-balance",
        "--patience",
        0,
        "--epochs",
        1,
        "--members",
        1,
    )
    process = train("train_lstm.py", folder, tmp_path / "w.safetensors", *flags)
    assert "train 371 (7), val 0 (0), test 93 (7)" in process.stdout
    assert "7 participants are in train and test BOTH" in process.stdout
    expected = train_test_split(np.arange(464), test_size=0.2, random_state=42)[1]
    assert np.array_equal(
        split_clips(read_labels(folder / "dataset.csv")[0], "clip", 42, validate=False)["test"],
        np.sort(expected),
    )


def test_the_same_seed_gives_the_same_bytes(small_dataset, tmp_path):
    for script, precision in (("train_lstm.py", "fp32"), ("train_cnn.py", "bf16")):
        files = []
        for name in "ab":
            out = tmp_path / f"{name}.safetensors"
            process = train(script, small_dataset, out, *QUICK, "--precision", precision)
            assert process.returncode == 0, process.stderr
            files.append(out.read_bytes())
        assert files[0] == files[1]
    train(script, small_dataset, out, *QUICK, "--precision", precision, "--seed", 7)
    assert out.read_bytes() != files[0]


def test_another_shape_trains_with_no_edit(tmp_path):
    folder = write_clips(tmp_path / "wide", 8, 2, shape=(64, 400))
    (folder / "dataset.json").write_text(json.dumps({"settings": SOUND, "corpus": "mine"}))
    out = tmp_path / "w.safetensors"
    process = train("train_cnn.py", folder, out, "--epochs", 1)
    assert process.returncode == 0, process.stderr
    assert "dataset.json is not about clips of (64, 400)" in process.stdout
    assert load_weights(out)[1]["preprocessing"]["sound"] is None
    assert load_weights(out)[0](torch.rand(1, 64, 400)).shape == (1, 2)


def test_help_is_quick_and_imports_no_heavy_package():
    script = str(ROOT / "train_lstm.py")
    code = "import atexit, runpy, sys, time\n"
    code += "atexit.register(lambda: print('CPU', time.process_time(), file=sys.stderr))\n"
    code += f"sys.argv = [{script!r}, '--help']\nrunpy.run_path({script!r}, run_name='__main__')"
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    seconds = float(re.search(r"^CPU (.*)$", process.stderr, re.MULTILINE)[1])
    imported = {line.split("|")[-1].strip().split(".")[0] for line in process.stderr.splitlines()}
    assert "torch" in imported and "--epochs" in process.stdout
    assert not imported & {"gradio", "librosa", "matplotlib", "optuna", "sklearn", "synthetic"}
    assert seconds < 6, f"{seconds:.1f} s of CPU: 3 on a quiet machine, with slack for a busy one"


def test_mistakes_are_one_line_and_leave_nothing(small_dataset, tmp_path):
    out = tmp_path / "out" / "w.safetensors"
    clips, labels = small_dataset / "Spectrograms", small_dataset / "dataset.csv"

    def complain(*arguments):
        line = error_line(call_script("train_lstm.py", "--weights", out, *arguments))
        assert not out.exists() and not list(tmp_path.rglob(".*"))
        return line

    assert "no such folder" in complain("--spectrograms", tmp_path / "none", "--labels", labels)
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.WAV").touch()
    line = complain("--spectrograms", tmp_path / "wavs", "--labels", labels)
    assert "wavs: no .npy there, but recordings such as a.WAV: prepare.py makes" in line
    assert "No such file" in complain("--spectrograms", clips, "--labels", tmp_path / "none.csv")
    one_class = tmp_path / "one.csv"
    pd.read_csv(labels, dtype=str).assign(label=1).to_csv(one_class, index=False)
    assert "too few" in complain("--spectrograms", clips, "--labels", one_class)
    two = tmp_path / "two.csv"
    pd.read_csv(labels, dtype=str).iloc[:12].to_csv(two, index=False)
    assert "2 participants" in complain("--spectrograms", clips, "--labels", two)
    given = data_flags(small_dataset)
    assert "only 12 participants" in complain(*given, "--folds", 13)
    assert "PyTorch cannot use it" in complain(*given, "--device", "xpu")
    broken = tmp_path / "broken" / "dataset.csv"
    broken.parent.mkdir()
    broken.write_bytes(labels.read_bytes())
    for text in ("[1", "[]", '{"settings": {}}', '{"settings": 7}'):
        broken.with_name("dataset.json").write_text(text)
        line = complain("--spectrograms", clips, "--labels", broken)
        assert "dataset.json: damaged (" in line
    line = error_line(train("train_lstm.py", small_dataset, tmp_path / "dataset.safetensors"))
    assert "its report would be dataset.json" in line
    tiny = write_clips(tmp_path / "tiny", shape=(7, 24))
    line = error_line(train("train_cnn.py", tiny, out, *QUICK))
    assert "(7, 24) is too small for the CNN" in line
    blocked = tmp_path / "file"
    blocked.write_text("")
    process = run_script("train_lstm.py", *given, "--weights", blocked / "w.safetensors")
    assert "cannot be written" in error_line(process)


def test_clips_are_synthetic_whatever_labels_are_given_for_them(tmp_path):
    about = {"corpus": "Aufnahmen M\udcfcller", "synthetic": True, "settings": SOUND}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    labels = tmp_path / "elsewhere" / "some.csv"
    known = experiment.read_dataset_json(tmp_path / "Spectrograms", labels, SHAPE)
    assert known == {"name": r"Aufnahmen M\udcfcller", "synthetic": True, "sound": SOUND}


def test_a_model_has_one_name():
    with pytest.raises(InputError, match="LSTMClassifier's is 'lstm', the parser's 'crnn'"):
        experiment.check_model(common.LSTMClassifier(hidden_size=2), "crnn")


@pytest.mark.parametrize("flag", ["--epoch", "--weigths", "--batch"])
def test_flags_are_written_out(flag):
    """A typo must not train over weights with another flag's value."""
    line = error_line(call_script("train_lstm.py", flag, 2))
    assert f"unrecognized arguments: {flag} 2" in line


@pytest.mark.parametrize(
    "flags",
    [("--epochs", 0), ("--lr", "nan"), ("--folds", 1), ("--epochs", "x"), ("--emphasis", 1)]
    + [("--dropout", "1.5"), ("--lr", "inf"), ("--members", 101), ("--jobs", 0)],
)
def test_flags_out_of_range_are_refused(flags):
    line = error_line(call_script("train_cnn.py", *flags))
    assert f"argument {flags[0]}: expected " in line and f"found {str(flags[1])!r}" in line


# --- interruption -------------------------------------------------------------------------------


def test_sigterm_saves_and_resume_ends_with_the_same_weights(tmp_path):
    folder = write_clips(tmp_path / "d", 12, 12)
    flags = ("--epochs", 8, "--batch-size", 4, "--patience", 0, "--members", 1)
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    assert train("train_lstm.py", folder, whole, *flags).returncode == 0
    command = [sys.executable, ROOT / "train_lstm.py", "--weights", cut, *map(str, flags)]
    command += data_flags(folder)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch   2"):
            process.send_signal(signal.SIGTERM)
            break
    assert "--resume goes on from here" in process.stdout.read()
    assert process.wait() == 143 and not cut.exists()
    assert cut.with_suffix(".checkpoint").exists()

    other = error_line(train("train_lstm.py", folder, cut, *flags, "--seed", 5, "--resume"))
    assert "seed was 42, is 5" in other
    process = train("train_lstm.py", folder, cut, *flags, "--resume")
    assert process.returncode == 0 and "going on from" in process.stdout
    assert cut.read_bytes() == whole.read_bytes()
    assert not cut.with_suffix(".checkpoint").exists()


def test_clips_that_vanish_in_mid_run_are_one_line_and_the_run_goes_on(tmp_path):
    folder, hidden = write_clips(tmp_path / "d", 12, 6), tmp_path / "hidden"
    flags = ("--epochs", 4, "--patience", 0, "--members", 1)
    for workers in (0, 1):
        out = tmp_path / f"{workers}.safetensors"
        print0 = common.print0

        def lose_the_folder(*words, out=out, print0=print0):
            if words[0].startswith("epoch   2"):
                (folder / "Spectrograms").rename(hidden)
            print0(*words)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(common, "print0", lose_the_folder)
            line = error_line(train("train_lstm.py", folder, out, *flags, "--workers", workers))
        assert re.search(r"Spectrograms/\d+_clip_\d+.npy: cannot be read .No such file", line)
        assert out.with_suffix(".checkpoint").exists() and not out.exists()
        hidden.rename(folder / "Spectrograms")
        resumed = train("train_lstm.py", folder, out, *flags, "--resume")
        assert resumed.returncode == 0 and "epoch   1" not in resumed.stdout
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_training_goes_on_when_nobody_reads_its_output(small_dataset, tmp_path):
    out = tmp_path / "w.safetensors"
    command = [sys.executable, ROOT / "train_lstm.py", "--weights", out, *map(str, QUICK)]
    command += data_flags(small_dataset)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as `| head` does, sooner or later
    assert process.stderr.read() == b"" and process.wait() == 0
    assert load_weights(out) and not out.with_suffix(".checkpoint").exists()


def test_a_full_disk_is_one_line_and_the_old_weights_stay(small_dataset, tmp_path, monkeypatch):
    out = tmp_path / "lstm.safetensors"
    assert train("train_lstm.py", small_dataset, out, *QUICK).returncode == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = error_line(train("train_lstm.py", small_dataset, out, *QUICK, "--seed", 3))
    assert "cannot be written (No space left on device)" in line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_memory_that_runs_out_names_the_flag(small_dataset, tmp_path, monkeypatch):
    def greedy(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(common.Training, "step", greedy)
    line = error_line(train("train_lstm.py", small_dataset, tmp_path / "w.safetensors", *QUICK))
    assert "lower --batch-size" in line


def test_a_loss_that_is_not_finite_is_one_line(small_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(common.Training, "step", lambda *_: torch.tensor(float("nan")))
    line = error_line(train("train_lstm.py", small_dataset, tmp_path / "w.safetensors", *QUICK))
    assert "loss nan in epoch 1, batch 1: nothing is saved; a lower --lr helps" in line
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_one_line(small_dataset, tmp_path, monkeypatch):
    def refuse(path, *_):  # root may write anywhere
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    line = error_line(train("train_lstm.py", small_dataset, tmp_path / "w.safetensors", *QUICK))
    assert "w.safetensors: cannot be written there (Permission denied)" in line


@pytest.mark.parametrize("content", [b"", b"junk", {}, {"run": 1, "results": [], "state": None}])
def test_a_damaged_checkpoint_is_one_line(small_dataset, tmp_path, content):
    path = tmp_path / "w.checkpoint"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    out = path.with_suffix(".safetensors")
    line = error_line(train("train_lstm.py", small_dataset, out, *QUICK, "--resume"))
    assert "w.checkpoint: damaged; remove it to start anew" in line


def interrupted(folder, out, *flags):
    """A run that stops after its first epoch -> its checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.Training, "out_of_patience", stop_after_one_epoch)
        assert "stopped" in error_line(train("train_lstm.py", folder, out, *QUICK, *flags))
    return out.with_suffix(".checkpoint")


def stop_after_one_epoch(training):
    if training.history:
        raise InputError("stopped")
    return False


def test_a_checkpoint_of_other_clips_or_labels_is_one_line(tmp_path):
    folder, out = write_clips(tmp_path / "d"), tmp_path / "w.safetensors"
    interrupted(folder, out)
    for clip in sorted((folder / "Spectrograms").iterdir())[:20]:
        np.save(clip, -np.load(clip))  # the table is the same
    line = error_line(train("train_lstm.py", folder, out, *QUICK, "--resume"))
    assert "w.checkpoint: of another run: the clips or labels have changed" in line


def test_a_flag_added_since_does_not_orphan_a_checkpoint(small_dataset, tmp_path):
    """--balance is on by default: a checkpoint from before that flag goes on with it on only."""
    out = tmp_path / "w.safetensors"
    path = interrupted(small_dataset, out)
    saved = torch.load(path, weights_only=True)
    del saved["run"]["arguments"]["balance"]
    torch.save(saved, path)
    resume = ("train_lstm.py", small_dataset, out, *QUICK, "--resume")
    assert "balance was True, is False" in error_line(train(*resume, "--no-balance"))
    process = train(*resume)
    assert process.returncode == 0 and "going on from" in process.stdout
    del saved["format"], saved["run"]["content"]  # as before formats had numbers
    torch.save(saved, path)
    process = train(*resume)
    assert process.returncode == 0 and "going on from" in process.stdout
    torch.save(saved | {"format": 99}, path)
    assert "w.checkpoint: format 99, but this version reads 1 to 3" in error_line(train(*resume))


def test_a_folder_means_the_file_of_the_models_name_in_it(small_dataset, tmp_path):
    for given, folder in ((tmp_path, tmp_path), (f"{tmp_path}/new/", tmp_path / "new")):
        process = train("train_lstm.py", small_dataset, given, *QUICK)
        assert process.returncode == 0, process.stderr
        names = {path.name for path in folder.iterdir() if path.is_file()}
        assert names == {"lstm.json", "lstm.png", "lstm.safetensors"}


def test_a_second_run_on_the_same_weights_is_refused(small_dataset, tmp_path):
    out = tmp_path / "w.safetensors"
    command = [sys.executable, ROOT / "train_lstm.py", "--weights", out, "--epochs", 500]
    command += ["--members", 1]
    command = list(map(str, command + data_flags(small_dataset)))
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if line.startswith("epoch   1"):
            break
    line = error_line(train("train_lstm.py", small_dataset, out, *QUICK))
    assert "w.safetensors: another run is writing it" in line
    first.kill()  # leaves its lock file, which holds nobody up
    first.wait()
    first.stdout.close()
    assert train("train_lstm.py", small_dataset, out, *QUICK).returncode == 0


def test_sigterm_to_the_group_with_workers_saves(tmp_path):
    folder, out = write_clips(tmp_path / "d", 12, 20), tmp_path / "w.safetensors"
    command = [sys.executable, ROOT / "train_lstm.py", "--weights", out, "--workers", 2]
    command += [
        "--members",
        1,
        "--epochs",
        500,
        "--batch-size",
        4,
        "--patience",
        0,
        *data_flags(folder),
    ]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(list(map(str, command)), start_new_session=True, **options)
    for line in process.stdout:
        if line.startswith("epoch   2"):
            os.killpg(process.pid, signal.SIGTERM)
            break
    out_text, err_text = process.communicate()
    assert process.returncode == 143 and "--resume goes on from here" in out_text, err_text
    assert "Traceback" not in err_text and out.with_suffix(".checkpoint").exists()


WRITING = """
import os, sys
import train_lstm
from speech import report
from speech.cli import run

draw = report.draw_report

def draw_signalled(*arguments):
    os.kill(os.getpid(), {number})
    draw(*arguments)

report.draw_report = draw_signalled
run(train_lstm.main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_epoch_lets_the_run_end(small_dataset, tmp_path, number):
    command = [sys.executable, "-c", WRITING.format(number=int(number))]
    command += ["--weights", tmp_path / "w.safetensors", *QUICK, *data_flags(small_dataset)]
    options = {"cwd": ROOT, "capture_output": True, "text": True}
    process = subprocess.run(list(map(str, command)), **options)
    assert (process.returncode, process.stderr) == (128 + number, "")
    assert "nothing is left to do" in process.stdout.splitlines()[-1]
    assert sorted(os.listdir(tmp_path)) == ["w.json", "w.png", "w.safetensors"]


def test_a_closed_terminal_loses_nothing(tmp_path):
    folder, out = write_clips(tmp_path / "d", 12, 20), tmp_path / "w.safetensors"
    command = [sys.executable, ROOT / "train_lstm.py", "--weights", out, "--epochs", 500]
    command += ["--members", 1, "--batch-size", 4, "--patience", 0, *data_flags(folder)]
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, list(map(str, command)))
    shown = b""
    while b"epoch   2" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)  # its processes get SIGHUP, and can write there no more
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 128 + signal.SIGHUP
    state = torch.load(out.with_suffix(".checkpoint"), weights_only=True)["state"]
    assert state["progress"]["epoch"] >= 3 and sorted(os.listdir(tmp_path)) == ["d", "w.checkpoint"]


def test_a_clip_that_is_replaced_in_mid_run_by_a_longer_one_is_named(tmp_path):
    folder, print0 = write_clips(tmp_path / "d"), common.print0

    def replace_a_clip(*lines):
        np.save(folder / "Spectrograms" / "003_clip_8.npy", np.eye(16, 30))
        print0(*lines)

    for workers in (0, 1):
        flags = ("--workers", workers, "--split", "clip", "--epochs", 3, "--members", 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(common, "print0", replace_a_clip)
            line = error_line(train("train_lstm.py", folder, tmp_path / "w.safetensors", *flags))
        assert "003_clip_8.npy: shape (16, 30), the others have (16, 24)" in line
        np.save(folder / "Spectrograms" / "003_clip_8.npy", np.eye(16, 24))


def test_the_labels_that_are_hashed_are_those_that_were_read(tmp_path, monkeypatch):
    folder, read = write_clips(tmp_path / "d"), dataset.read_file
    before = hashlib.sha256((folder / "dataset.csv").read_bytes()).hexdigest()

    def read_and_replace(path):
        content = read(path)
        Path(path).write_text("id,label\n")
        return content

    monkeypatch.setattr(dataset, "read_file", read_and_replace)
    paths = {"spectrograms": folder / "Spectrograms", "labels": folder / "dataset.csv"}
    args = argparse.Namespace(split="participant", **paths)
    assert experiment.load_dataset(args).sha256 == before


# --- several processes --------------------------------------------------------------------------


def torchrun(script, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2]
    command += [ROOT / script, *arguments]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_two_processes_end_with_the_weights_of_one_and_survive_a_kill(tmp_path):
    folder = write_clips(tmp_path / "d", 12, 7)
    # No emphasis: on noise it lets rounding errors grow from step to step.
    flags = ["--epochs", 12, "--batch-size", 8, "--dropout", 0, "--no-augment", "--emphasis", 0]
    flags += ["--precision", "fp32", "--patience", 0, "--centralise", "--members", 1]
    flags += data_flags(folder)
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert call_script("train_lstm.py", *flags, "--weights", one).returncode == 0
    process = torchrun("train_lstm.py", *flags, "--weights", two)
    for line in process.stdout:
        if line.startswith("epoch   3"):
            kill_rank_1(process.pid)
            break
    assert "another process of this run has ended: go on with --resume" in process.stdout.read()
    assert process.wait() != 0 and not two.exists()
    said = torchrun("train_lstm.py", *flags, "--weights", two, "--resume").communicate()[0]
    assert said.count("epoch  12/12") == 1, "the first process alone prints"
    assert "epoch   3/12" not in said
    states = [load_weights(path)[0].state_dict() for path in (one, two)]
    assert max((a - b).abs().max() for a, b in zip(*map(dict.values, states), strict=True)) < 1e-4


def test_two_processes_train_the_cnn_without_a_warning(small_dataset, tmp_path):
    out = tmp_path / "cnn.safetensors"
    process = torchrun("train_cnn.py", *QUICK, *data_flags(small_dataset), "--weights", out)
    said = process.communicate()[0]
    assert process.returncode == 0 and "warn" not in said.lower(), said
    assert load_weights(out)[1]["model"] == "cnn"


def kill_rank_1(launcher):
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = path.read_bytes().split(b"\0")
            if b"LOCAL_RANK=1" in variables and parent_of(path.parent.name) == launcher:
                os.kill(int(path.parent.name), signal.SIGKILL)


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


# --- real speech --------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.exists(), reason="no real speech at hand")
def test_real_speech_trains(tmp_path):
    out = tmp_path / "lstm.safetensors"
    process = train("train_lstm.py", SHARED / "emodb", out, "--epochs", 15, "--members", 1)
    assert process.returncode == 0, process.stderr
    written = json.loads(out.with_suffix(".json").read_text())
    assert written["test"]["clips"]["auroc"]["value"] > 0.8
