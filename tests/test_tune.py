"""tune.py: what it finds, what it leaves alone, and what it survives."""

import contextlib
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import experiment
import train_lstm
import tune
from common import SpectrogramDataset
from speech.cli import InputError, at_least, map_processes
from speech.dataset import read_labels, split_clips

import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import ROOT, call_script, data_flags, error_line, write_clips
from optuna.trial import FrozenTrial, TrialState

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


def read_studies(folder):
    storage = f"sqlite:///{folder}/tune.db"
    names = optuna.get_all_study_names(storage)
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def read_study(folder):
    (study,) = read_studies(folder)
    return study


def done(study):
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state in tune.DONE]


def tune_lstm(folder, *more):
    """A short run that must succeed -> what it printed."""
    run = call_script("tune.py", *flags(folder, "--epochs", "1", *SMALL, *more))
    assert run.returncode == 0, run.stderr
    return run.stdout


def find_command(printed):
    """The words of the final command."""
    (line,) = [line for line in printed.splitlines() if line.startswith("  python ")]
    return shlex.split(line)


@pytest.fixture
def clips(tmp_path):
    return write_clips(tmp_path / "data", shape=(8, 12))


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
    assert study.trials[0].params["steps"] == "time"  # the script's defaults come first
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
    assert re.search(r"importance: .*steps \d+%", run.stdout)
    assert "12 test clips are set aside" in run.stdout and "epoch 1/" not in run.stdout


def test_the_final_command_trains_the_winner(found):
    folder, _, run = found
    command = find_command(run.stdout)
    assert command[:2] == ["python", "train_lstm.py"]
    args, best = train_lstm.make_parser().parse_args(command[2:]), read_study(folder).best_trial
    assert args.steps == "mel" and args.dropout == pytest.approx(best.params["dropout"], rel=0.01)
    assert (args.hidden_size, args.batch_size, args.epochs) == (16, 16, 4)
    assert args.lr == 0.02 and args.augment == 0 and args.labels == str(folder / "dataset.csv")


def test_the_same_command_again_only_reports(found):
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
        read.add(Path(self.paths[index]).stem)
        return getitem(self, index)

    monkeypatch.setattr(SpectrogramDataset, "__getitem__", note)
    places = ["--storage", f"sqlite:///{tmp_path}/t.db", "--picture", tmp_path / "t.png"]
    given = [*flags(small_dataset)[:5], *places, "--trials", "1", "--epochs", "1", *SMALL]
    run = call_script("tune.py", *given)
    assert run.returncode == 0, run.stderr
    frame, _ = read_labels(small_dataset / "dataset.csv")
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


def test_two_processes_share_the_trials(clips):
    folder, arguments = clips, flags(clips, "--trials", "10", "--epochs", "1", *SMALL)
    process = start(folder, arguments, "SELECT * FROM trial_params")
    run = call_script("tune.py", *arguments)
    other = process.communicate(timeout=60)[0]
    assert (run.returncode, process.returncode) == (0, 0), run.stderr
    study = read_study(folder)
    assert len(done(study)) == 10
    assert len({tuple(sorted(trial.params.items())) for trial in done(study)}) == 10
    lines = [re.findall(r"^ *\d+/10  .*$", out, re.MULTILINE) for out in (run.stdout, other)]
    assert all(lines) and sum(map(len, lines)) == 10
    assert find_command(run.stdout) == find_command(other)


