"""Searches hyperparameters with Optuna: those that validate best over folds of people.

    python tune.py lstm --trials 20
    python tune.py lstm --trials 20 --lr 0.003      # held fixed, the others are searched

The test clips of train_*.py are set aside first. The same command goes on where a killed one was,
and may run several times at once, on as many machines as reach the --storage.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import re
import shlex
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import experiment
from common import Diverged, Interrupted, SpectrogramDataset, Training, list_models
from members import Build, count_jobs, differing_flags, make_training, map_trainings
from speech.cli import (
    InputError,
    Parser,
    at_least,
    check_writable,
    optional,
    print0,
    run,
    write_atomically,
)
from speech.dataset import Clips, split_clips
from speech.device import pick_device

import numpy as np
import optuna
import torch
from optuna import Study, Trial
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sklearn.metrics import roc_auc_score
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

Space = dict[str, list | tuple]  # of each searched flag its choices, or its range (low, high)

LOG_RATIO = 100  # a range that spans two decades or more is searched by its logarithm
TUNE_FLAGS = {"trials", "storage", "picture", "jobs"}  # no score depends on them
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
LOCKED_SECONDS = 60  # that another process may keep a SQLite file to itself
FEWEST_SCORES = 5  # different ones, for importances: of two trials every flag that differs has all
HEARTBEAT_SECONDS, DEAD_SECONDS = 5, 30  # after such a silence a trial is run again
SETUP = "speech-depression"  # a study's attribute: its flags, search space and clips
SETUP_FORMAT = 1  # older studies have no such attribute, and are left alone


# --- the search space ---------------------------------------------------------------------------


def find_space(script: str, search: Space, defaults: dict) -> Space:
    """The search space that a script asks for, wide enough for the defaults: they are tried first.

    Raises:
        InputError: the script's SEARCH does not fit its flags.
    """
    space = {}
    for name, choices in search.items():
        if name not in defaults:
            raise InputError(f"{script}.py: SEARCH names {name}, no flag of it that has a default")
        default = defaults[name]
        if isinstance(choices, list):
            space[name] = choices if default in choices else [*choices, default]
        elif isinstance(default, int | float):
            low, _, high = sorted([*choices, default])
            space[name] = (float(low), float(high)) if isinstance(default, float) else (low, high)
        else:
            found = f"the range {choices}, but its default is {default!r}"
            raise InputError(f"{script}.py: SEARCH gives {name} {found}: expected a number")
    return space


def draw_value(trial: Trial, name: str, choices: list | tuple) -> object:
    if isinstance(choices, list):
        return trial.suggest_categorical(name, choices)
    low, high = choices
    integers = isinstance(low, int) and isinstance(high, int)
    suggest = trial.suggest_int if integers else trial.suggest_float
    return suggest(name, low, high, log=low > 0 and high / low >= LOG_RATIO)


class Sampler(optuna.samplers.TPESampler):
    """TPE that tries the script's defaults first; seeded by the trial's number.

    With one seed for all, processes that share a study would draw the same trials.
    """

    def __init__(self, defaults: dict, seed: int):
        super().__init__(seed=seed)
        self.defaults, self.seed = defaults, seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        super().__init__(seed=self.seed + trial.number)

    def sample_independent(self, study, trial, name, distribution) -> object:
        if trial.number == 0:
            return self.defaults[name]
        return super().sample_independent(study, trial, name, distribution)


# --- a trial ------------------------------------------------------------------------------------


class Surplus(Exception):
    """Another process has begun the last trial meanwhile."""


def plan_folds(args: Namespace, clips: Clips) -> tuple[Clips, list[dict]]:
    """The clips without the test clips, and for each fold positions of train and val in them."""
    test = split_clips(clips.frame, args.split, args.seed, validate=False)["test"]
    frame = clips.frame.drop(index=test).reset_index(drop=True)
    # What a fold holds out is for validation; with patience it would hold out more of the rest.
    folds = experiment.plan_splits(Namespace(**vars(args) | {"patience": 0}), frame)
    for number, fold in enumerate(folds, 1):
        if frame["label"].iloc[fold["test"]].nunique() < 2:
            raise InputError(f"--folds {args.folds}: one label only in fold {number}; try fewer")
    sizes = f"{len(frame)} clips of {frame['participant'].nunique()} participants"
    by = "given" if args.folds == "given" else args.split
    print0(f"{sizes} in {len(folds)} folds by {by}; {len(test)} test clips are set aside")
    folds = [{"train": fold["train"], "val": fold["test"]} for fold in folds]
    return dataclasses.replace(clips, frame=frame), folds


def make_trainings(
    args: Namespace,
    build: Build,
    clips: Clips,
    folds: list[dict],
    device: torch.device,
) -> Iterator[Training]:
    """A training run for each fold, of the model that `args` ask for."""
    dataset = SpectrogramDataset(clips.frame["path"], clips.frame["label"], clips.shape)
    for fold in folds:
        torch.manual_seed(args.seed)
        model = build(args, *clips.shape)
        yield make_training(args, model, dataset, fold, device)


def round_off(values: dict) -> dict:
    """What is trained is what the final command names, to three digits."""
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in values.items()}


def validation_auroc(training: Training) -> float:
    logits = np.nan_to_num(training.predict("val", training.autocast))
    return roc_auc_score(training.labels[training.split["val"]], logits[:, 1] - logits[:, 0])


def score_fold(trial: Trial, training: Training, step: int) -> float:
    """Trains on one fold -> AUROC on what it holds out; a bad trial is pruned at any epoch."""

    def watch(record: dict) -> None:
        trial.report(validation_auroc(training), step + record["epoch"])
        if trial.should_prune():
            raise optuna.TrialPruned

    with redirect_stdout(None):  # a line for each epoch
        training.fit(on_epoch=watch)
    return validation_auroc(training)


def run_trial(trial: Trial, args: Namespace, space: Space, trainings: Callable) -> float:
    """The objective: mean validation AUROC over the folds.

    Args:
        trainings: yields a training run of (args) for each fold.
    """
    values = {name: draw_value(trial, name, choices) for name, choices in space.items()}
    if is_surplus(trial, args.trials):
        raise Surplus
    args = Namespace(**vars(args) | round_off(values))
    try:
        scores = [
            score_fold(trial, training, number * args.epochs)
            for number, training in enumerate(trainings(args))
        ]
    except Diverged as error:
        raise optuna.TrialPruned from error
    except Interrupted:
        trial.study.enqueue_trial(trial.params)
        raise
    trial.set_user_attr("folds", scores)
    return float(np.mean(scores))


# --- the study ----------------------------------------------------------------------------------


def is_taken(trial: FrozenTrial) -> bool:
    """Done or being run; a process killed before it drew the parameters left nothing to do."""
    return trial.state in DONE or (trial.state == TrialState.RUNNING and bool(trial.params))


def is_surplus(trial: Trial, target: int) -> bool:
    """Whether the trials begun before this one are enough, whoever runs them."""
    for _ in range(10):
        before = trial.study.get_trials(deepcopy=False)[: trial.number]
        taken = sum(map(is_taken, before))
        begun = sum(other.state in (*DONE, TrialState.RUNNING) for other in before)
        if taken >= target or begun < target:
            break
        time.sleep(0.5)  # one of them is about to draw its parameters, or its process was killed
    return taken >= target


class Storage(RDBStorage):
    """Of Optuna's own two processes can claim one waiting trial, where it is a SQLite file."""

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        if state != TrialState.RUNNING:
            return super().set_trial_state_values(trial_id, state, values)
        waiting = "UPDATE trials SET state = 'RUNNING', datetime_start = :now"
        waiting = text(f"{waiting} WHERE trial_id = :trial AND state = 'WAITING'")
        with self.engine.begin() as connection:
            claim = connection.execute(waiting, {"now": datetime.now(), "trial": trial_id})
            return claim.rowcount == 1


