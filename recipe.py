"""What train_cnn.py and train_lstm.py do: their flags, splits, checkpoint and report.

Shapes: M mel bins, T frames, N clips.
"""

import argparse
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

import report
from common import (
    CLASS_NAMES,
    MODELS,
    RANK,
    SCHEDULES,
    WORLD,
    Diverged,
    Interrupted,
    SpectrogramDataset,
    Training,
    fingerprint,
    fit_temperature,
    makes_shape,
    pick_device,
    save_weights,
    say,
    versions,
)
from dataset import (
    InputError,
    Parser,
    at_least,
    check_clips,
    check_writable,
    read_labels,
    split_clips,
    split_folds,
    write_atomically,
)

LINEAR_CLIPS = 20_000  # the yardstick is fitted on at most so many: memory stays flat
PATIENCE = 8  # epochs; under --folds nobody is spared for validation: every fold is short of people


# --- flags --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What a training script decides."""

    name: str  # the model's in MODELS; weights/{name}.safetensors
    defaults: dict  # of the shared flags
    add_arguments: Callable  # (argument group) -> None: the model's own flags
    arguments: tuple  # which flags go to the model's constructor

    def parser(self) -> argparse.ArgumentParser:
        parser = Parser(
            description=f"Trains the {self.name.upper()} and writes its weights and report.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        add_arguments(parser, self.name)
        self.add_arguments(parser.add_argument_group("model").add_argument)
        parser.set_defaults(**self.defaults)
        return parser

    def parse(self, words=None) -> argparse.Namespace:
        args = self.parser().parse_args(words)
        if "patience" not in args:
            args.patience = 0 if args.folds else PATIENCE
        return args

    def build(self, args, shape: tuple[int, int]) -> tuple[nn.Module, dict]:
        """A new model, seeded, and its constructor's arguments."""
        arguments = dict(zip(("n_mels", "n_frames"), shape, strict=True))
        arguments |= {name: getattr(args, name) for name in self.arguments}
        torch.manual_seed(args.seed)
        return MODELS[self.name](**arguments), arguments


def _fold_count(text: str) -> int | str:
    return text if text == "people" else at_least(2)(text)


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """The flags that the training scripts share."""
    count, rate = at_least(0), at_least(0, float)
    add = parser.add_argument_group("data").add_argument
    folder, labels = "a .npy per clip (default: Spectrograms)", "id,label (default: dataset.csv)"
    add("--spectrograms", metavar="FOLDER", default=argparse.SUPPRESS, help=folder)
    add("--labels", metavar="CSV", default=argparse.SUPPRESS, help=labels)
    split = "what no two sides share; clip is the notebooks' protocol, and flatters"
    add("--split", choices=("participant", "clip"), default="participant", help=split)
    folds = "cross-validate in K folds, or 'people' to leave one out at a time: report, no weights"
    add("--folds", metavar="K", type=_fold_count, help=folds)
    add = parser.add_argument_group("training").add_argument
    add("--epochs", metavar="N", type=at_least(1), help="times that each clip is learnt")
    add("--batch-size", metavar="CLIPS", type=at_least(1), help="clips per step")
    add("--lr", metavar="RATE", type=rate, help="learning rate, at its peak")
    add("--schedule", choices=SCHEDULES, default="onecycle", help="of the learning rate")
    add("--weight-decay", metavar="RATE", type=rate, help="AdamW's; 0 is Adam")
    centralise = "take from each unit's gradient its mean over the inputs (Yong et al. 2020)"
    add("--centralise", action=argparse.BooleanOptionalAction, default=False, help=centralise)
    patience = (
        "stop after N epochs without a better validation loss; 0 holds nobody out for it and "
    )
    patience += f"keeps the last epoch (default: {PATIENCE}, but 0 with --folds)"
    add("--patience", metavar="N", type=count, default=argparse.SUPPRESS, help=patience)
    masks = "turn and mask clips; 1 is masks of up to 20 bins and frames"
    add("--augment", metavar="STRENGTH", type=rate, nargs="?", const=1.0, default=1.0, help=masks)
    add("--no-augment", dest="augment", action="store_const", const=0.0, default=argparse.SUPPRESS)
    add("--balance", action=argparse.BooleanOptionalAction, default=True, help="weight the classes")
    add("--seed", metavar="N", type=count, default=42, help="of split, weights and batches")
    add = parser.add_argument_group("run").add_argument
    add("--weights", metavar="FILE", default=f"weights/{name}.safetensors", help="to be written")
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, mps")
    precision = "auto is bf16 where the processor has it"
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=precision)
    add("--workers", metavar="N", type=count, default=0, help="processes that read clips")
    add("--resume", action="store_true", help="go on from an interrupted run's checkpoint")