def test_trials_side_by_side_are_as_many_and_a_signal_loses_none(clips):
    given = flags(clips, "--trials", "5", "--epochs", "4", "--jobs", "2", *SMALL)
    process = start(clips, given, "SELECT * FROM trial_intermediate_values WHERE trial_id = 2")
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 143 and "Stopped, nothing is lost" in out
    begun = read_study(clips).trials
    process = start(clips, given, "SELECT * FROM trials WHERE state = 'none'")  # to its end
    out += process.communicate(timeout=60)[0]
    assert process.returncode == 0
    study = read_study(clips)
    assert len(done(study)) == 5
    wanted = [trial.params for trial in begun if trial.state != TrialState.WAITING and trial.params]
    assert all(params in [trial.params for trial in done(study)] for params in wanted)
    lines = re.findall(r"^ *\d+/5  .*$", out, re.MULTILINE)
    assert len(lines) == 5 and find_command(out)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_waiting_trial_is_claimed_once(tmp_path):
    storages = [tune.open_storage(f"sqlite:///{tmp_path}/t.db") for _ in range(2)]
    study = optuna.create_study(storage=storages[0], study_name="s")

    def claim(trial: FrozenTrial) -> list[bool]:
        def one(storage):
            together.wait()
            return storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)

        together = threading.Barrier(2)
        return list(pool.map(one, storages))

    for _ in range(40):  # Optuna's own gave one in six of them to both
        study.enqueue_trial({})
    with ThreadPoolExecutor(2) as pool:
        claims = [claim(trial) for trial in study.get_trials()]
    assert {sum(claim) for claim in claims} == {1}
    assert all(trial.datetime_start for trial in study.get_trials())


def test_a_killed_trial_is_run_again(clips, monkeypatch):
    folder, arguments = clips, flags(clips, "--trials", "3", "--epochs", "8", *SMALL)
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
    storage, failed = tune.Storage, []

    def collide(*args, **kwargs):
        if not failed:
            failed.append(1)
            raise tune.SQLAlchemyError("table studies already exists")
        return storage(*args, **kwargs)

    monkeypatch.setattr(tune, "Storage", collide)
    assert tune.open_storage(f"sqlite:///{tmp_path}/t.db") and failed


def test_ctrl_c_loses_nothing(clips, monkeypatch):
    folder, arguments = clips, flags(clips, "--trials", "2", "--epochs", "3", *SMALL)
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
    args = tune.Namespace(trials=12)
    with pytest.raises(tune.Surplus):
        tune.run_trial(study.ask(), args, {}, None)


def test_a_diverged_trial_is_pruned(clips, monkeypatch):
    fit, count = tune.Training.fit, []

    def diverging(self, **kwargs):
        count.append(1)
        if len(count) == 1:
            raise tune.Diverged("loss nan")
        return fit(self, **kwargs)

    monkeypatch.setattr(tune.Training, "fit", diverging)
    printed = tune_lstm(clips, "--trials", "2")
    states = [trial.state for trial in read_study(clips).trials]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE] and "defaults" not in printed


# --- the study is found again -------------------------------------------------------------------


def test_a_new_flag_leaves_a_study_where_it_was(clips, monkeypatch):
    tune_lstm(clips, "--trials", "1")
    make_parser = train_lstm.make_parser

    def with_glow():
        parser = make_parser()
        parser.add_argument("--glow", type=at_least(0), default=3)
        return parser

    monkeypatch.setattr(train_lstm, "make_parser", with_glow)
    assert "1/1  " not in tune_lstm(clips, "--trials", "1")
    assert read_study(clips).user_attrs[tune.SETUP]["flags"]["glow"] == 3
    assert "1/1  " in tune_lstm(clips, "--trials", "1", "--glow", "4")
    assert len(read_studies(clips)) == 2
    monkeypatch.setitem(train_lstm.SEARCH, "glow", (0, 9))  # what is searched was not held at 3
    assert "1/1  " in tune_lstm(clips, "--trials", "1")
    assert [len(study.trials) for study in read_studies(clips)] == [1, 1, 1]


def test_other_flags_choices_or_clips_are_another_study(clips, monkeypatch):
    tune_lstm(clips, "--trials", "1")
    tune_lstm(clips, "--trials", "1", "--emphasis", "0")
    monkeypatch.setitem(train_lstm.SEARCH, "steps", ["mel", "time"])
    tune_lstm(clips, "--trials", "1")
    shutil.rmtree(clips / "Spectrograms")
    write_clips(clips, shape=(8, 12), seed=1)
    tune_lstm(clips, "--trials", "1")
    assert [len(study.trials) for study in read_studies(clips)] == [1, 1, 1, 1]


def test_places_and_the_number_of_trials_are_the_same_study(clips, tmp_path):
    tune_lstm(clips, "--trials", "1")
    shutil.move(clips / "Spectrograms", tmp_path / "moved")
    tune_lstm(clips, "--trials", "2", "--spectrograms", tmp_path / "moved", "--workers", "1")
    assert len(read_study(clips).trials) == 2