def open_storage(url: str, attempts: int = 3) -> Storage:
    """Processes that make the tables of a new file at once get in each other's way: try again."""
    wait = {"connect_args": {"timeout": LOCKED_SECONDS}} if url.startswith("sqlite") else None
    try:
        return Storage(
            url,
            wait,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=DEAD_SECONDS,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
    except (SQLAlchemyError, ImportError, RuntimeError) as error:
        if attempts > 1:
            time.sleep(0.5)
            return open_storage(url, attempts - 1)
        reason = str(error).splitlines()[0]
        expected = "expected one such as sqlite:///tune.db"
        raise InputError(f"--storage {url}: cannot be opened ({reason}); {expected}") from error


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """What a storage raises once it is open: locked for a minute, full, or of another program."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        text = str(error.__cause__ or error).strip()
        raised = re.search(r"(?m)^[\w.]+Error: (.+)", text)  # in a process of --jobs: a traceback
        reason = raised[1] if raised else text.partition("\n")[0]
        advice = "what is done is kept: the same command goes on from here"
        raise InputError(f"--storage {url}: failed ({reason}); {advice}") from error


def name_study(storage: RDBStorage, setup: dict, defaults: dict) -> str:
    """The name of the study of this setup: of one in the storage, or else of a new one.

    One from before a flag was added counts, at the flag's default. A new name is a hash: processes
    that start at once then share one study.
    """
    for study in storage.get_all_studies():
        earlier = study.user_attrs.get(SETUP, {})
        same = all(earlier.get(key) == setup[key] for key in ("format", "content"))
        if same and not differing_flags(setup["flags"], earlier["flags"], defaults):
            return study.study_name
    digest = hashlib.sha256(json.dumps(setup, sort_keys=True).encode()).hexdigest()
    return f"{setup['flags']['model']}-{digest[:8]}"


def open_study(args: Namespace, space: Space, defaults: dict, content: str) -> Study:
    """The study of these flags, search space and clips, with what is done of it.

    Args:
        defaults: of the training script's flags; a study from before a flag ran with its default.
        content: the hash of clips and labels.
    """
    flags = experiment.result_flags(args).items()
    ours = TUNE_FLAGS | {"members"}  # a trial trains one network of each fold
    flags = {name: value for name, value in flags if name not in ours}
    # The space is part of it: Optuna refuses other choices in a study that has begun.
    flags |= {name: f"searched in {choices}" for name, choices in space.items()}
    setup = {"format": SETUP_FORMAT, "flags": flags, "content": content}
    storage = open_storage(args.storage)
    study = optuna.create_study(
        storage=storage,
        sampler=Sampler(defaults, args.seed),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=args.epochs // 3),
        study_name=name_study(storage, setup, defaults),
        direction="maximize",
        load_if_exists=True,
    )
    study.set_user_attr(SETUP, setup)
    return study


def print_trial(target: int, study: Study, trial: FrozenTrial) -> None:
    if trial.state not in DONE:
        return
    done = sum(other.state in DONE for other in study.get_trials(deepcopy=False))
    score = f"AUROC {trial.value:.3f}" if trial.state == TrialState.COMPLETE else "pruned     "
    values = "  ".join(f"{name} {value}" for name, value in round_off(trial.params).items())
    print0(f"{done:4}/{target}  {score}  {trial.duration.seconds:4} s  {values}")


def run_trials(study: Study, objective: Callable[[Trial], float], target: int) -> None:
    """Runs trials until `target` are done, waiting for those that other processes run."""
    line = partial(print_trial, target)
    while True:
        optuna.storages.fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        if sum(trial.state in DONE for trial in trials) >= target:
            return
        if sum(map(is_taken, trials)) >= target:
            time.sleep(1)
            continue
        with suppress(optuna.exceptions.UpdateFinishedTrialError):  # taken for dead in a long sleep
            study.optimize(objective, n_trials=1, catch=Surplus, callbacks=[line])


def run_trials_of(task: tuple) -> None:
    run_trials(*task)


def search(study: Study, args: Namespace, space: Space, trainings: Callable) -> None:
    """Runs the trials that are still to be run, --jobs of them at once."""
    # As a run of several networks: the same scores, however many --jobs there are.
    args = Namespace(**vars(args) | {"threads": args.threads or 1})
    task = study, partial(run_trial, args=args, space=space, trainings=trainings), args.trials
    if args.jobs == 1:
        run_trials(*task)
    else:
        for _ in map_trainings(run_trials_of, [task] * args.jobs, args.jobs):
            pass


# --- what was found -----------------------------------------------------------------------------


def write_command(args: Namespace, values: dict, defaults: dict) -> str:
    """The training command: the flags that were given or found, where they are not the default."""
    words = ["python", f"train_{args.model}.py"]
    for name, value in (vars(args) | values).items():
        tuning = name in TUNE_FLAGS | {"model", "folds", "resume"}
        if tuning or value is None or value == defaults.get(name):
            continue
        flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag)
        else:  # argparse takes what begins with - for a flag
            words += [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]
    return shlex.join(words)


def print_best(study: Study, args: Namespace, defaults: dict) -> None:
    """What was found, how far to trust it, and the command that trains it."""
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    if not complete:
        raise InputError("every trial was pruned or diverged: try more --trials")
    # The first trial, or what was put back of it when it was interrupted.
    tried = [t for t in complete if all(defaults[key] == t.params[key] for key in t.params)]
    best = max([*tried, study.best_trial], key=lambda trial: trial.value)
    folds = best.user_attrs["folds"]
    spread = f"sd {np.std(folds, ddof=1):.3f} over {len(folds)} folds"
    line = f"best: AUROC {best.value:.3f} ({spread})"
    advice = f"The best of {args.trials} trials is optimistic; the test clips decide:"
    if best in tried:
        advice = f"None of {args.trials} trials was better than the defaults: keep them."
    elif tried:
        line += f"; the defaults: {tried[0].value:.3f}"
    print0(line, advice, f"  {write_command(args, round_off(best.params), defaults)}")


def print_importance(study: Study) -> None:
    """Each searched flag's share of the scores' variance."""
    scores = {trial.value for trial in study.trials if trial.state == TrialState.COMPLETE}
    if len(scores) < FEWEST_SCORES:
        raise ValueError(f"it takes {FEWEST_SCORES} different scores, found {len(scores)}")
    # Over all trials: Optuna's default asks what separates the best few.
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator).items()
    print0("importance: " + ", ".join(f"{name} {share:.0%}" for name, share in shares))


def draw_history(study: Study, path: str) -> None:
    """Writes a picture of the trials' validation AUROC, in order, and of the best so far."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(7, 4), dpi=150, layout="constrained")).subplots()
    for state, mark in zip(DONE, ("o", "x"), strict=True):
        trials = [t for t in study.trials if t.state == state and t.value is not None]
        numbers, values = [t.number for t in trials], [t.value for t in trials]
        axes.plot(numbers, values, mark, label=state.name.lower())
        if state == TrialState.COMPLETE:
            axes.step(numbers, np.maximum.accumulate(values), where="post", label="best so far")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(title=study.study_name, xlabel="trial", ylabel="validation AUROC")
    axes.legend()
    path = Path(path).resolve()  # what a link names is replaced
    ours = path.with_name(f"{path.name}.{os.getpid()}")  # processes of one study end together
    with write_atomically(ours) as temporary:
        figure.savefig(temporary, format="png")
    os.replace(ours, path)


# --- the command line ---------------------------------------------------------------------------


def parse_arguments() -> Namespace:
    parser = Parser(description="Searches a model's hyperparameters.")
    models = parser.add_subparsers(dest="model", required=True)
    for name in list_models():
        script = importlib.import_module(f"train_{name}")
        known = script.make_parser()
        known.set_defaults(folds=3, **dict.fromkeys(experiment.SEARCH | script.SEARCH))
        text = "Flags whose default is None are searched for, unless they are given. "
        text += "A trial trains one network of each fold, whatever --members."
        shown = {"description": text, "conflict_handler": "resolve"}
        add = models.add_parser(name, parents=[known], **shown).add_argument
        add("--trials", metavar="N", type=at_least(1), default=20, help="of all processes together")
        add("--storage", metavar="URL", default="sqlite:///tune.db", help="a file or a database")
        add("--picture", metavar="FILE", default="tune.png", help="to be written")
        jobs = "trials side by side, on one core each; with several the same seed need not give "
        jobs += "the same trials, as what is tried next depends on what has ended (default: 1)"
        add("--jobs", metavar="N", type=at_least(1), default=1, help=jobs)
    return parser.parse_args()


def main() -> int:
    given = parse_arguments()
    script = importlib.import_module(f"train_{given.model}")
    defaults = vars(script.make_parser().parse_args([]))
    space = find_space(script.__name__, experiment.SEARCH | script.SEARCH, defaults)
    space = {name: choices for name, choices in space.items() if getattr(given, name) is None}
    args = Namespace(**{"patience": 0} | vars(given))  # the last epoch counts, as with --folds
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the heartbeat
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    check_writable(args.picture)
    device = pick_device(args.device)
    args.jobs = count_jobs(args, args.jobs, device)
    clips = experiment.load_dataset(args).clips
    rest, folds = plan_folds(args, clips)
    context = {"build": script.build, "clips": rest, "folds": folds, "device": device}
    trainings = partial(make_trainings, **context)
    try:
        with storage_errors(args.storage):
            study = open_study(args, space, defaults, clips.content)
            print0(f"{study.study_name} in {args.storage}")
            search(study, args, space, trainings)
            print_best(study, given, defaults)
    except Interrupted as error:
        print0("Stopped, nothing is lost: the same command goes on from here.")
        return 128 + error.args[0]
    with optional("importance"):
        print_importance(study)
    with optional("picture"):
        draw_history(study, args.picture)
    return 0


if __name__ == "__main__":
    run(main)