def _arguments(args) -> dict:
    """The arguments that the result depends on, not where it is computed or written."""
    left_out = ("spectrograms", "labels", "weights", "device", "workers", "resume")
    return {name: value for name, value in vars(args).items() if name not in left_out}


# --- clips and splits ---------------------------------------------------------------------------


def _use_synthetic_voices(args) -> None:
    import synthetic

    say("No Spectrograms/ and no dataset.csv here: USING SYNTHETIC VOICES, from synthetic/")
    if RANK == 0:
        synthetic.make_dataset("synthetic")
    if WORLD > 1:
        torch.distributed.barrier()
    args.spectrograms, args.labels = "synthetic/Spectrograms", "synthetic/dataset.csv"


def _read_about(labels: Path, shape: tuple[int, int]) -> dict:
    """What prepare.py or synthetic.py noted of the clips beside their labels, if it is there."""
    path = labels.with_name("dataset.json")
    try:
        known = json.loads(path.read_text(encoding="utf-8-sig")) if path.exists() else {}
        corpus, sound = known.get("corpus"), known.get("settings")
        about = {"corpus": corpus and str(corpus), "synthetic": bool(known.get("synthetic"))}
        if not makes_shape(sound, shape):
            say(f"{path} is not about clips of {shape}: how their sound was read is not known")
            sound = None
        return about | {"sound": sound}
    except Exception as error:  # of what another hand may have written
        reason = f"damaged ({str(error)[:200]}); remove it, or make the dataset again"
        raise InputError(f"{path}: {reason}") from error


def load_dataset(args) -> tuple[pd.DataFrame, dict]:
    """Reads and checks what --spectrograms and --labels name -> (a row per clip, about the data).

    With neither given nor there, the synthetic dataset is made, once, and that is said.
    """
    given = {"spectrograms", "labels"} & set(vars(args))
    if not (given or Path("Spectrograms").exists() or Path("dataset.csv").exists()):
        _use_synthetic_voices(args)
    folder = args.spectrograms = Path(vars(args).get("spectrograms", "Spectrograms"))
    labels = Path(vars(args).get("labels", "dataset.csv"))
    if not folder.is_dir():
        raise InputError(f"--spectrograms {folder}: no such folder (of a .npy file per clip)")
    frame = read_labels(labels)
    sha256 = hashlib.sha256(labels.read_bytes()).hexdigest()
    shape = check_clips(frame, folder)
    return frame, _read_about(labels, shape) | {"shape": shape, "sha256": sha256}


def _plan(args, frame: pd.DataFrame) -> list[dict]:
    """The splits to train on: one, or one per fold."""
    if not args.folds:
        return [split_clips(frame, args.split, args.seed, validate=args.patience > 0)]
    people = frame["participant"].nunique()
    folds = people if args.folds == "people" else args.folds
    units = people if args.split == "participant" else len(frame)
    if folds > units:
        raise InputError(
            f"--folds {folds}: only {units} participants; pass at most --folds {units}"
        )
    frame = frame.drop(columns="split", errors="ignore")  # every person is tested once
    return [
        split_clips(frame, args.split, args.seed, test, validate=args.patience > 0)
        for _, test in split_folds(frame, folds, args.split, args.seed)
    ]


def _describe(args, frame: pd.DataFrame, splits: list[dict]) -> dict:
    """How the data is split, for the terminal, the report and the weights."""
    sides = {name: frame.iloc[positions] for name, positions in splits[0].items()}
    people = {name: set(side["participant"]) for name, side in sides.items()}
    return {
        "split": "official" if "split" in frame and not args.folds else args.split,
        "folds": len(splits) if args.folds else None,
        "total": {"clips": len(frame), "participants": frame["participant"].nunique()},
        "clips": {name: len(side) for name, side in sides.items()},
        "participants": {name: len(side) for name, side in people.items()},
        "on_both_sides": len(people["test"] & (people["train"] | people["val"])),
    }