def test_studies_without_a_setup_or_with_a_newer_one_are_left_alone(clips):
    storage = f"sqlite:///{clips}/tune.db"
    without = optuna.create_study(storage=storage, study_name="lstm-00000000")
    tune_lstm(clips, "--trials", "1")
    setup = read_studies(clips)[1].user_attrs[tune.SETUP]
    newer = optuna.create_study(storage=storage, study_name="newer")
    newer.set_user_attr(tune.SETUP, setup | {"format": tune.SETUP_FORMAT + 1, "flags": None})
    optuna.delete_study(study_name=read_studies(clips)[1].study_name, storage=storage)
    tune_lstm(clips, "--trials", "1")
    assert not without.trials and not newer.trials and len(read_studies(clips)) == 3


# --- what is not needed may fail ----------------------------------------------------------------


def test_the_defaults_are_known_when_their_first_trial_was_interrupted(capsys):
    study, args = optuna.create_study(direction="maximize"), tune.Namespace(model="x", trials=2)
    scale, defaults = {"lr": optuna.distributions.FloatDistribution(0, 1)}, {"lr": 0.5}
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))
    for lr, value in ((0.5, 0.9), (0.1, 0.8)):
        study.add_trial(
            optuna.create_trial(
                value=value,
                params={"lr": lr},
                distributions=scale,
                user_attrs={"folds": [value - 0.1, value + 0.1]},
            )
        )
    tune.print_best(study, args, defaults)
    assert "None of 2 trials was better than the defaults" in capsys.readouterr().out
    study.add_trial(study.trials[1])
    study.add_trial(
        optuna.create_trial(
            value=0.95, params={"lr": 0.2}, distributions=scale, user_attrs={"folds": [1, 0.9]}
        )
    )
    tune.print_best(study, args, defaults)
    assert "best: AUROC 0.950" in (out := capsys.readouterr().out) and "defaults: 0.900" in out


@pytest.mark.parametrize("trials", ["1", "3"])
def test_scores_that_are_all_alike(clips, monkeypatch, trials):
    monkeypatch.setattr(tune, "validation_auroc", lambda training: 1.0)
    printed = tune_lstm(clips, "--trials", trials)
    train_lstm.make_parser().parse_args(find_command(printed)[2:])
    assert f"None of {trials} trials was better than the defaults: keep them." in printed
    assert printed.splitlines()[-1].startswith("importance: not available (")
    assert (clips / "tune.png").exists()


