"""The trainings of a run: the members of every fold, side by side, each with its checkpoint.

Shapes: M mel bins, T frames, C classes, N clips.
"""

import argparse
import dataclasses
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from multiprocessing import active_children
from pathlib import Path

from common import Interrupted, SpectrogramDataset, SpectrogramModel, Training, format_epoch
from speech.cli import (
    RANK,
    WORLD,
    InputError,
    check_format,
    count_cores,
    deferred_signals,
    map_processes,
    print0,
    read_file,
    write_atomically,
)
from speech.dataset import Clips

import torch
from tqdm import tqdm

# 1 had no number, and did not know the clips' content; 2 held all folds of a run.
CHECKPOINT_FORMAT = 3
ASIDE = ".old"  # ends the name of what another run left, until this one has ended
JOB_BYTES = 2 * 2**30  # a process that trains the CNN takes 1.8 GiB; the LSTM's .5
# What runs did before a flag came whose default changes what they do.
BEFORE = {"members": 1, "rotations": 1}

Build = Callable[[argparse.Namespace, int, int], SpectrogramModel]

# --- checkpoints --------------------------------------------------------------------------------


def differing_flags(args: dict, earlier: dict, defaults: dict) -> list[str]:
    """How an earlier run's flags differ; one that it did not know yet counts as its default."""
    earlier = defaults | BEFORE | earlier
    known = {name: earlier.get(name) for name in args}
    return [
        f"{name} was {known[name]!r}, is {value!r}"
        for name, value in args.items()
        if known[name] != value
    ]


class Checkpoint:
    """What an interrupted training goes on from: its state, or its result if it had ended."""

    def __init__(self, path: Path, flags: dict, defaults: dict, content: str):
        self.path, self.run = path, {"arguments": flags, "content": content}
        self.defaults = defaults  # an earlier version may not have known some flags
        self.result = self.state = None

    def load(self) -> None:
        """Reads what is there; InputError if it is damaged, or another run's."""
        if not self.path.exists():
            return
        try:
            saved = torch.load(BytesIO(read_file(self.path)), map_location="cpu", weights_only=True)
            check_format(saved, CHECKPOINT_FORMAT)
            run, self.result, self.state = saved["run"], saved.get("result"), saved["state"]
            differing = differing_flags(self.run["arguments"], run["arguments"], self.defaults)
            content = run.get("content")
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        except Exception as error:  # torch.load has many ways to report a damaged file
            raise InputError(f"{self.path}: damaged; remove it to start anew") from error
        if content not in (None, self.run["content"]):
            differing.append("the clips or labels have changed")
        if differing:
            raise InputError(f"{self.path}: of another run: {'; '.join(differing)}")

    def save(self, state: dict | None, result: dict | None = None) -> None:
        self.state, self.result = state, result
        if RANK == 0:
            content = {"run": self.run, "result": result, "state": state}
            with write_atomically(self.path) as temporary:
                torch.save(content | {"format": CHECKPOINT_FORMAT}, temporary)


def open_checkpoints(
    args: argparse.Namespace,
    flags: dict,
    defaults: dict,
    content: str,
    units: list[tuple[int, int]],
) -> list[Checkpoint]:
    """The checkpoint of every training of a run, with what an interrupted one left if asked for."""
    paths = [Path(args.weights).with_suffix(".checkpoint")]
    if len(units) > 1:
        paths = [
            paths[0].with_suffix(f".{fold + 1}.{member + 1}.checkpoint") for fold, member in units
        ]
    checkpoints = [Checkpoint(path, flags, defaults, content) for path in paths]
    found = [path for path in paths if path.exists()]
    if not args.resume:
        if found:
            aside = f"{found[0]} of an interrupted run is now {found[0].name}{ASIDE}"
            print0(f"{aside}: --resume would have gone on from it")
        # All of them: a later --resume must not find some of this run and some of another.
        for path in found if RANK == 0 else ():
            path.replace(f"{path}{ASIDE}")
        return checkpoints
    for checkpoint in checkpoints:
        checkpoint.load()
    ended = sum(checkpoint.result is not None for checkpoint in checkpoints)
    if not found:
        print0(f"no {paths[0]} to go on from: starting from the beginning")
    elif len(units) == 1:
        print0(f"going on from {found[0]}")
    else:
        print0(f"going on from {found[0]} and others: {ended} of {len(units)} trainings had ended")
    return checkpoints


# --- what is to be trained ----------------------------------------------------------------------


@dataclass
class Unit:
    """One training of a run: a member of a fold. It can be sent to another process."""

    name: str  # such as "fold 2/6, member 1/5"; "" if it is the only one
    args: argparse.Namespace
    build: Build
    dataset: SpectrogramDataset
    shape: tuple[int, int]
    split: dict
    member: int
    device: torch.device
    threads: int | None  # None is as Training's
    checkpoint: Checkpoint


