"""Which changes of a recipe help people never heard: candidates beside today's recipe.

    python benchmarks/recipes.py runs lstm ravdess12=FOLDER nemo5=FOLDER --only recipe gains

A FOLDER has Spectrograms/ and dataset.csv. Each candidate is trained on folds of people of every
corpus, with several seeds, and what the first seed trained is asked about the other corpora too.
Every training is a file in `runs`, and is not done again unless its recipe has changed: the same
command goes on where an earlier one ended. What came out is in docs/recipes.md.

Shapes: B batch, M mel bins, T frames, C classes, N clips.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import expit
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

import common
from common import AUGMENTATIONS, SpectrogramDataset, Training, list_models
from experiment import load_dataset, parse_training, plan_splits, result_flags
from members import make_training
from report import compare_pair
from speech.cli import InputError, Parser, at_least, map_processes, run, write_atomically
from speech.report import format_score, score_predictions

FEW = 6  # people: a corpus of so few leaves one out at a time, others are cut into 6 folds

# --- candidates ---------------------------------------------------------------------------------
# A candidate changes a Training before it begins. Augmentations are as common.AUGMENTATIONS.


def random_gains(x: torch.Tensor, strength: float, size: float, knots: int = 5) -> torch.Tensor:
    """FilterAugment (arXiv 2110.03282): gains that vary over the bins, as a microphone's do."""
    gains = (2 * torch.rand(len(x), 1, knots) - 1) * size * strength
    gains = F.interpolate(gains, x.shape[1], mode="linear", align_corners=True)
    return x + gains.transpose(1, 2).to(x.device)


def resample_time(x: torch.Tensor, strength: float, most: float = 1.25) -> torch.Tensor:
    """FrAUG (arXiv 2202.05912): slower and faster frames."""
    clips, mels, frames = x.shape
    speed = most ** (2 * torch.rand(clips, 1) - 1)
    place = torch.arange(frames) * speed % (frames - 1)  # (B, T)
    low = place.long()
    part = (place - low).unsqueeze(1).to(x.device)
    low = low.unsqueeze(1).expand(clips, mels, frames).to(x.device)
    return x.gather(2, low) * (1 - part) + x.gather(2, low + 1) * part


def shift_bins(x: torch.Tensor, strength: float, most: int = 4) -> torch.Tensor:
    """Moves a clip up or down by some bins: another vocal tract, another pitch."""
    clips, mels, frames = x.shape
    moved = torch.randint(-most, most + 1, (clips, 1, 1))
    place = (torch.arange(mels).view(1, -1, 1) + moved).clamp(0, mels - 1)
    return x.gather(1, place.expand(clips, mels, frames).to(x.device))


class Relaxed(torch.nn.Module):
    """Relaxed frequency-wise normalisation (arXiv 2206.12513), before a model's own first step."""

    def __init__(self, then: torch.nn.Module, relax: float = 0.6):
        super().__init__()
        self.then, self.relax = then, relax

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = (x - x.mean((1, 2), keepdim=True)) / (x.std((1, 2), keepdim=True) + 1e-3)
        bins = (x - x.mean(2, keepdim=True)) / (x.std(2, keepdim=True) + 1e-2)
        return self.then(self.relax * whole + (1 - self.relax) * bins)


def normalise(training: Training) -> None:
    training.model.emphasise = Relaxed(training.model.emphasise)


def average_weights(training: Training, decay: float = 0.95) -> None:
    """Keeps the exponential moving average of the weights instead of the last ones."""
    kept, step, validate = {}, training.step, training.validate

    def averaged_step(*batch) -> torch.Tensor:
        loss = step(*batch)
        for name, tensor in training.model.state_dict().items():
            old = kept.setdefault(name, tensor.clone())
            kept[name] = old.lerp(tensor, 1 - decay) if tensor.is_floating_point() else tensor
        return loss

    def validate_average(loss: float) -> dict:
        record = validate(loss)
        training.best["weights"] = dict(kept)
        return record

    training.step, training.validate = averaged_step, validate_average


def mix_clips(training: Training, alpha: float = 0.4) -> None:
    """mixup (arXiv 1710.09412) of clips of the same label, mostly of two people."""
    step = training.step

    def mixed_step(x: torch.Tensor, y: torch.Tensor, clips: int) -> torch.Tensor:
        other = torch.arange(len(x))
        for label in (0, 1):
            same = (y == label).nonzero().flatten()
            other[same] = same[torch.randperm(len(same))]
        share = torch.distributions.Beta(alpha, alpha).sample((len(x), 1, 1))
        return step(share * x + (1 - share) * x[other], y, clips)

    training.step = mixed_step


