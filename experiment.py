"""What a training run does around the loop: flags, splits, checkpoint, report.

Shapes: M mel bins, T frames, N clips.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from common import (
    SCHEDULES,
    TEMPERATURES,
    Diverged,
    Interrupted,
    Members,
    SpectrogramDataset,
    SpectrogramModel,
    fit_temperature,
    save_weights,
)
from members import ASIDE, Build, Unit, count_jobs, plan_units, train_all
from speech import familiarity, report
from speech.audio import DATASET_FORMAT, SOUND
from speech.cli import (
    RANK,
    InputError,
    Parser,
    at_least,
    check_format,
    check_regular,
    check_writable,
    deferred_signals,
    locked,
    optional,
    print0,
    read_file,
    show_controls,
    write_atomically,
    write_json,
)
from speech.dataset import Clips, check_clips, read_labels, split_clips, split_folds
from speech.device import joined_processes, pick_device, wait_for_first
from speech.metadata import (
    MOST_MEMBERS,
    DataSummary,
    hash_participant,
    is_argument,
    make_metadata,
    makes_shape,
    versions,
)

import numpy as np
import pandas as pd
from scipy.special import expit

FITTED_CLIPS = 20_000  # baseline and familiarity are fitted on at most so many: memory stays flat
FOLD_TEMPERATURES = (0.5, 5.0)  # bounds: nearly everybody decides, and may say: more certain
PATIENCE = 8  # epochs; no validation split with --folds: every fold is short of people

# --- flags --------------------------------------------------------------------------------------

# What tune.py may search of the flags below; a model's own stand in its script. A list is of
# choices, a pair a range, searched by its logarithm if it spans more than two decades.
SEARCH = {
    "lr": (1e-5, 1e-2),
    "batch_size": [8, 16, 32, 64],
    "weight_decay": (1e-4, 0.3),
    "augment": (0.0, 2.0),
}
# Flags that decide where a run reads, computes and writes, not what comes out of it.
RUN_FLAGS = {"spectrograms", "labels", "weights", "device", "workers", "jobs", "resume"}


def fold_count(text: str) -> int | str:
    return text if text in ("people", "given") else at_least(2)(text)


def training_parser(
    name: str,
    doc: str,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    centralise: bool,
    members: int = 1,
) -> argparse.ArgumentParser:
    """The flags that training scripts share; a script gives those defaults that are its model's."""
    count, rate, switch = at_least(0), at_least(0, float), argparse.BooleanOptionalAction
    parser = Parser(description=doc.splitlines()[0])
    parser.set_defaults(model=name)

    add = parser.add_argument_group("data").add_argument
    folder, labels = "a .npy per clip (default: Spectrograms)", "id,label (default: dataset.csv)"
    add("--spectrograms", metavar="FOLDER", default=argparse.SUPPRESS, help=folder)
    add("--labels", metavar="CSV", default=argparse.SUPPRESS, help=labels)
    split = "what no two sides share; clip is the notebooks' protocol, and optimistic"
    add("--split", choices=("participant", "clip"), default="participant", help=split)
    folds = "cross-validate: in K folds, 'people' leaves one out at a time, 'given' takes the "
    folds += "column fold; writes a report, no weights"
    add("--folds", metavar="K", type=fold_count, help=folds)

    add = parser.add_argument_group("training").add_argument
    add("--epochs", metavar="N", type=at_least(1), default=epochs, help="passes over the clips")
    add("--batch-size", metavar="CLIPS", type=at_least(1), default=batch_size, help="per step")
    add("--lr", metavar="RATE", type=rate, default=lr, help="learning rate, at its peak")
    add("--schedule", choices=SCHEDULES, default="onecycle", help="of the learning rate")
    decay = "AdamW's; 0 is Adam"
    add("--weight-decay", metavar="RATE", type=rate, default=weight_decay, help=decay)
    mean = "take from each unit's gradient its mean over the inputs (Yong et al. 2020)"
    add("--centralise", action=switch, default=centralise, help=mean)
    patience = "stop after N epochs without a better validation loss; 0: no validation split, "
    patience += f"the last epoch is kept (default: {PATIENCE}, but 0 with --folds)"
    add("--patience", metavar="N", type=count, default=argparse.SUPPRESS, help=patience)
    masks = "mix, rotate, repeat and mask clips; 1 is masks of up to 20 bins and frames"
    add("--augment", metavar="STRENGTH", type=rate, nargs="?", const=1.0, default=1.0, help=masks)
    add("--no-augment", dest="augment", action="store_const", const=0.0, default=argparse.SUPPRESS)
    add("--balance", action=switch, default=True, help="weight the classes")
    networks = "networks to train, apart, that answer as one by their mean logit"
    several = at_least(1, below=MOST_MEMBERS + 1)
    add("--members", metavar="N", type=several, default=members, help=networks)
    add(
        "--seed",
        metavar="N",
        type=at_least(0, below=2**31),
        default=42,
        help="of split, weights and batches",
    )

    add = parser.add_argument_group("run").add_argument
    weights = f"weights/{name}.safetensors"
    add("--weights", metavar="FILE", default=weights, help="to be written; or its folder")
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, mps")
    precision = "auto is bf16 where the processor has it"
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=precision)
    add("--workers", metavar="N", type=count, default=0, help="processes that read clips")
    jobs = "processes that train folds and members side by side, on one core each; nothing but "
    jobs += "the time depends on it (default: as many as cores and memory allow, 1 on a GPU)"
    add("--jobs", metavar="N", type=at_least(1), help=jobs)
    threads = "of each network's training; another number changes the last digits (default: what "
    threads += "is quickest just now, 1 for several networks and for the LSTM)"
    add("--threads", metavar="N", type=at_least(1), help=threads)
    add("--resume", action="store_true", help="go on from an interrupted run's checkpoint")
    return parser