def plan_units(
    args: argparse.Namespace,
    flags: dict,
    defaults: dict,
    build: Build,
    clips: Clips,
    splits: list[dict],
    device: torch.device,
) -> list[Unit]:
    """All trainings of a run: each split's members, one after the other.

    Args:
        flags: those that the result depends on.
        defaults: of all flags.
    """
    dataset = SpectrogramDataset(clips.frame["path"], clips.frame["label"], clips.shape)
    pairs = list(product(range(len(splits)), range(args.members)))
    checkpoints = open_checkpoints(args, flags, defaults, clips.content, pairs)
    # On one thread each, however many --jobs there are: its number changes the last digits.
    threads = args.threads or (1 if len(pairs) > 1 else None)
    shared = {"threads": threads, "device": device}
    shared |= {"args": args, "build": build, "dataset": dataset, "shape": clips.shape}
    counts = {"fold": len(splits), "member": args.members}
    return [
        Unit(
            name=", ".join(
                f"{part} {number + 1}/{count}"
                for (part, count), number in zip(counts.items(), pair, strict=True)
                if count > 1
            ),
            split=splits[pair[0]],
            member=pair[1],
            checkpoint=checkpoint,
            **shared,
        )
        for pair, checkpoint in zip(pairs, checkpoints, strict=True)
    ]


# --- training -----------------------------------------------------------------------------------


def make_training(
    args: argparse.Namespace,
    model: SpectrogramModel,
    dataset: SpectrogramDataset,
    split: dict,
    device: torch.device,
) -> Training:
    """Every other field of Training is the flag of its name."""
    given = {"model": model, "dataset": dataset, "split": split, "device": device}
    names = [field.name for field in dataclasses.fields(Training) if field.name not in given]
    return Training(**given, **{name: getattr(args, name) for name in names})


def train_unit(unit: Unit) -> dict | None:
    """Trains one network to its end; its checkpoint then holds the result.

    Returns:
        The last epoch's record; None if an earlier run had ended this training.
    """
    if unit.checkpoint.result is not None:
        return None
    # No other run has these seeds: a run's own is below 2**31.
    seed = unit.args.seed + unit.member * 2**31
    args = argparse.Namespace(**vars(unit.args) | {"seed": seed, "threads": unit.threads})
    with deferred_signals() as signals:
        torch.manual_seed(seed)
        model = unit.build(args, *unit.shape)
        training = make_training(args, model, unit.dataset, unit.split, unit.device)
        if unit.checkpoint.state:
            training.load_state(unit.checkpoint.state)
        if not unit.name:
            print0(f"training on {training.threads} thread{'' if training.threads == 1 else 's'}")
        if signals:  # fit has its own
            raise Interrupted(signals[0])
        training.fit(unit.checkpoint.save)
        result = {
            "history": training.history,
            "best_epoch": training.best["epoch"],
            "threads": training.threads,
            # Folds are for scores: their weights would fill the memory.
            "weights": None if args.folds else training.best["weights"],
            "val": torch.from_numpy(training.predict("val")),
            "test": torch.from_numpy(training.predict("test")),
        }
        unit.checkpoint.save(None, result)
        if signals:
            raise Interrupted(signals[0])
        return training.history[-1]


ended: list[BaseException] = []  # in a process that trains beside others: what ended a training


def train_quietly(unit: Unit) -> dict | None:
    """As train_unit, where the lines of several processes would be mixed.

    Once a training was ended this process begins no other, though some wait in its queue.
    """
    if ended:
        raise Interrupted(signal.SIGTERM)
    try:
        with redirect_stdout(None):
            return train_unit(unit)
    except BaseException as error:
        ended.append(error)
        raise


def count_jobs(args: argparse.Namespace, units: int, device: torch.device) -> int:
    """Processes to train in: one on a GPU, which no fork may use, and under torchrun."""
    if WORLD > 1 or device.type != "cpu":
        return 1
    if args.jobs:
        return min(units, args.jobs)
    return max(1, min(units, count_cores() // (args.threads or 1), available_memory() // JOB_BYTES))


def available_memory() -> int:
    """Bytes that new processes may take; where the system does not say, as many as they like."""
    with suppress(OSError, AttributeError, TypeError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return int(found[1]) * 1024
    return sys.maxsize


def end_children(_number: int = 0) -> None:
    """Asks the processes that train to save and end.

    A terminal sends Ctrl-C to all of them anyway, `kill` only to the one that is named; and where
    they do not train, they ignore Ctrl-C.
    """
    for process in active_children():
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


def map_trainings(function: Callable, tasks: list, jobs: int) -> Iterator:
    """As map_processes; Interrupted after a signal, when every process has saved its state."""
    with deferred_signals(end_children) as received:
        try:
            yield from map_processes(function, tasks, jobs, on_error=end_children)
        except (InputError, Interrupted):  # the former if one had not begun to train
            if not received:
                raise
            raise Interrupted(received[0]) from None


def train_side_by_side(units: list[Unit], jobs: int) -> None:
    records = map_trainings(train_quietly, units, jobs)
    bar = tqdm(records, "training", len(units), unit="network", disable=None)
    for unit, record in zip(units, bar, strict=True):
        if record:
            with tqdm.external_write_mode():
                print0(f"{unit.name}  {format_epoch(record, unit.args.epochs)}")


def train_all(units: list[Unit], jobs: int) -> None:
    """Trains every unit; each one's checkpoint then has its result."""
    if jobs > 1:
        train_side_by_side(units, jobs)
        for unit in units:
            unit.checkpoint.load()
        return
    for unit in units:
        if unit.name:
            print0(unit.name)
        train_unit(unit)