class Candidate(NamedTuple):
    flags: str = ""  # of the training script
    augmentations: list = [*AUGMENTATIONS]  # a copy: a training's process replaces common's
    change: Callable[[Training], None] = lambda training: None


WITHOUT_MIXING = AUGMENTATIONS[1:]
CANDIDATES = {
    "recipe": Candidate(),
    "without mixing": Candidate(augmentations=WITHOUT_MIXING),
    "gains": Candidate(augmentations=[partial(random_gains, size=0.12), *WITHOUT_MIXING]),
    "mixing and gains": Candidate(augmentations=[*AUGMENTATIONS, partial(random_gains, size=0.12)]),
    "relaxed": Candidate(augmentations=WITHOUT_MIXING, change=normalise),
    "mixing and relaxed": Candidate(change=normalise),
    "speed": Candidate(augmentations=[*AUGMENTATIONS, resample_time]),
    "shifted bins": Candidate(augmentations=[*AUGMENTATIONS, shift_bins]),
    "averaged weights": Candidate(change=average_weights),
    "mixup": Candidate(change=mix_clips),
    "less emphasis": Candidate(flags="--emphasis 0.7"),
    "more emphasis": Candidate(flags="--emphasis 0.97"),
    "weight decay": Candidate(flags="--weight-decay 0.2"),
    "shorter": Candidate(flags="--epochs 8"),
    "longer": Candidate(flags="--epochs 40"),
    "unweighted": Candidate(flags="--no-balance"),
}

# --- one training -------------------------------------------------------------------------------


class Unit(NamedTuple):
    """A candidate on one fold of one corpus, with one seed."""

    model: str
    candidate: str
    corpus: str
    seed: int
    fold: int
    folders: dict[str, str]  # of all corpora
    runs: Path

    @property
    def path(self) -> Path:
        return Path(
            self.runs, self.model, self.candidate, self.corpus, f"{self.seed}-{self.fold}.npz"
        )


def read_corpus(unit: Unit, corpus: str) -> tuple[argparse.Namespace, pd.DataFrame, list[dict]]:
    """The flags, the labels and the folds; these are the same for every seed."""
    folder, flags = unit.folders[corpus], CANDIDATES[unit.candidate].flags.split()
    words = ["--spectrograms", f"{folder}/Spectrograms", "--labels", f"{folder}/dataset.csv"]
    parser = import_module(f"train_{unit.model}").make_parser()
    args = parse_training(parser, [*words, *flags, "--folds", "6", "--seed", "1"])
    with redirect_stdout(None):
        frame = load_dataset(args).clips.frame
    args.folds = "people" if frame["participant"].nunique() < FEW else 6
    return args, frame, plan_splits(args, frame)


def describe_recipe(unit: Unit, args: argparse.Namespace) -> str:
    """What a training depends on besides the clips: one of another recipe is done again."""
    candidate = CANDIDATES[unit.candidate]
    parts = [candidate.change, *candidate.augmentations]
    names = [
        (getattr(part, "func", part).__name__, getattr(part, "keywords", {})) for part in parts
    ]
    asked = [corpus for corpus in unit.folders if not unit.seed and corpus != unit.corpus]
    places = {"spectrograms", "labels", "weights"}
    flags = {name: value for name, value in result_flags(args).items() if name not in places}
    return json.dumps([names, asked, flags], sort_keys=True)


def is_done(unit: Unit) -> bool:
    if not unit.path.exists():
        return False
    with np.load(unit.path) as saved:
        recipe = describe_recipe(unit, read_corpus(unit, unit.corpus)[0])
        return "recipe" in saved and saved["recipe"].item() == recipe


def train_unit(unit: Unit) -> None:
    args, frame, splits = read_corpus(unit, unit.corpus)
    candidate, recipe = CANDIDATES[unit.candidate], describe_recipe(unit, args)
    common.AUGMENTATIONS[:] = candidate.augmentations  # of this process
    args.seed, args.threads = unit.seed, 1
    torch.manual_seed(args.seed)
    model = import_module(f"train_{unit.model}").build(args, 128, 251)
    dataset = SpectrogramDataset(frame["path"], frame["label"])
    training = make_training(args, model, dataset, splits[unit.fold], torch.device("cpu"))
    candidate.change(training)
    with redirect_stdout(None):
        training.fit()
    found = {unit.corpus: training.predict("test"), "test": training.split["test"]}
    found["recipe"] = np.array(recipe)
    for corpus in unit.folders if unit.seed == 0 else ():
        if corpus != unit.corpus:
            _, other, _ = read_corpus(unit, corpus)
            training.dataset = SpectrogramDataset(other["path"], other["label"])
            training.split = {"test": np.arange(len(other))}
            found[corpus] = training.predict("test")
    unit.path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(unit.path) as temporary, temporary.open("wb") as file:
        np.savez(file, **found)


