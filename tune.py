"""Searches hyperparameters with Optuna: those that validate best over folds of people.

    python tune.py lstm --trials 20
    python tune.py lstm --trials 20 --lr 0.003      # held fixed, the others are searched

The test clips of train_*.py are set aside first. The same command goes on where a killed one was,
and may run several times at once, on as many machines as reach the --storage.
"""

import argparse
import hashlib
import json
import os
import shlex
import time
import warnings
from contextlib import redirect_stdout, suppress
from functools import partial

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sklearn.metrics import roc_auc_score
from sqlalchemy.exc import SQLAlchemyError

import train_cnn
import train_lstm
from common import Diverged, Interrupted, SpectrogramDataset, Training, pick_device
from dataset import (
    InputError,
    Parser,
    at_least,
    check_writable,
    run,
    split_clips,
    split_folds,
    write_atomically,
)
from recipe import load_dataset

RECIPES = {recipe.name: recipe for recipe in (train_cnn.RECIPE, train_lstm.RECIPE)}
SPACE = {  # how Optuna draws a flag, if the recipe has it
    "lr": lambda trial: trial.suggest_float("lr", 1e-5, 1e-2, log=True),
    "batch_size": lambda trial: trial.suggest_categorical("batch_size", [8, 16, 32, 64]),
    "dropout": lambda trial: trial.suggest_float("dropout", 0.0, 0.7),
    "weight_decay": lambda trial: trial.suggest_float("weight_decay", 1e-4, 0.3, log=True),
    "augment": lambda trial: trial.suggest_float("augment", 0.0, 2.0),
    "hidden_size": lambda trial: trial.suggest_categorical("hidden_size", [32, 64, 128, 256]),
    "num_layers": lambda trial: trial.suggest_int("num_layers", 1, 3),
    "steps": lambda trial: trial.suggest_categorical("steps", ["time", "mel"]),
}
OWN = {"model", "trials", "storage", "picture", "folds", "resume"}  # not of the final command
PLACES = {"spectrograms", "labels", "weights", "device", "workers"}  # change no score
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
HEARTBEAT_SECONDS, DEAD_SECONDS = 5, 30  # after such a silence a trial is run again


class Surplus(Exception):
    """Another process has begun the last trial meanwhile."""


class Sampler(optuna.samplers.TPESampler):
    """TPE that tries the recipe's defaults first; seeded by the trial's number.

    With one seed for all, processes that share a study would draw the same trials.
    """

    def __init__(self, defaults: dict, seed: int):
        super().__init__(seed=seed)
        self.defaults, self.seed = defaults, seed

    def before_trial(self, study, trial):
        super().__init__(seed=self.seed + trial.number)

    def sample_independent(self, study, trial, name, distribution):
        if trial.number == 0:
            return self.defaults[name]
        return super().sample_independent(study, trial, name, distribution)


# --- a trial ------------------------------------------------------------------------------------


def plan_folds(args) -> tuple:
    """The clips that are not test clips, about the data, and folds (train, held) of positions."""
    frame, data = load_dataset(args)
    test = split_clips(frame, args.split, args.seed, validate=False)["test"]
    rest = frame.drop(index=test).drop(columns="split", errors="ignore").reset_index(drop=True)
    if args.folds == "people":
        args.folds = rest["participant"].nunique()
    try:
        folds = split_folds(rest, args.folds, args.split, args.seed)
    except ValueError as error:
        raise InputError(f"--folds {args.folds}: {error}") from error
    for number, fold in enumerate(folds, 1):
        if any(rest["label"].iloc[side].nunique() < 2 for side in fold):
            raise InputError(f"--folds {args.folds}: one label only in fold {number}; try fewer")
    sizes = f"{len(rest)} clips of {rest['participant'].nunique()} participants"
    print(f"{sizes} in {args.folds} folds by {args.split}; {len(test)} test clips are set aside")
    return rest, data, folds


def round_off(values: dict) -> dict:
    """What is trained is what the final command says, to three digits."""
    return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in values.items()}


def auroc(training: Training) -> float:
    logits = np.nan_to_num(training.predict("val", training.autocast))
    return roc_auc_score(training.labels[training.split["val"]], logits[:, 1] - logits[:, 0])


def score_fold(trial: optuna.Trial, training: Training, step: int) -> float:
    """Trains on one fold -> AUROC on what it holds out; a bad trial is pruned at any epoch."""

    def watch(record):
        trial.report(auroc(training), step + record["epoch"])
        if trial.should_prune():
            raise optuna.TrialPruned

    with redirect_stdout(None):  # a line for each epoch
        training.fit(on_epoch=watch)
    return auroc(training)


def validate(trial: optuna.Trial, args, dataset, shape, folds, device) -> float:
    """The objective: mean validation AUROC over the folds."""
    values = round_off({name: draw(trial) for name, draw in SPACE.items() if is_free(args, name)})
    if is_surplus(trial, args.trials):
        raise Surplus
    args = argparse.Namespace(**vars(args) | values)
    scores = []
    try:
        for number, (train, held) in enumerate(folds):
            model, _ = RECIPES[args.model].build(args, shape)
            training = Training(model, dataset, {"train": train, "val": held}, args, device)
            scores.append(score_fold(trial, training, number * args.epochs))
    except Diverged as error:
        raise optuna.TrialPruned from error
    except Interrupted:
        trial.study.enqueue_trial(trial.params)
        raise
    trial.set_user_attr("folds", scores)
    return float(np.mean(scores))


# --- the study ----------------------------------------------------------------------------------


def is_free(args, name: str) -> bool:
    """Whether the recipe has this flag and it was not given."""
    return getattr(args, name, 0) is None