def parse_training(
    parser: argparse.ArgumentParser, words: list[str] | None = None
) -> argparse.Namespace:
    """The flags; those whose default depends on others are filled in."""
    args = parser.parse_args(words)
    if "patience" not in args:
        args.patience = 0 if args.folds else PATIENCE
    if args.weights.endswith("/") or Path(args.weights).is_dir():
        args.weights = str(Path(args.weights, f"{args.model}.safetensors"))
    if Path(args.weights).suffix != ".safetensors":  # the report's files have the same stem
        expected = "expected a name that ends in .safetensors, or a folder"
        raise InputError(f"--weights {args.weights}: {expected}")
    return args


def result_flags(args: argparse.Namespace) -> dict:
    """The flags that the result depends on."""
    return {name: value for name, value in vars(args).items() if name not in RUN_FLAGS}


# --- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """The clips to train on, and what is known of them."""

    clips: Clips
    labels: Path
    sha256: str  # of the labels file
    name: str | None
    synthetic: bool
    sound: dict | None  # how recordings became clips; None is not known


def find_data(args: argparse.Namespace) -> tuple[Path, Path]:
    """The folder of clips and the table of labels: given, here, or made of synthetic voices."""
    given = {"spectrograms", "labels"} & set(vars(args))
    if not (given or Path("Spectrograms").exists() or Path("dataset.csv").exists()):
        import synthetic

        print0("No Spectrograms/ and no dataset.csv here: USING SYNTHETIC VOICES, from synthetic/")
        wait_for_first(lambda: synthetic.make_dataset("synthetic"))
        return Path("synthetic/Spectrograms"), Path("synthetic/dataset.csv")
    folder = Path(vars(args).get("spectrograms", "Spectrograms"))
    if not folder.is_dir():
        raise InputError(f"--spectrograms {folder}: no such folder (of a .npy file per clip)")
    sound = [path for path in folder.iterdir() if re.search(rf"(?i){SOUND}$", path.name)]
    if sound and not any(folder.glob("*.npy")):
        found = f"no .npy there, but recordings such as {sound[0].name}"
        raise InputError(f"--spectrograms {folder}: {found}: prepare.py makes clips of them")
    return folder, Path(vars(args).get("labels", "dataset.csv"))