def _announce(args, data: dict) -> None:
    total, split, people = data["total"], data["split"], data["participants"]
    say(f"{total['clips']} clips of {total['participants']} participants, each {data['shape']}")
    if args.folds:
        say(f"{data['folds']} folds by {split}")
    else:
        sides = [f"{name} {n} ({people[name]})" for name, n in data["clips"].items()]
        say(f"split by {split}, clips (participants): {', '.join(sides)}")
    if both := data["on_both_sides"]:
        say(f"{both} participants stand on BOTH sides of the split: the score will flatter")


# --- checkpoint ---------------------------------------------------------------------------------


class Checkpoint:
    """What an interrupted run goes on from: finished folds, and the state of the current one."""

    def __init__(self, args, data: dict):
        self.path = Path(args.weights).with_suffix(".checkpoint")
        self.run = {"arguments": _arguments(args), "sha256": data["sha256"]}
        self.results, self.state = [], None
        if args.resume:
            self._load()
        elif self.path.exists():
            say(f"{self.path} of an interrupted run is not used: --resume would go on from it")

    def _load(self) -> None:
        if not self.path.exists():
            return say(f"no {self.path} to go on from: starting from the beginning")
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            run, self.results, self.state = saved["run"], list(saved["results"]), saved["state"]
            was, sha256 = dict(run["arguments"]), run["sha256"]
        except Exception as error:  # torch.load has many ways to say that a file is damaged
            raise InputError(f"{self.path}: damaged; remove it to start anew") from error
        differing = [
            f"{name} was {was.get(name)!r}, is {value!r}"
            for name, value in self.run["arguments"].items()
            if was.get(name) != value
        ]
        if sha256 != self.run["sha256"]:
            differing.append("the labels file has changed")
        if differing:
            raise InputError(f"{self.path}: of another run: {'; '.join(differing)}")
        say(f"going on from {self.path}")

    def save(self, state: dict | None) -> None:
        if RANK == 0:
            content = {"run": self.run, "results": self.results, "state": state}
            with write_atomically(self.path) as temporary:
                torch.save(content, temporary)

    def finish_fold(self, result: dict) -> None:
        self.results.append(result)
        self.state = None
        self.save(None)


# --- one split ----------------------------------------------------------------------------------


def _linear_probabilities(dataset: SpectrogramDataset, split: dict, seed: int) -> np.ndarray:
    """The yardstick fitted on the same training people -> (N,) for the test clips."""
    rng = np.random.default_rng(seed)
    train = split["train"]
    if len(train) > LINEAR_CLIPS:
        train = np.sort(rng.choice(train, LINEAR_CLIPS, replace=False))

    def features(positions):
        return np.stack([report.linear_features(dataset[i][0].numpy()) for i in positions])

    linear = report.fit_linear(features(train), np.array(dataset.labels)[train])
    return linear.predict_proba(features(split["test"]))[:, 1]


def _train_split(model: nn.Module, dataset, split: dict, args, device, checkpoint) -> dict:
    """Trains `model` on one split and scores the test clips, once."""
    training = Training(model, dataset, split, args, device)
    if checkpoint.state:
        training.load_state(checkpoint.state)
    training.fit(checkpoint.save)
    temperature = fit_temperature(training.predict("val"), training.labels[split["val"]])
    logits = training.predict("test") / temperature
    return {
        "history": training.history,
        "best_epoch": training.best["epoch"],
        "temperature": temperature,
        "logit": (logits[:, 1] - logits[:, 0]).tolist(),
        "linear": _linear_probabilities(dataset, split, args.seed).tolist(),
    }


# --- report -------------------------------------------------------------------------------------


def _predictions(frame: pd.DataFrame, splits: list[dict], results: list[dict]) -> pd.DataFrame:
    """The test clips of all splits, with what was predicted for them when they were held out."""
    parts = [
        frame.iloc[split["test"]].assign(fold=number, logit=one["logit"], linear=one["linear"])
        for number, (split, one) in enumerate(zip(splits, results, strict=True), 1)
    ]
    predictions = pd.concat(parts, ignore_index=True)
    return predictions.assign(probability=1 / (1 + np.exp(-predictions["logit"])))


