"""The trainings of a run: members and folds, side by side, interrupted and gone on from."""

import argparse
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import experiment
import members
from common import Members, list_networks, load_weights
from speech.dataset import read_labels

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, ROOT, data_flags, train, write_clips

# --- how many at once ---------------------------------------------------------------------------


def test_there_are_as_many_jobs_as_cores_memory_and_trainings_allow(monkeypatch):
    args, cpu = argparse.Namespace(jobs=None, threads=None), torch.device("cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for available, units, expected in (
        (2**40, 30, 8),
        (2**40, 3, 3),
        (5 * 2**30, 30, 2),
        (0, 3, 1),
    ):
        monkeypatch.setattr(members, "available_memory", lambda available=available: available)
        assert members.count_jobs(args, units, cpu) == expected
    monkeypatch.setattr(members, "available_memory", lambda: 2**40)
    args.threads = 3
    assert members.count_jobs(args, 30, cpu) == 2
    args.jobs = 20
    assert members.count_jobs(args, 30, cpu) == 20
    assert members.count_jobs(args, 30, torch.device("cuda")) == 1
    monkeypatch.undo()
    assert members.available_memory() > 2**20


# --- training -----------------------------------------------------------------------------------


def test_members_are_one_model_and_the_same_bytes_whatever_the_jobs(small_dataset, tmp_path):
    for jobs in (1, 2):
        out = tmp_path / f"{jobs}/lstm.safetensors"
        process = train("train_lstm.py", small_dataset, out, *QUICK, "--members", 3, "--jobs", jobs)
        assert process.returncode == 0, process.stderr
        assert "member 3/3" in process.stdout
    assert out.read_bytes() == (tmp_path / "1/lstm.safetensors").read_bytes()
    model, metadata = load_weights(out)
    networks = list_networks(model)
    assert isinstance(model, Members) and metadata["members"] == len(networks) == 3
    clips = torch.rand(4, *metadata["shape"])
    logits = torch.stack([network(clips) for network in networks])
    assert torch.equal(model(clips), logits.mean(0)) and not torch.allclose(logits[0], logits[1])
    report = json.loads(out.with_suffix(".json").read_text())
    assert (
        len(report["members"]) == 3
        and [report["history"], report["best_epoch"]] == report["members"][0]
    )
    assert not list(out.parent.glob("*.checkpoint"))


def test_the_first_member_is_the_one_network_of_the_same_seed(tmp_path):
    """On the same clips: with a validation split of the corpus's own nobody is left out."""
    folder = write_clips(tmp_path / "d", 12)
    frame = read_labels(folder / "dataset.csv", ask_who=True)[0]
    sides = dict(
        zip(
            sorted(set(frame["participant"])),
            ["val"] * 3 + ["test"] * 3 + ["train"] * 6,
            strict=True,
        )
    )
    frame.assign(split=frame["participant"].map(sides))[["id", "label", "split"]].to_csv(
        folder / "dataset.csv", index=False
    )
    for count in (1, 2):
        out = tmp_path / f"{count}.safetensors"
        process = train("train_lstm.py", folder, out, *QUICK, "--members", count)
        assert process.returncode == 0, process.stderr
    one, two = (load_weights(tmp_path / f"{count}.safetensors")[0] for count in (1, 2))
    first, second = list_networks(two)
    clips = torch.rand(4, 16, 24)
    assert torch.equal(first(clips), one(clips)) and not torch.equal(second(clips), one(clips))