def read_dataset_json(folder: Path, labels: Path, shape: tuple[int, int]) -> dict:
    """What prepare.py or synthetic.py noted of the clips, beside their folder or their labels."""
    places = [folder.parent / "dataset.json", labels.with_name("dataset.json")]
    path = next((path for path in places if path.exists()), places[-1])
    try:
        known = json.loads(read_file(path).decode("utf-8-sig")) if path.exists() else {}
        check_format(known, DATASET_FORMAT)
        name, sound = known.get("corpus"), known.get("settings")
        if not makes_shape(sound, shape):
            print0(f"{path} is not about clips of {shape}: how their sound was read is not known")
            sound = None
        synthetic = bool(known.get("synthetic"))
        name = name and show_controls(str(name))  # a folder's, which need not be text
        return {"name": name, "synthetic": synthetic, "sound": sound}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # the file may have been edited
        reason = f"damaged ({str(error)[:200]}); remove it, or make the dataset again"
        raise InputError(f"{path}: {reason}") from error


def load_dataset(args: argparse.Namespace) -> Corpus:
    """Reads and checks what --spectrograms and --labels name.

    With neither given nor there, the synthetic dataset is made, once, with a message.
    """
    folder, labels = find_data(args)
    frame, notes = read_labels(labels, ask_who=args.split == "participant")
    clips = check_clips(frame, folder)
    for note in notes + clips.notes:
        print0(f"note: {note}")
    known = read_dataset_json(folder, labels, clips.shape)
    return Corpus(clips=clips, labels=labels, sha256=frame.attrs["sha256"], **known)


def plan_splits(args: argparse.Namespace, frame: pd.DataFrame) -> list[dict]:
    """The splits to train on: one, or one per fold."""
    validate = args.patience > 0
    if not args.folds:
        return [split_clips(frame, args.split, args.seed, validate=validate)]
    people, clips = frame["participant"].nunique(), len(frame)
    folds = people if args.folds == "people" else args.folds
    if folds == "given":
        check_given_folds(frame)
    elif folds > people and args.split == "participant":  # scikit-learn would leave folds empty
        raise InputError(f"--folds {folds}: only {people} participants: try --folds {people}")
    frame = frame.drop(columns="split", errors="ignore")  # every person is tested once
    try:
        held = [test for _, test in split_folds(frame, folds, args.split, args.seed)]
    except ValueError as error:
        found = f"{people} participants with {clips} clips are too few ({error})"
        raise InputError(f"--folds {args.folds}: {found}; try fewer") from error
    return [split_clips(frame, args.split, args.seed, test, validate=validate) for test in held]


def check_given_folds(frame: pd.DataFrame) -> None:
    if "fold" not in frame:
        raise InputError("--folds given: the labels have no column fold")
    folds = frame.groupby("participant")["fold"].nunique()
    if len(several := folds[folds > 1]):
        raise InputError(f"--folds given: {len(several)} participants are in more than one fold")
    if frame["fold"].nunique() < 2:
        raise InputError("--folds given: the column fold names one fold, expected at least 2")


def has_official_test(frame: pd.DataFrame) -> bool:
    """Whether a column split says which clips are tested."""
    return "split" in frame and bool(frame["split"].isin(["val", "test"]).any())


