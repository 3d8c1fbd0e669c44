"""tune.py: what it finds, what it leaves alone, and what it survives."""

import contextlib
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import ROOT, call_script, data_flags, told, write_clips
from optuna.trial import TrialState

import train_lstm
import tune
from common import SpectrogramDataset
from dataset import read_labels, split_clips

SMALL = ["--hidden-size", "16", "--num-layers", "1", "--batch-size", "16", "--device", "cpu"]


def write_parity_clips(folder):
    """Label 1 has its sound in the odd frames: plain to see along mel bins, not along time."""
    rng = np.random.default_rng(0)
    (folder / "Spectrograms").mkdir(parents=True)
    rows = []
    for person in range(12):
        for clip in range(6):
            array = rng.random((8, 24), np.float32)
            array[:, person % 2 :: 2] += 2
            name = f"{person:03}_clip_{8 * clip}"
            np.save(folder / "Spectrograms" / f"{name}.npy", array)
            rows.append({"id": name, "label": person % 2})
    pd.DataFrame(rows).to_csv(folder / "dataset.csv", index=False)
    return folder


def flags(folder, *more):
    """What to tune on, and where to write: beside the clips."""
    places = ["--storage", f"sqlite:///{folder}/tune.db", "--picture", folder / "tune.png"]
    return ["lstm", *data_flags(folder), *places, "--folds", "2", *more]