def test_an_importance_that_cannot_be_computed(clips, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("zero variance\nin all trees")

    monkeypatch.setattr(tune, "print_importance", fail)
    printed = tune_lstm(clips, "--trials", "3")
    assert find_command(printed)
    assert printed.splitlines()[-1] == "importance: not available (zero variance)"


def test_the_folder_of_the_picture_is_gone(clips, monkeypatch):
    run_trials = tune.run_trials

    def remove_after(*args):
        run_trials(*args)
        (clips / "pictures").rmdir()

    monkeypatch.setattr(tune, "run_trials", remove_after)
    printed = tune_lstm(clips, "--trials", "1", "--picture", clips / "pictures" / "t.png")
    assert find_command(printed)
    assert printed.splitlines()[-1].startswith("picture: not available (")


# --- any model's search space -------------------------------------------------------------------


def make_tiny_parser():
    """Defaults outside of the search spaces: of the shared ones (lr, ...) and of the model's."""
    rates = {"lr": 0.05, "weight_decay": 0.0, "centralise": False}
    parser = experiment.training_parser("tiny", "Tiny.", epochs=1, batch_size=12, **rates)
    parser.add_argument("--units", type=int, default=3)
    parser.add_argument("--shift", type=float, default=-2.5)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--cap", type=int)
    return parser


def build_tiny(args, n_mels, n_frames):
    assert args.units and args.shift < 0 and args.wide in (True, False) and args.cap in (None, 8)
    return train_lstm.LSTMClassifier(n_mels, n_frames, hidden_size=args.units, num_layers=1)


@pytest.fixture
def tiny(monkeypatch):
    """A third model, as if train_tiny.py were there."""
    search = {"units": (4, 8), "shift": (-2.0, -1.0), "wide": [True], "cap": [8]}
    script = types.ModuleType("train_tiny")
    vars(script).update(make_parser=make_tiny_parser, build=build_tiny, SEARCH=search)
    monkeypatch.setitem(sys.modules, "train_tiny", script)
    monkeypatch.setattr(tune, "list_models", lambda: ["lstm", "tiny"])
    return script


def test_defaults_outside_of_the_search_space(tiny, clips):
    run = call_script("tune.py", "tiny", *flags(clips)[1:], "--trials", "6", "--device", "cpu")
    assert run.returncode == 0, run.stderr
    first, *others = read_study(clips).trials
    defaults = {"lr": 0.05, "batch_size": 12, "weight_decay": 0.0, "augment": 1.0}
    assert first.params == defaults | {"units": 3, "shift": -2.5, "wide": False, "cap": None}
    assert len(others) == 5 and all(3 <= trial.params["units"] <= 8 for trial in others)
    args = make_tiny_parser().parse_args(find_command(run.stdout)[2:])
    for name, value in read_study(clips).best_trial.params.items():
        assert getattr(args, name) == (pytest.approx(value, rel=0.01) if value else value)


@pytest.mark.parametrize(
    "name, value",
    [("wide", True), ("wide", False), ("cap", None), ("cap", 8), ("shift", -3e-5)]
    + [("weights", "a b"), ("augment", 0.0), ("centralise", True), ("batch_size", 12)],
)
def test_the_final_command_takes_any_value(name, value):
    parser = make_tiny_parser()
    args, defaults = parser.parse_args([]), vars(parser.parse_args([]))
    command = shlex.split(tune.write_command(args, {name: value}, defaults))
    assert command[:2] == ["python", "train_tiny.py"]
    assert getattr(parser.parse_args(command[2:]), name) == value


def test_the_search_space_holds_the_defaults():
    defaults = {"a": 1, "b": 0.5, "c": "x", "d": 3, "e": 0.5, "f": 2}
    search = {"a": [1, 2], "b": (1.0, 2.0), "c": ["y"], "d": (1, 2), "e": (0, 1), "f": (0.0, 1.0)}
    space = tune.find_space("train_x", search, defaults)
    assert [space[name] for name in "abc"] == [[1, 2], (0.5, 2.0), ["y", "x"]]
    assert [space[name] for name in "def"] == [(1, 3), (0.0, 1.0), (0.0, 2)]
    assert search["c"] == ["y"]  # the script's own is as it was


@pytest.mark.parametrize(
    "choices, kind, log",
    [
        ([1, None], "CategoricalDistribution", None),
        ((1, 3), "IntDistribution", False),
        ((1, 100), "IntDistribution", True),
        ((0, 100), "IntDistribution", False),
        ((1e-4, 0.3), "FloatDistribution", True),
        ((0.1, 9.9), "FloatDistribution", False),
        ((0.0, 2), "FloatDistribution", False),
        ((-2.0, 300.0), "FloatDistribution", False),
    ],
)
def test_how_a_value_is_drawn(choices, kind, log):
    trial = optuna.create_study().ask()
    tune.draw_value(trial, "x", choices)
    drawn_from = trial.distributions["x"]
    assert (type(drawn_from).__name__, getattr(drawn_from, "log", None)) == (kind, log)


@pytest.mark.parametrize(
    "search", [{"depth": (1, 3)}, {"cap": (1, 3)}, {"patience": [1, 2]}, {"split": (1, 3)}]
)
def test_a_search_that_does_not_fit_the_flags(tiny, clips, search):
    tiny.SEARCH = search
    assert call_script("tune.py", "tiny", "--help").returncode == 0
    line = error_line(call_script("tune.py", "tiny", *flags(clips)[1:]))
    assert line.startswith("tune.py: train_tiny.py: SEARCH ") and next(iter(search)) in line
    tune_lstm(clips, "--trials", "1")  # other models are as they were


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["tune.db", "sqlite:////no/such/folder/t.db", "nosuch://x", "postgresql://h/d", "text"]
)
def test_a_storage_that_cannot_be_opened(small_dataset, tmp_path, url):
    if url == "text":
        (tmp_path / "text").write_text("no database " * 100)
        url = f"sqlite:///{tmp_path}/text"
    places = ["--storage", url, "--picture", tmp_path / "t.png"]
    line = error_line(call_script("tune.py", *flags(small_dataset)[:5], *places))
    assert line.startswith(f"tune.py: --storage {url}: cannot be opened (")