# --- the table ----------------------------------------------------------------------------------


def read_results(units: list[Unit]) -> dict[str, dict[int, pd.DataFrame]]:
    """Of each corpus and seed the held-out clips, with their log-odds; and of "A asked about B"."""
    found = {}
    for unit in units:
        with np.load(unit.path) as saved:
            _, frame, _ = read_corpus(unit, unit.corpus)
            arrays = {name: saved[name] for name in saved.files if name != "recipe"}
        test = frame.iloc[arrays.pop("test")]
        for corpus, logits in arrays.items():
            own = corpus == unit.corpus
            clips = test if own else read_corpus(unit, corpus)[1]
            name = corpus if own else f"{unit.corpus} asked about {corpus}"
            part = clips.assign(logit=logits[:, 1] - logits[:, 0], fold=unit.fold)
            found.setdefault(name, {}).setdefault(unit.seed, []).append(part)
    return {
        name: {seed: join_folds(parts) for seed, parts in seeds.items()}
        for name, seeds in found.items()
    }


def join_folds(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Of another corpus every fold's network was asked: their mean logit counts."""
    columns = ["id", "label", "participant"]
    frame = pd.concat(parts).groupby(columns, as_index=False)["logit"].mean()
    return frame.assign(probability=expit(frame["logit"]))


def mean_seeds(seeds: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """One frame of the mean logit of the networks of all seeds: members of one model."""
    logit = np.mean([frame["logit"] for frame in seeds.values()], axis=0)
    return next(iter(seeds.values())).assign(logit=logit, probability=expit(logit))


def auroc(frame: pd.DataFrame) -> float:
    return score_predictions(frame, resamples=0)["auroc"]["value"]


def format_table(candidates: dict[str, list[Unit]]) -> list[str]:
    """A Markdown table: of each candidate what it was asked about, the mean and the worst of it."""
    lines = [
        "| candidate | asked about | one network | all seeds together | minus the first, paired |"
    ]
    lines.append("|---|---|---|---|---|")
    first = None
    for candidate, units in candidates.items():
        results, scores = read_results(units), {}
        first = first or results
        for name, seeds in results.items():
            single, together = [auroc(frame) for frame in seeds.values()], mean_seeds(seeds)
            scores[name] = np.mean(single), np.std(single), auroc(together)
            difference = compare_pair(together, mean_seeds(first[name]))["auroc"]
            cells = [candidate, name, "{:.3f} ± {:.3f} | {:.3f}".format(*scores[name])]
            lines.append(f"| {' | '.join([*cells, format_score(difference)])} |")
        mean = "{:.3f} ± {:.3f} | {:.3f}".format(*np.mean([*scores.values()], axis=0))
        worst = min(scores, key=scores.get)
        lines.append(f"| **{candidate}** | the mean | {mean} | worst: {worst} |")
    return lines


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", type=Path, help="folder of the results")
    add("model", choices=list_models())
    add("corpora", metavar="NAME=FOLDER", nargs="+")
    add("--only", nargs="+", choices=CANDIDATES, default=[*CANDIDATES], help="candidates")
    add("--seeds", metavar="N", type=at_least(1), default=3, help="of each candidate")
    add("--jobs", metavar="N", type=at_least(1), default=2, help="processes, on one core each")
    args = parser.parse_args()
    folders = dict(pair.partition("=")[::2] for pair in args.corpora)
    if not all(folders.values()):
        raise InputError(f"{' '.join(args.corpora)}: expected NAME=FOLDER of each corpus")
    planned = {}
    for candidate, corpus, seed in product(args.only, folders, range(args.seeds)):
        unit = Unit(args.model, candidate, corpus, seed, 0, folders, args.runs)
        folds = range(len(read_corpus(unit, corpus)[2]))
        planned.setdefault(candidate, []).extend(unit._replace(fold=fold) for fold in folds)
    todo = [unit for units in planned.values() for unit in units if not is_done(unit)]
    for _ in tqdm(map_processes(train_unit, todo, args.jobs), "training", len(todo)):
        pass
    print("\n".join(format_table(planned)))


if __name__ == "__main__":
    run(main)