def summarize_data(args: argparse.Namespace, corpus: Corpus, splits: list[dict]) -> DataSummary:
    frame = corpus.clips.frame
    sides = {name: frame.iloc[positions] for name, positions in splits[0].items()}
    people = {name: set(side["participant"]) for name, side in sides.items()}
    by = "given" if args.folds == "given" else args.split
    return DataSummary(
        corpus=corpus.name,
        synthetic=corpus.synthetic,
        sha256=corpus.sha256,
        content=corpus.clips.content,
        split="official" if not args.folds and has_official_test(frame) else by,
        folds=len(splits) if args.folds else None,
        total={"clips": len(frame), "participants": frame["participant"].nunique()},
        clips={name: len(side) for name, side in sides.items()},
        participants={name: len(side) for name, side in people.items()},
        on_both_sides={
            f"{a} and {b}": len(people[a] & people[b])
            for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
            if people[a] & people[b]
        },
        seen=sorted(map(hash_participant, people["train"] | people["val"])),
    )


def announce(data: DataSummary, shape: tuple[int, int]) -> None:
    total, people = data.total, data.participants
    print0(f"{total['clips']} clips of {total['participants']} participants, each {shape}")
    if data.folds:
        print0(f"{data.folds} folds, split by {data.split}")
    else:
        sides = [f"{name} {n} ({people[name]})" for name, n in data.clips.items()]
        print0(f"split by {data.split}, clips (participants): {', '.join(sides)}")
    for sides, n in data.on_both_sides.items():
        print0(f"{n} participants are in {sides} BOTH: the score is optimistic, people overlap")


# --- one split ----------------------------------------------------------------------------------


def read_some(dataset: SpectrogramDataset, positions: np.ndarray) -> Iterator[np.ndarray]:
    """The clips (M, T) at these positions, one by one: memory stays flat."""
    return (dataset[position][0].numpy() for position in positions)