def is_taken(trial) -> bool:
    """Done or being run; a process killed before it drew the parameters left nothing to do."""
    return trial.state in DONE or (trial.state == TrialState.RUNNING and bool(trial.params))


def is_surplus(trial: optuna.Trial, target: int) -> bool:
    """Whether the trials begun before this one are enough, whoever runs them."""
    for _ in range(10):
        before = trial.study.get_trials(deepcopy=False)[: trial.number]
        taken = sum(map(is_taken, before))
        begun = sum(other.state in (*DONE, TrialState.RUNNING) for other in before)
        if taken >= target or begun < target:
            break
        time.sleep(0.5)  # one of them is about to draw its parameters, or its process was killed
    return taken >= target


def open_storage(url: str, attempts: int = 3) -> RDBStorage:
    """Processes that make the tables of a new file at once get in each other's way: try again."""
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None
    try:
        return RDBStorage(
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


def open_study(args, sha256: str) -> optuna.Study:
    """The study of these clips and flags, with what is done of it."""
    left_out = PLACES | OWN - {"model", "folds"}
    setup = {name: value for name, value in vars(args).items() if name not in left_out}
    name = hashlib.sha256(json.dumps([setup, sha256], sort_keys=True).encode()).hexdigest()[:8]
    defaults = vars(RECIPES[args.model].parser().parse_args([]))
    return optuna.create_study(
        storage=open_storage(args.storage),
        sampler=Sampler(defaults, args.seed),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=args.epochs // 3),
        study_name=f"{args.model}-{name}",
        direction="maximize",
        load_if_exists=True,
    )


def print_trial(target: int, study: optuna.Study, trial) -> None:
    if trial.state not in DONE:
        return
    done = sum(other.state in DONE for other in study.get_trials(deepcopy=False))
    score = f"AUROC {trial.value:.3f}" if trial.state == TrialState.COMPLETE else "pruned     "
    values = "  ".join(f"{name} {value}" for name, value in round_off(trial.params).items())
    print(f"{done:4}/{target}  {score}  {trial.duration.seconds:4} s  {values}", flush=True)


def optimise(study: optuna.Study, objective, target: int) -> None:
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


def plot(study: optuna.Study, path: str) -> None:
    """Writes a picture of the trials' validation AUROC, in order, and of the best so far."""
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
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png")


def summarise(study: optuna.Study, target: int, command: str) -> str:
    """What was found, how far to trust it, and the command that trains it."""
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    if not complete:
        raise InputError("every trial was pruned or diverged: try more --trials")
    best, folds = study.best_trial, study.best_trial.user_attrs["folds"]
    spread = f"sd {np.std(folds, ddof=1):.3f} over {len(folds)} folds"
    lines = [f"best: AUROC {best.value:.3f} ({spread}), trial {best.number}"]
    if complete[0].number == 0:
        lines[0] += f"; the recipe's defaults: {complete[0].value:.3f}"
    if len(complete) > 1:
        # Over all trials: Optuna's default asks what separates the best few.
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator).items()
        lines.append("what mattered: " + ", ".join(f"{name} {part:.0%}" for name, part in shares))
    lines.append(f"As the best of {target} this flatters; the test clips will tell:")
    return "\n".join([*lines, f"  {command} {to_flags(round_off(best.params))}"])


# --- the command line ---------------------------------------------------------------------------


def to_flags(values: dict) -> str:
    words = []
    for name, value in values.items():
        flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return shlex.join(words)


def write_command(args) -> str:
    """The training command with the flags that were given."""
    defaults = vars(RECIPES[args.model].parser().parse_args([]))
    given = {
        name: value
        for name, value in vars(args).items()
        if name not in OWN and value not in (None, defaults.get(name))
    }
    return f"python train_{args.model}.py {to_flags(given)}".rstrip()


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Searches a recipe's hyperparameters.")
    models = parser.add_subparsers(dest="model", required=True)
    for name, recipe in RECIPES.items():
        known = recipe.parser()
        free = SPACE.keys() & vars(known.parse_args([])).keys()
        known.set_defaults(folds=3, **dict.fromkeys(free))
        text = "Flags whose default is None are searched for, unless they are given."
        shown = {"description": text, "formatter_class": known.formatter_class}
        model = models.add_parser(name, parents=[known], conflict_handler="resolve", **shown)
        add = model.add_argument
        add("--trials", metavar="N", type=at_least(1), default=20, help="of all processes together")
        add("--storage", metavar="URL", default="sqlite:///tune.db", help="a file or a database")
        add("--picture", metavar="FILE", default="tune.png", help="to be written")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    command = write_command(args)
    vars(args).setdefault("patience", 0)  # the last epoch counts, as in train_*.py --folds
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the heartbeat
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    picture = f"{args.picture}.{os.getpid()}"  # processes of one study begin and end together
    check_writable(picture)
    frame, data, folds = plan_folds(args)
    study = open_study(args, data["sha256"])
    dataset, device = SpectrogramDataset(frame, args.spectrograms), pick_device(args.device)
    context = {"args": args, "dataset": dataset, "shape": data["shape"], "folds": folds}
    print(f"{study.study_name} in {args.storage}", flush=True)
    try:
        optimise(study, partial(validate, **context, device=device), args.trials)
    except Interrupted as error:
        print("Stopped, nothing is lost: the same command goes on from here.")
        return 128 + error.args[0]
    plot(study, picture)
    os.replace(picture, args.picture)
    print(summarise(study, args.trials, command))
    return 0


if __name__ == "__main__":
    run(main)