def test_another_programs_tables_are_one_line(small_dataset, tmp_path):
    with sqlite3.connect(tmp_path / "t.db") as tables:
        tables.execute("create table studies (id integer, name text)")
    places = [f"sqlite:///{tmp_path}/t.db", "--picture", tmp_path / "t.png"]
    line = error_line(call_script("tune.py", *flags(small_dataset)[:5], "--storage", *places))
    assert line.startswith(f"tune.py: --storage {places[0]}: ") and "studies" in line


def test_a_storage_that_stays_locked_is_one_line(clips, monkeypatch):
    """As SQLite's is after a minute, here at once, while a trial runs."""
    monkeypatch.setattr(tune, "LOCKED_SECONDS", 0.1)
    locks = []

    def lock(study, objective, target):
        locks.append(sqlite3.connect(clips / "tune.db", isolation_level=None))
        locks[0].execute("begin exclusive")
        study.set_user_attr("a", 1)

    monkeypatch.setattr(tune, "run_trials", lock)
    line = error_line(call_script("tune.py", *flags(clips, "--epochs", "1", *SMALL)))
    locks[0].close()
    assert "database is locked" in line and "the same command goes on from here" in line


def test_a_storage_that_is_locked_after_the_last_trial_is_one_line(clips, monkeypatch):
    print_best = tune.print_best

    def lock_before(study, *given):
        locks.append(sqlite3.connect(clips / "tune.db", isolation_level=None))
        locks[0].execute("begin exclusive")
        study._storage._backend.engine.dispose()
        print_best(study, *given)

    monkeypatch.setattr(tune, "LOCKED_SECONDS", 0.1)
    monkeypatch.setattr(tune, "print_best", lock_before)
    locks = []
    line = error_line(call_script("tune.py", *flags(clips, "--epochs", "1", *SMALL, "--trials", 1)))
    locks[0].close()
    assert "database is locked" in line and "the same command goes on from here" in line


def fail_to_store(_task):
    try:
        raise sqlite3.OperationalError("database is locked")
    except sqlite3.OperationalError as error:
        raise optuna.exceptions.StorageInternalError("An exception is raised") from error


def test_a_storage_that_fails_in_another_process_says_why():
    refused = pytest.raises(InputError, match=r"--storage x: failed \(database is locked\)")
    with refused, tune.storage_errors("x"):
        list(map_processes(fail_to_store, [1], jobs=1))


def test_a_picture_is_written_through_a_link(clips):
    (clips / "link.png").symlink_to("real.png")
    tune_lstm(clips, "--trials", "1", "--picture", clips / "link.png")
    assert (clips / "link.png").is_symlink() and (clips / "real.png").stat().st_size > 1000
    assert not list(clips.glob("*.png.*"))


@pytest.mark.parametrize("folds", ["people", "11", "500"])
def test_too_many_folds(small_dataset, tmp_path, folds):
    places = ["--storage", f"sqlite:///{tmp_path}/t.db", "--picture", tmp_path / "t.png"]
    line = error_line(call_script("tune.py", *flags(small_dataset)[:5], *places, "--folds", folds))
    assert "--folds" in line and not (tmp_path / "t.db").exists()


def test_help_and_a_model_that_there_is_not():
    assert "{cnn,lstm" in call_script("tune.py", "--help").stdout
    run = call_script("tune.py", "cnn", "--help")
    assert run.returncode == 0 and "--trials N" in run.stdout and "--storage URL" in run.stdout
    assert "hidden-size" not in run.stdout
    assert call_script("tune.py", "mlp").returncode == 2