def baseline_probabilities(
    dataset: SpectrogramDataset, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """The linear baseline fitted on training clips -> (N,) for the test clips."""
    train_x, test_x = (
        np.stack([familiarity.clip_features(clip) for clip in read_some(dataset, positions)])
        for positions in (train, test)
    )
    baseline = report.fit_baseline(train_x, np.array(dataset.labels)[train])
    return baseline.predict_proba(test_x)[:, 1]


def draw_some(positions: np.ndarray, seed: int) -> np.ndarray:
    """At most FITTED_CLIPS of them, in ascending order."""
    if len(positions) <= FITTED_CLIPS:
        return positions
    return np.sort(np.random.default_rng(seed).choice(positions, FITTED_CLIPS, replace=False))


def mean_logits(units: list[Unit], side: str) -> np.ndarray:
    """The mean of a split's members, (N, C), for the clips of one side."""
    return np.mean([unit.checkpoint.result[side].numpy() for unit in units], axis=0)


def fit_temperatures(folds: list[list[Unit]], labels: np.ndarray) -> list[float]:
    """The temperature of each split, fitted on people that its networks were not trained on.

    These are its validation people. Without any, as --folds leaves nobody out of training for it,
    they are those of the other folds, asked by the networks that had not heard them: no person's
    own clips decide how sure anybody is of them.
    """
    temperatures = []
    for fold in folds:
        asked, bounds = [(fold, "val")], TEMPERATURES
        if not len(fold[0].split["val"]):
            asked += [(other, "test") for other in folds if other is not fold]
            bounds = FOLD_TEMPERATURES
        logits = np.concatenate([mean_logits(units, side) for units, side in asked])
        positions = np.concatenate([units[0].split[side] for units, side in asked])
        temperatures.append(fit_temperature(logits, labels[positions], bounds))
    return temperatures


def combine_members(
    units: list[Unit], temperature: float, participants: np.ndarray
) -> tuple[dict, familiarity.Familiarity | None]:
    """What the trained members of one split give together.

    Args:
        participants: (N,), of all clips.

    Returns:
        What the report needs; and what the clips of training and validation sound like.
    """
    dataset, split, seed = units[0].dataset, units[0].split, units[0].args.seed
    results = [unit.checkpoint.result for unit in units]
    logits = np.array([one["test"].numpy() for one in results], float) / temperature
    logits = logits[..., 1] - logits[..., 0]  # (members, N)
    train = draw_some(split["train"], seed)
    used = draw_some(np.union1d(split["train"], split["val"]), seed)
    known = familiarity.fit(read_some(dataset, used), participants[used])
    answered = [
        None if known is None else familiarity.is_answerable(known, clip)
        for clip in read_some(dataset, split["test"])
    ]
    result = {
        "trainings": [(one["history"], one["best_epoch"]) for one in results],
        "threads": results[0].get("threads"),  # unknown of what an earlier version trained
        "temperature": temperature,
        "logit": logits.mean(axis=0).tolist(),
        "spread": expit(logits).std(axis=0).tolist(),
        "linear": baseline_probabilities(dataset, train, split["test"]).tolist(),
        "answered": answered,
    }
    return result, known


# --- report -------------------------------------------------------------------------------------


def collect_predictions(frame: pd.DataFrame, splits: list[dict], results: list) -> pd.DataFrame:
    """The test clips of all splits, with what was predicted for them when they were held out."""
    columns = ("logit", "spread", "linear", "answered")
    parts = [
        frame.iloc[split["test"]].assign(fold=number, **{name: one.get(name) for name in columns})
        for number, (split, one) in enumerate(zip(splits, results, strict=True), 1)
    ]
    predictions = pd.concat(parts, ignore_index=True)
    return predictions.assign(probability=expit(predictions["logit"]))


def summarize_run(predictions: pd.DataFrame, folds: bool) -> dict:
    """The scores of the network and of the baseline; under --folds each clip's prediction too."""
    table = report.summarize_predictions(predictions)
    baseline = predictions.assign(probability=predictions["linear"])
    table["linear"] = report.summarize_predictions(baseline)
    if folds:
        table["folds"] = report.score_folds(predictions)
        rows = predictions.drop(columns=["linear", "probability", "split", "path"], errors="ignore")
        table["predictions"] = rows.astype(object).replace(np.nan, None).to_dict("list")
    return table


def write_report(
    args: argparse.Namespace,
    data: DataSummary,
    predictions: pd.DataFrame,
    table: dict,
    results: list[dict],
) -> None:
    """Prints the report, and writes it beside the weights as JSON and as a picture."""
    path, where = Path(args.weights), "out_of_fold" if args.folds else "test"
    title = f"{args.model.upper()}, {where.replace('_', ' ')}"
    if data.synthetic:
        title += ", SYNTHETIC VOICES: says nothing about people"
    print0("", *report.format_summary(title, table, table["linear"]).split("\n"), "")
    curves = [training for one in results for training in one["trainings"]]
    runs = {
        "history": [one["trainings"][0][0] for one in results],  # of the first member
        "best_epoch": [one["trainings"][0][1] for one in results],
        "temperature": [one["temperature"] for one in results],
        "threads": [one["threads"] for one in results],
    }
    if args.members > 1:
        runs["members"] = [one["trainings"] for one in results]
    if not args.folds:
        runs = {key: values[0] for key, values in runs.items()}
    content = {"format": report.REPORT_FORMAT, "arguments": result_flags(args)}
    content |= {"data": dataclasses.asdict(data), **runs, where: table, "versions": versions()}
    write_json(path.with_suffix(".json"), content)
    picture = path.with_suffix(".png")
    with optional(f"{picture}"), write_atomically(picture) as temporary:
        report.draw_report(temporary, curves, predictions, table, title)


# --- the run ------------------------------------------------------------------------------------


def save_model(
    args: argparse.Namespace,
    build: Build,
    corpus: Corpus,
    units: list[Unit],
    metadata: dict,
) -> None:
    """Writes the weights of a split's members."""
    models = []
    for unit in units:
        models.append(build(args, *corpus.clips.shape))
        models[-1].load_state_dict(unit.checkpoint.result["weights"])
    save_weights(args.weights, Members(models) if len(models) > 1 else models[0], metadata)


def write_results(
    args: argparse.Namespace,
    build: Build,
    arguments: dict,
    corpus: Corpus,
    data: DataSummary,
    units: list[Unit],
) -> None:
    """Scores what was trained, and writes weights and report; then no checkpoint is needed."""
    frame = corpus.clips.frame
    people = frame["participant"].to_numpy(str)
    folds = [units[k : k + args.members] for k in range(0, len(units), args.members)]
    temperatures = fit_temperatures(folds, np.array(units[0].dataset.labels))
    found = [
        combine_members(fold, temperature, people)
        for fold, temperature in zip(folds, temperatures, strict=True)
    ]
    results = [result for result, _ in found]
    predictions = collect_predictions(frame, [fold[0].split for fold in folds], results)
    table = summarize_run(predictions, bool(args.folds))
    if not args.folds:  # the weights come first: a failing picture must not lose them
        facts = results[0]["temperature"], corpus.sound, dataclasses.asdict(data), table
        metadata = make_metadata(args.model, arguments, *facts, members=args.members)
        metadata["familiarity"] = found[0][1]
        if not found[0][1]:
            print0("too few clips or people to recognise unfamiliar clips later")
        save_model(args, build, corpus, units, metadata)
    write_report(args, data, predictions, table, results)
    written = f"wrote {Path(args.weights).with_suffix('')}.json and .png"
    print0(f"{written}, no weights" if args.folds else f"{written}, {args.weights}")
    for unit in units:
        for ending in ("", ASIDE):
            Path(f"{unit.checkpoint.path}{ending}").unlink(missing_ok=True)


def run_training(args: argparse.Namespace, defaults: dict, build: Build) -> list[int]:
    """Reads, trains and writes -> the signals that came while it wrote."""
    device = pick_device(args.device)
    with joined_processes(device):
        corpus = load_dataset(args)
        clips = corpus.clips
        splits = plan_splits(args, clips.frame)
        data = summarize_data(args, corpus, splits)
        announce(data, clips.shape)
        arguments = check_model(build(args, *clips.shape), args.model)
        units = plan_units(args, result_flags(args), defaults, build, clips, splits, device)
        train_all(units, count_jobs(args, len(units), device))
        with deferred_signals() as signals:
            if RANK == 0:
                write_results(args, build, arguments, corpus, data, units)
        return signals


def check_model(model: SpectrogramModel, name: str) -> dict:
    """A model's arguments; InputError if a weights file could not name it, or cannot hold them."""
    if model.name != name:
        found = f"{type(model).__name__}'s is {model.name!r}, the parser's {name!r}"
        raise InputError(f"train_{name}.py: a model has one name: {found}")
    wrong = [name for name, value in model.arguments.items() if not is_argument(name, value)]
    if wrong:
        raise InputError(f"a weights file cannot hold this model's {', '.join(wrong)}")
    return model.arguments


def train(parser: argparse.ArgumentParser, build: Build) -> int:
    """What a training script does: read, split, train, score once, write.

    Args:
        build: makes a new model for (args, n_mels, n_frames).
    """
    args, defaults = parse_training(parser), vars(parser.parse_args([]))
    if Path(args.weights).stem == "dataset":
        raise InputError("--weights: its report would be dataset.json, which describes a dataset")
    check_writable(args.weights)
    for ending in (".json", ".png"):
        check_regular(Path(args.weights).with_suffix(ending))
    try:
        with locked(args.weights) if RANK == 0 else nullcontext():
            signals = run_training(args, defaults, build)
    except Diverged as error:
        raise InputError(f"{error}: nothing is saved; a lower --lr helps") from error
    except Interrupted as error:
        print0("", "Stopped, nothing is lost: the same command with --resume goes on from here.")
        return 128 + error.args[0]
    if signals:
        print0("Stopped after the last epoch: everything is written, nothing is left to do.")
    return 128 + signals[0] if signals else 0