def test_folds_are_calibrated_on_the_people_of_the_others(small_dataset, tmp_path, monkeypatch):
    asked, allowed = [], set()

    def remember(logits, labels, bounds):
        assert len(logits) == len(labels)
        asked.append(np.sort(logits[:, 1] - logits[:, 0]))
        allowed.add(bounds)
        return 2.0

    monkeypatch.setattr(experiment, "fit_temperature", remember)
    flags, out = (*QUICK, "--members", 2, "--folds", 4), tmp_path / "w.safetensors"
    process = train("train_lstm.py", small_dataset, out, *flags)
    assert process.returncode == 0, process.stderr
    report = json.loads(out.with_suffix(".json").read_text())
    predictions = pd.DataFrame(report["out_of_fold"]["predictions"])
    assert len(asked) == 4 and report["temperature"] == [2.0] * 4
    for fold, found in enumerate(asked, 1):
        others = predictions["logit"][predictions["fold"] != fold]
        np.testing.assert_allclose(found, np.sort(2 * others), rtol=1e-4, atol=1e-6)
    assert allowed == {(0.5, 5.0)}
    asked.clear()
    allowed.clear()
    process = train("train_lstm.py", small_dataset, out, *flags, "--patience", 1)
    assert process.returncode == 0, process.stderr
    assert all(len(found) < len(predictions) / 4 for found in asked)  # there are validation people
    assert allowed == {(1.0, 5.0)}  # so few must not make a model more certain


EIGHT = ("--epochs", 4, "--batch-size", 8, "--members", 8, "--jobs", 2)


@pytest.fixture(scope="module")
def whole(small_dataset, tmp_path_factory):
    """What EIGHT ends with where nothing disturbs it."""
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    assert train("train_lstm.py", small_dataset, path, *EIGHT).returncode == 0
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_alone_saves_every_member(small_dataset, tmp_path, whole, number):
    folder, flags, cut = small_dataset, EIGHT, tmp_path / "cut.safetensors"
    command = [sys.executable, ROOT / "train_lstm.py", "--weights", cut, *map(str, flags)]
    command += data_flags(folder)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("member"):  # the first has ended
            process.send_signal(number)
            break
    rest, errors = process.communicate()
    assert "--resume goes on from here" in rest and "Traceback" not in errors, errors
    assert process.returncode == 128 + number and not cut.exists()
    # Two had ended and two were being trained, or one more: none of those that waited was begun.
    assert 2 <= len(list(tmp_path.glob("cut.1.*.checkpoint"))) <= 5
    process = train("train_lstm.py", folder, cut, *flags, "--resume")
    assert process.returncode == 0 and "trainings had ended" in process.stdout
    assert cut.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.checkpoint"))


def plan_units(folder, **flags):
    given = {"resume": False, "weights": folder / "w.safetensors", "threads": None, "members": 1}
    frame = pd.DataFrame({"path": ["a.npy"], "label": [0]})
    clips, cpu = SimpleNamespace(frame=frame, content="", shape=(4, 4)), torch.device("cpu")
    args = argparse.Namespace(**given | flags)
    return members.plan_units(args, {}, {}, None, clips, [{}], cpu)


def test_the_threads_of_several_networks_do_not_depend_on_how_many_are_trained_at_once(tmp_path):
    def found(**flags):
        return {unit.threads for unit in plan_units(tmp_path, **flags)}

    assert found() == {None}  # Training's own choice
    assert found(members=2) == {1} and found(members=2, threads=3) == found(threads=3) == {3}


def test_folds_are_the_same_whatever_the_jobs(small_dataset, tmp_path):
    flags, found = ("--epochs", 1, "--batch-size", 8, "--members", 1, "--folds", 3), []
    for jobs in (1, 2):
        out = tmp_path / f"{jobs}.safetensors"
        process = train("train_cnn.py", small_dataset, out, *flags, "--jobs", jobs)
        assert process.returncode == 0, process.stderr
        report = json.loads(out.with_suffix(".json").read_text())
        found.append((report["out_of_fold"], report["temperature"]))
    assert found[0] == found[1]


def test_a_new_run_leaves_no_state_of_another_for_a_later_resume(tmp_path, capsys):
    stale = [tmp_path / f"w.1.{member}.checkpoint" for member in (1, 3)]
    for path in stale:
        path.touch()
    plan_units(tmp_path, members=3)
    assert f"{stale[0]} of an interrupted run is now {stale[0].name}.old" in capsys.readouterr().out
    assert not any(path.exists() for path in stale)


def test_a_checkpoint_of_one_network_is_no_members():
    """A run from before --members had one, whatever the default is today."""
    assert members.differing_flags({"members": 5}, {}, {"members": 5}) == ["members was 1, is 5"]
    assert members.BEFORE["members"] == 1