def _report(recipe: Recipe, args, data: dict, predictions: pd.DataFrame, results: list) -> dict:
    """Prints the report, and writes it beside the weights as JSON and as a picture."""
    path, where = Path(args.weights), "out_of_fold" if args.folds else "test"
    summary = report.summarise(predictions)
    linear = report.summarise(predictions.assign(probability=predictions["linear"]))
    runs = {key: [one[key] for one in results] for key in ("history", "best_epoch", "temperature")}
    if args.folds:
        columns = ["label", "probability", "participant"]
        by_fold = [
            report.score(*rows[columns].to_numpy().T, resamples=1)
            for _, rows in predictions.groupby("fold")
        ]
        summary["folds"] = report.across_folds(by_fold)
    else:
        runs = {key: values[0] for key, values in runs.items()}
    title = f"{recipe.name.upper()}, {where.replace('_', ' ')}"
    if data["synthetic"]:
        title += ", SYNTHETIC VOICES: says nothing about people"
    say(f"\n{report.format_summary(title, summary, linear)}\n")
    table = summary | {"linear": linear}
    if args.folds:
        rows = predictions.drop(columns=["linear", "probability", "split"], errors="ignore")
        table["predictions"] = rows.astype(object).replace(np.nan, None).to_dict("list")
    content = {"arguments": _arguments(args), "data": data, **runs, where: table}
    with write_atomically(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(content | {"versions": versions()}, indent=1))
    with write_atomically(path.with_suffix(".png")) as temporary:
        report.plot(
            temporary, runs["history"], predictions, summary, runs["best_epoch"], title=title
        )
    return summary


def _metadata(recipe: Recipe, model_arguments: dict, data: dict, result: dict, test: dict) -> dict:
    """What a weights file says about itself."""
    return {
        "model": recipe.name,
        "arguments": model_arguments,
        "shape": data["shape"],
        "preprocessing": {"normalisation": "min-max per clip", "sound": data["sound"]},
        "class_names": CLASS_NAMES,
        "temperature": result["temperature"],
        "data": {key: value for key, value in data.items() if key not in ("shape", "sound")},
        "test": {level: test[level] for level in ("clips", "participants")},
        "versions": versions(),
    }


# --- the run ------------------------------------------------------------------------------------


def _lost_peer(error: RuntimeError) -> bool:
    """Whether another process of torchrun's has gone; gloo says so in a plain RuntimeError."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


@contextmanager
def _processes(args) -> Iterator[torch.device]:
    """Yields the device; joins the other processes of torchrun, if there are any."""
    device = pick_device(args.device)
    try:
        if WORLD > 1:
            # Of a convolution with one input channel, whose strides can be told in two ways.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield device
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{device} ran out of memory: lower --batch-size ({args.batch_size})"
        ) from error
    except RuntimeError as error:
        if not _lost_peer(error):
            raise
        raise InputError("another process of this run has ended: go on with --resume") from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _train(recipe: Recipe, args, device: torch.device) -> None:
    frame, data = load_dataset(args)
    splits = _plan(args, frame)
    data |= _describe(args, frame, splits)
    _announce(args, data)
    dataset = SpectrogramDataset(frame, args.spectrograms)
    checkpoint = Checkpoint(args, data)
    while (done := len(checkpoint.results)) < len(splits):
        if args.folds:
            say(f"fold {done + 1}/{len(splits)}")
        model, arguments = recipe.build(args, data["shape"])
        result = _train_split(model, dataset, splits[done], args, device, checkpoint)
        checkpoint.finish_fold(result) if args.folds else checkpoint.results.append(result)
    if RANK > 0:
        return
    predictions = _predictions(frame, splits, checkpoint.results)
    summary = _report(recipe, args, data, predictions, checkpoint.results)
    if not args.folds:
        seen = frame["participant"].drop(splits[0]["test"])
        data["seen"] = sorted({fingerprint(participant) for participant in seen})
        metadata = _metadata(recipe, arguments, data, checkpoint.results[0], summary)
        save_weights(args.weights, model, metadata)
    written = Path(args.weights).with_suffix("")
    say(f"wrote {written}.json and .png" + (", no weights" if args.folds else f", {args.weights}"))
    checkpoint.path.unlink(missing_ok=True)


def train(recipe: Recipe) -> int:
    """What train_cnn.py and train_lstm.py do: read, split, train, score once, write."""
    args = recipe.parse()
    check_writable(args.weights)
    try:
        with _processes(args) as device:
            _train(recipe, args, device)
    except Diverged as error:
        raise InputError(f"{error}: nothing is saved; a lower --lr helps") from error
    except Interrupted as error:
        signum = error.args[0]
        say("\nStopped, nothing is lost: the same command with --resume goes on from here.")
        return 128 + signum
    return 0