def read_study(folder):
    storage = f"sqlite:///{folder}/tune.db"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def done(study):
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state in tune.DONE]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A finished study of clips from which only steps=mel learns."""
    folder = write_parity_clips(tmp_path_factory.mktemp("parity"))
    given = [*SMALL, "--epochs", "4", "--no-augment", "--lr", "0.02", "--weight-decay", "0.01"]
    arguments = flags(folder, *given, "--emphasis", "0", "--trials", "15")
    run = call_script("tune.py", *arguments)
    assert run.returncode == 0, run.stderr
    return folder, arguments, run


def test_a_planted_optimum_is_found(found):
    folder, _, run = found
    study = read_study(folder)
    assert study.best_trial.params["steps"] == "mel" and study.best_value > 0.95
    assert study.trials[0].params["steps"] == "time"  # the recipe's defaults come first
    assert max(t.value for t in study.trials if t.params["steps"] == "time") < 0.9
    assert any(trial.state == TrialState.PRUNED for trial in study.trials)
    assert len(done(study)) == len(study.trials) == 15
    assert (folder / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_per_trial_and_what_was_found(found):
    folder, _, run = found
    best, lines = read_study(folder).best_trial, run.stdout.splitlines()
    numbers = [line.split("/15")[0].strip() for line in lines if "/15  " in line]
    assert numbers == [str(n) for n in range(1, 16)]
    scores = best.user_attrs["folds"]
    assert best.value == pytest.approx(np.mean(scores)) and len(scores) == 2
    assert f"AUROC {best.value:.3f} (sd {np.std(scores, ddof=1):.3f} over 2 folds)" in run.stdout
    assert re.search(r"what mattered: .*steps \d+%", run.stdout)
    assert "12 test clips are set aside" in run.stdout and "epoch 1/" not in run.stdout


def test_the_final_command_trains_the_winner(found):
    folder, _, run = found
    command = shlex.split(run.stdout.splitlines()[-1])
    assert command[:2] == ["python", "train_lstm.py"]
    args, best = train_lstm.RECIPE.parser().parse_args(command[2:]), read_study(folder).best_trial
    assert args.steps == "mel" and args.dropout == pytest.approx(best.params["dropout"], rel=0.01)
    assert (args.hidden_size, args.batch_size, args.epochs) == (16, 16, 4)
    assert args.lr == 0.02 and args.augment == 0 and args.labels == str(folder / "dataset.csv")


def test_the_same_command_again_only_tells(found):
    folder, arguments, run = found
    again = call_script("tune.py", *arguments)
    assert len(read_study(folder).trials) == 15 and "/15  " not in again.stdout
    assert again.stdout.splitlines()[-4:] == run.stdout.splitlines()[-4:]


def test_a_seeded_study_repeats_itself(small_dataset, tmp_path):
    given = ["--trials", "3", "--epochs", "1", "--seed", "7", *SMALL]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Spectrograms").symlink_to(small_dataset / "Spectrograms")
        (tmp_path / name / "dataset.csv").symlink_to(small_dataset / "dataset.csv")
        run = call_script("tune.py", *flags(tmp_path / name, *given))
        assert run.returncode == 0, run.stderr
    first, second = (read_study(tmp_path / name).trials for name in ("a", "b"))
    assert [t.params for t in first] == [t.params for t in second]
    assert [t.value for t in first] == [t.value for t in second]
    assert first[1].params != first[2].params


def test_test_clips_are_never_read(small_dataset, tmp_path, monkeypatch):
    read, getitem = set(), SpectrogramDataset.__getitem__

    def note(self, index):
        read.add(self.ids[index])
        return getitem(self, index)

    monkeypatch.setattr(SpectrogramDataset, "__getitem__", note)
    places = ["--storage", f"sqlite:///{tmp_path}/t.db", "--picture", tmp_path / "t.png"]
    given = [*flags(small_dataset)[:5], *places, "--trials", "1", "--epochs", "1", *SMALL]
    run = call_script("tune.py", *given)
    assert run.returncode == 0, run.stderr
    frame = read_labels(small_dataset / "dataset.csv")
    test = split_clips(frame, "participant", 42)["test"]  # what train_lstm.py would test on
    assert read and read == set(frame["id"]) - set(frame["id"].iloc[test])


# --- several processes, and kills ---------------------------------------------------------------


def start(folder, arguments, query):
    """Starts tune.py in a process of its own -> the process, once a query of its file has rows."""
    command = [sys.executable, ROOT / "tune.py", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(sqlite3.OperationalError):  # not all tables are there yet
            rows = sqlite3.connect(f"file:{folder}/tune.db?mode=ro", uri=True).execute(query)
            if rows.fetchall():
                break
    return process


def test_two_processes_share_the_trials(tmp_path):
    folder = write_clips(tmp_path / "data", shape=(8, 12))
    arguments = flags(folder, "--trials", "12", "--epochs", "1", *SMALL)
    process = start(folder, arguments, "SELECT * FROM trial_params")
    run = call_script("tune.py", *arguments)
    other = process.communicate(timeout=60)[0]
    assert (run.returncode, process.returncode) == (0, 0), run.stderr
    study = read_study(folder)
    assert len(done(study)) == 12
    assert len({tuple(sorted(trial.params.items())) for trial in done(study)}) == 12
    lines = [re.findall(r"^ *\d+/12  .*$", out, re.MULTILINE) for out in (run.stdout, other)]
    assert all(lines) and sum(map(len, lines)) == 12
    assert run.stdout.splitlines()[-1] == other.splitlines()[-1]


def test_a_killed_trial_is_run_again(tmp_path, monkeypatch):
    folder = write_clips(tmp_path / "data", shape=(8, 12))
    arguments = flags(folder, "--trials", "3", "--epochs", "8", *SMALL)
    process = start(folder, arguments, "SELECT * FROM trial_intermediate_values WHERE trial_id = 2")
    process.kill()
    process.communicate()
    killed = read_study(folder).trials[1]
    assert killed.state == TrialState.RUNNING
    monkeypatch.setattr(tune, "DEAD_SECONDS", 2)
    monkeypatch.setattr(tune, "HEARTBEAT_SECONDS", 1)
    run = call_script("tune.py", *arguments)
    assert run.returncode == 0, run.stderr
    study = read_study(folder)
    assert study.trials[1].state == TrialState.FAIL and len(done(study)) == 3
    assert killed.params in [trial.params for trial in done(study)]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_processes_that_make_the_tables_at_once(tmp_path, monkeypatch):
    storage, failed = tune.RDBStorage, []

    def collide(*args, **kwargs):
        if not failed:
            failed.append(1)
            raise tune.SQLAlchemyError("table studies already exists")
        return storage(*args, **kwargs)

    monkeypatch.setattr(tune, "RDBStorage", collide)
    assert tune.open_storage(f"sqlite:///{tmp_path}/t.db") and failed


def test_ctrl_c_loses_nothing(tmp_path, monkeypatch):
    folder = write_clips(tmp_path / "data", shape=(8, 12))
    arguments = flags(folder, "--trials", "2", "--epochs", "3", *SMALL)
    fit, count = tune.Training.fit, []

    def interrupted(self, **kwargs):
        count.append(1)
        if len(count) == 2:
            raise tune.Interrupted(signal.SIGINT)
        return fit(self, **kwargs)

    monkeypatch.setattr(tune.Training, "fit", interrupted)
    run = call_script("tune.py", *arguments)
    assert run.returncode == 130 and "the same command goes on" in run.stdout
    assert not done(read_study(folder))
    run = call_script("tune.py", *arguments)
    trials = read_study(folder).trials
    assert run.returncode == 0 and len(done(read_study(folder))) == 2
    assert trials[1].params == trials[0].params and trials[0].state == TrialState.FAIL


def test_the_thirteenth_of_twelve_is_given_back():
    study = optuna.create_study()
    for _ in range(12):
        study.add_trial(optuna.create_trial(value=0.5))
    args = tune.argparse.Namespace(trials=12)
    with pytest.raises(tune.Surplus):
        tune.validate(study.ask(), args, None, None, None, None)


def test_a_diverged_trial_is_pruned(tmp_path, monkeypatch):
    folder = write_clips(tmp_path / "data", shape=(8, 12))
    fit, count = tune.Training.fit, []

    def diverging(self, **kwargs):
        count.append(1)
        if len(count) == 1:
            raise tune.Diverged("loss nan")
        return fit(self, **kwargs)

    monkeypatch.setattr(tune.Training, "fit", diverging)
    run = call_script("tune.py", *flags(folder, "--trials", "2", "--epochs", "1", *SMALL))
    assert run.returncode == 0, run.stderr
    states = [trial.state for trial in read_study(folder).trials]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE] and "defaults" not in run.stdout


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["tune.db", "sqlite:////no/such/folder/t.db", "nosuch://x", "postgresql://h/d", "text"]
)
def test_a_storage_that_cannot_be_opened(small_dataset, tmp_path, url):
    if url == "text":
        (tmp_path / "text").write_text("no database " * 100)
        url = f"sqlite:///{tmp_path}/text"
    places = ["--storage", url, "--picture", tmp_path / "t.png"]
    line = told(call_script("tune.py", *flags(small_dataset)[:5], *places))
    assert line.startswith(f"tune.py: --storage {url}: cannot be opened (")


@pytest.mark.parametrize("folds", ["people", "11", "500"])
def test_too_many_folds(small_dataset, tmp_path, folds):
    places = ["--storage", f"sqlite:///{tmp_path}/t.db", "--picture", tmp_path / "t.png"]
    line = told(call_script("tune.py", *flags(small_dataset)[:5], *places, "--folds", folds))
    assert "--folds" in line and not (tmp_path / "t.db").exists()


def test_help_and_a_recipe_that_there_is_not(small_dataset):
    run = call_script("tune.py", "cnn", "--help")
    assert run.returncode == 0 and "--trials N" in run.stdout and "--storage URL" in run.stdout
    assert "hidden-size" not in run.stdout
    assert call_script("tune.py", "mlp").returncode == 2
