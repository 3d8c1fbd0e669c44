"""Dataset, models, augmentation, training loop and weights files, shared by every script.

Shapes: B batch, M mel bins, T frames, C classes (0 Not Depressed, 1 Depressed), N clips.
"""

import importlib
import inspect
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from speech.cli import (
    RANK,
    WORLD,
    InputError,
    deferred_signals,
    print0,
    read_file,
    write_atomically,
)
from speech.dataset import read_spectrogram
from speech.device import (
    convolve,
    pick_precision,
    quickest_threads,
    reuse_freed_memory,
    to_onednn,
)
from speech.familiarity import Familiarity, check_familiarity
from speech.metadata import check_metadata

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

# --- dataset ------------------------------------------------------------------------------------


class SpectrogramDataset(Dataset):
    """Clips read on demand: item i is (float32 tensor (M, T) in [0, 1], label)."""

    def __init__(self, paths: Iterable[str], labels: Iterable[int], shape: tuple | None = None):
        self.paths, self.labels, self.shape = list(paths), list(labels), shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        try:
            clip = read_spectrogram(self.paths[index])
            if self.shape not in (None, clip.shape):  # it was replaced since it was checked
                raise InputError(f"shape {clip.shape}, the others have {self.shape}")
            return torch.from_numpy(clip), self.labels[index]
        except InputError as error:
            raise InputError(f"{self.paths[index]}: {error}") from error


# --- models -------------------------------------------------------------------------------------

MOST_ROTATIONS = 8  # of the CNN's features; 31 were no better
ROWS = 32  # of a folded CNN's first dense layer at once: a clip has one for each rotation
MODELS = {}  # name: class, of those defined so far; find_model knows the others


class SpectrogramModel(nn.Module):
    """A network (B, M, T) -> logits (B, C), known by its name and rebuilt from its arguments.

    `class CRNN(SpectrogramModel, name="crnn")` in train_crnn.py is all that it takes to be
    trained, saved, loaded, tuned and served. Its constructor takes n_mels, n_frames and numbers,
    strings or booleans: they are kept in `arguments`, and go into the weights file.
    """

    threads: int | None = None  # that training takes; None is 1 or all cores, what is quicker

    def __init_subclass__(cls, name: str) -> None:
        cls.name = name
        MODELS[name] = cls

    def __new__(cls, *args, **kwargs):
        model = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind(model, *args, **kwargs)
        bound.apply_defaults()
        _, *arguments = bound.arguments.items()  # without self
        object.__setattr__(model, "arguments", dict(arguments))
        return model

    def fold(self) -> None:
        """Makes evaluation faster, if a model knows how to; it is not trained or saved after it."""


class Emphasis(nn.Module):
    """Makes changes from frame to frame stand out of (B, M, T): (x[t] - a x[t-1]) / (1 - a).

    What does not change keeps its level. 0 is the notebooks' input. The idea is that of RASTA
    (Hermansky & Morgan 1994): the voice moves, the room and the microphone do not.
    """

    def __init__(self, a: float):
        super().__init__()
        if not 0 <= a < 1:
            raise InputError(f"emphasis {a}, expected a number >= 0 and < 1")
        self.a = a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.a:
            return x
        changes = (x[..., 1:] - self.a * x[..., :-1]) / (1 - self.a)
        return torch.cat([x[..., :1], changes], -1)


class CNNDNN(SpectrogramModel, name="cnn"):
    """Three convolutions, three dense layers (CNN-DNN.ipynb); 32,665,410 weights at (128, 251)."""

    def __init__(self, n_mels=128, n_frames=251, dropout=0.5, emphasis=0.0, rotations=1):
        super().__init__()
        if not 1 <= rotations <= MOST_ROTATIONS:
            raise InputError(f"rotations {rotations}, expected 1 to {MOST_ROTATIONS}")
        if min(n_mels, n_frames) < 8:  # three poolings by 2 would leave nothing
            raise InputError(f"({n_mels}, {n_frames}) is too small for the CNN; try the LSTM")
        self.emphasise = Emphasis(emphasis)
        self.conv1 = nn.Conv2d(1, 32, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        self.batchnorm1 = nn.BatchNorm2d(32)
        self.batchnorm2 = nn.BatchNorm2d(64)
        self.batchnorm3 = nn.BatchNorm2d(128)
        self.fc1 = nn.Linear(128 * (n_mels // 8) * (n_frames // 8), 512)
        self.fc2 = nn.Linear(512, 128)
        self.fc3 = nn.Linear(128, 2)
        self.dropout = nn.Dropout(dropout)
        self.folded, self.rotations = False, rotations
        for conv in (self.conv1, self.conv2, self.conv3):
            conv.bias.requires_grad_(False)  # batch-norm takes away whatever a bias adds

    def fold(self) -> None:
        """Makes batch-norms a part of the convolutions: the same to 1e-6 in less time."""
        self.folded = True
        for number in "123":
            conv, norm = getattr(self, f"conv{number}"), getattr(self, f"batchnorm{number}")
            folded = fuse_conv_bn_eval(conv, norm).to(memory_format=torch.channels_last)
            setattr(self, f"conv{number}", folded.requires_grad_(False))
            setattr(self, f"batchnorm{number}", nn.Identity())

    def extract(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, M, T) -> features (B, 128, M/8, T/8)."""
        x = to_onednn(x) if self.training or self.folded else x  # elsewhere it gains little
        # ReLU after the pooling: the same function, as both are monotonic, on a quarter of the data
        x = self.relu(self.pool(self.batchnorm1(convolve(self.conv1, x))))  # (B, 32, M/2, T/2)
        x = self.relu(self.pool(self.batchnorm2(convolve(self.conv2, x))))  # (B, 64, M/4, T/4)
        x = self.relu(self.pool(self.batchnorm3(convolve(self.conv3, x))))  # (B, 128, M/8, T/8)
        return x.to_dense() if x.is_mkldnn else x

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Features -> (R B, 128 * M/8 * T/8): those of every clip from R starts in time.

        A dense layer has weights of its own for every moment. The mean of several starts depends
        less on when something was said.
        """
        if self.rotations == 1:
            return x.flatten(1)
        starts = [round(x.shape[3] * part / self.rotations) for part in range(self.rotations)]
        return torch.cat([x.roll(start, 3) for start in starts]).flatten(1)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Features -> logits (B, C)."""
        x = self.rotate(x)
        x = self.fc1(to_onednn(x) if self.folded else x)
        x = self.dropout(self.relu(x.to_dense() if x.is_mkldnn else x))
        x = self.dropout(self.relu(self.fc2(x)))
        return self.fc3(x).unflatten(0, (self.rotations, -1)).mean(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, M, T) in [0, 1] -> logits (B, C)."""
        x = self.emphasise(x).unsqueeze(1)
        if not self.folded:
            return self.classify(self.extract(x))
        # Two clips at a time, and few rows, need no more memory than device.keep_little_memory
        # lets be kept. Of 16 rows oneDNN multiplies by fc1's weights in .7 times the time.
        parts = x.split(max(1, ROWS // self.rotations))
        features = (torch.cat([self.extract(two) for two in part.split(2)]) for part in parts)
        return torch.cat([self.classify(part) for part in features])


class LSTMClassifier(SpectrogramModel, name="lstm"):
    """Two stacked LSTM layers and a dense one (LSTM.ipynb); 327,426 weights at (128, 251)."""

    # A step is many small products: two threads mostly wait for each other, .40 s per epoch of
    # ravdess12 instead of .30, and 1.3 s beside a process that keeps one core busy.
    threads = 1

    def __init__(
        self,
        n_mels=128,
        n_frames=251,
        hidden_size=128,
        num_layers=2,
        dropout=0.3,
        steps="mel",
        pool="last",
        emphasis=0.0,
    ):
        super().__init__()
        if steps not in ("mel", "time") or pool not in ("last", "mean"):
            raise InputError(f"steps {steps!r}, pool {pool!r}: expected mel or time, last or mean")
        self.steps, self.pool = steps, pool
        self.emphasise = Emphasis(emphasis)
        input_size = n_frames if steps == "mel" else n_mels
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, M, T) in [0, 1] -> logits (B, C)."""
        x = self.emphasise(x)
        if self.steps == "time":  # the notebook walked along the mel bins, meaning the frames
            x = x.transpose(1, 2)
        out, _ = self.lstm(x)  # (B, steps, hidden_size)
        out = out.mean(1) if self.pool == "mean" else out[:, -1]
        return self.fc(self.dropout(out))


class Members(nn.Module):
    """Networks of one model, trained apart, that answer as one: (B, M, T) -> mean logits (B, C).

    What a network learns from few people hangs on chance, its first weights and the order of the
    clips. The mean of several is better than most of them, and how far they differ says how much
    of an answer is chance.
    """

    def __init__(self, members: Iterable[SpectrogramModel]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


def list_networks(model: nn.Module) -> list[nn.Module]:
    """The networks of a weights file: its members, or the one."""
    return list(model.members) if isinstance(model, Members) else [model]


def list_models() -> list[str]:
    """The names of all models: every train_NAME.py beside this file trains one."""
    scripts = Path(__file__).parent.glob("train_*.py")
    return sorted(script.stem.removeprefix("train_") for script in scripts)


def find_model(name: str) -> type[SpectrogramModel]:
    """The class of a model. A weights file names it, and never brings code: what is imported
    for an unknown name is this repository's own train_NAME.py, or nothing.
    """
    if name not in MODELS and name in list_models():
        importlib.import_module(f"train_{name}")
    if name not in MODELS:
        raise InputError(f"model {name!r:.50}, expected one of {', '.join(list_models())}")
    return MODELS[name]


# --- augmentation -------------------------------------------------------------------------------

MAX_MASK = 20  # bins and frames, at strength 1; the notebooks suggest 20 of each
MIXED, MIXING = 0.7, 0.3  # share of the clips that are mixed; the parameters of Beta
SILENT = 1e-3  # a bin that does not vary has a deviation of 0
REPEATED = 0.25  # of the clips repeat a part of theirs; with 0.5 the scores were the same


def mix_levels(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Moves clips of (B, M, T) towards another one's mean and deviation of each bin.

    Freq-MixStyle (Kim et al. 2022; Schmid et al. 2023, arXiv 2305.07499): a room, a microphone and
    a voice have their own levels, and no few people show all that there are.
    """
    mean, deviation = x.mean(2, keepdim=True), x.std(2, keepdim=True) + SILENT
    other = torch.randperm(len(x))
    weight = torch.distributions.Beta(MIXING, MIXING).sample((len(x), 1, 1))  # mostly near 0 or 1
    weight[torch.rand(len(x)) >= MIXED * strength] = 1.0
    weight = weight.to(x.device)
    new_mean = torch.lerp(mean[other], mean, weight)
    new_deviation = torch.lerp(deviation[other], deviation, weight)
    return (x - mean) / deviation * new_deviation + new_mean


def rotate_in_time(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Starts each clip of (B, M, T) at a random frame; what was before follows at the end.

    Where a clip was cut out of the speech means nothing: no frame may stand for a label.
    """
    clips, mels, frames = x.shape
    rotated = (torch.arange(frames) + torch.randint(frames, (clips, 1, 1))) % frames
    return x.gather(2, rotated.expand(clips, mels, frames).to(x.device))


def repeat_part(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Fills some clips of (B, M, T) with a part of theirs, half or more, again and again.

    predict.py makes a clip of less sound in this way: how long somebody spoke must not decide.
    """
    clips, mels, frames = x.shape
    length = torch.randint(-(-frames // 2), frames + 1, (clips, 1, 1))
    length[torch.rand(clips) >= REPEATED] = frames
    start = (torch.rand(clips, 1, 1) * (frames - length + 1)).long()
    taken = start + torch.arange(frames) % length
    return x.gather(2, taken.expand(clips, mels, frames).to(x.device))


def mask(x: torch.Tensor, strength: float, dim: int) -> torch.Tensor:
    """Silences a random band of bins (dim 1) or frames (dim 2) in every clip of (B, M, T).

    SpecAugment (Park et al. 2019): no single band or moment can be all that decides.
    """
    size = x.shape[dim]
    width = torch.randint(min(round(MAX_MASK * strength), size) + 1, (len(x), 1, 1))
    start = (torch.rand(len(x), 1, 1) * (size - width + 1)).long()
    place = torch.arange(size).view((1, -1, 1) if dim == 1 else (1, 1, -1))
    band = (place >= start) & (place < start + width)
    return x.masked_fill(band.to(x.device), 0.0)  # 0 is a clip's lowest level


# In this order: what is masked is neither mixed nor repeated.
AUGMENTATIONS = [
    mix_levels,
    rotate_in_time,
    repeat_part,
    partial(mask, dim=1),
    partial(mask, dim=2),
]


def augment(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Each clip of (B, M, T) changed at random by every one of AUGMENTATIONS; 0 changes none."""
    for change in AUGMENTATIONS if strength else ():
        x = change(x, strength)
    return x


# --- training -----------------------------------------------------------------------------------

CHECKPOINT_SECONDS = 60.0  # the most that a power cut costs
TEMPERATURES = (1.0, 5.0)  # bounds: a few validation people must not make the model more certain
SCHEDULES = {
    "onecycle": torch.optim.lr_scheduler.OneCycleLR,  # Smith & Topin 2018
    "constant": lambda optimizer, *_: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
}


class Interrupted(Exception):
    """An ending signal, after the batch was finished and the checkpoint written."""


class Diverged(Exception):
    """A loss or a weight is not finite."""


def are_finite(tensors: dict[str, torch.Tensor]) -> bool:
    """By their extremes: of the CNN-DNN's weights Tensor.isfinite takes twenty times as long."""
    return all(torch.stack(tensor.aminmax()).isfinite().all() for tensor in tensors.values())


@torch.inference_mode()
def predict_logits(
    model: nn.Module, batches: Iterable, autocast: AbstractContextManager | None = None
) -> np.ndarray:
    """Logits (N, C), float32, of tensors (B, M, T); leaves `model` in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    with autocast or nullcontext():
        logits = [model(batch.to(device)).float().cpu() for batch in batches]
    return torch.cat(logits).numpy() if logits else np.empty((0, 2), np.float32)


@dataclass(kw_only=True, eq=False)
class Training:
    """One run of one model on one split; `state()` is all that a checkpoint needs.

    With validation clips the epoch of least validation loss is chosen, and `patience` epochs
    without a better one end the run; without them the last epoch is chosen. The randomness of a
    step is seeded by the step's number, so that no random state has to be kept.
    """

    model: nn.Module
    dataset: SpectrogramDataset
    split: dict[str, np.ndarray]  # positions of the train, val and test clips
    device: torch.device
    epochs: int
    batch_size: int  # clips per step, of all processes together
    lr: float  # at the schedule's peak
    schedule: str  # of SCHEDULES
    weight_decay: float  # AdamW's; 0 is Adam
    centralise: bool  # gradient centralisation
    patience: int  # epochs; 0 keeps the last epoch
    augment: float  # strength; 0 is none
    balance: bool  # weight the classes
    seed: int
    workers: int  # processes that read clips
    precision: str  # auto, fp32 or bf16
    threads: int | None  # None is as many as suit the model and the machine

    def __post_init__(self) -> None:
        reuse_freed_memory()
        self.threads = self.threads or self.model.threads or quickest_threads()
        torch.set_num_threads(self.threads)
        # 1.5 to 3 times faster, but for training in oneDNN's own layout.
        self.model.to(self.device, memory_format=torch.channels_last)
        self.network = self.model
        if WORLD > 1:
            self.network = nn.parallel.DistributedDataParallel(self.model)
        self.autocast = pick_precision(self.precision, self.device)
        weights = self.model.parameters()
        self.optimizer = torch.optim.AdamW(
            weights, self.lr, weight_decay=self.weight_decay, fused=True
        )
        self.steps = -(-len(self.split["train"]) // self.batch_size)  # per epoch
        self.scheduler = SCHEDULES[self.schedule](self.optimizer, self.lr, self.epochs * self.steps)
        self.labels = np.array(self.dataset.labels)
        self.class_weights = self.weight_classes().to(self.device)
        self.centralised = [p for p in self.model.parameters() if self.centralise and p.ndim > 1]
        self.epoch, self.batch = 1, 0
        self.losses = torch.zeros(self.steps, device=self.device)  # of this epoch's batches
        self.history, self.best = [], None

    def weight_classes(self) -> torch.Tensor:
        """Weights (C,), inverse to the classes' shares: the rarer one counts as much in all."""
        counts = np.bincount(self.labels[self.split["train"]], minlength=2)
        weights = counts.sum() / (2 * counts) if self.balance else np.ones(2)
        return torch.tensor(weights, dtype=torch.float32)

    def state(self) -> dict:
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.scheduler}
        state = {name: part.state_dict() for name, part in parts.items()}
        progress = ("epoch", "batch", "losses", "history", "best", "threads")
        return state | {"progress": {name: getattr(self, name) for name in progress}}

    def load_state(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["schedule"])
        vars(self).update(state["progress"])
        torch.set_num_threads(self.threads)  # another number would change the last digits
        self.losses = self.losses.to(self.device)
        if RANK > 0:
            self.losses.zero_()  # those of the checkpoint are counted once, by the first process

    def loader(self, batches: list[np.ndarray]) -> DataLoader:
        """Batches of this process's share of each batch of positions."""
        shares = [batch[RANK::WORLD].tolist() for batch in batches if len(batch) > RANK]
        return DataLoader(
            self.dataset,
            batch_sampler=shares,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )

    def step(self, x: torch.Tensor, y: torch.Tensor, clips: int) -> torch.Tensor:
        """Learns from this process's share of a batch of `clips` -> the sum of its losses."""
        self.optimizer.zero_grad()  # before the activations need memory
        x, y = (tensor.to(self.device, non_blocking=True) for tensor in (x, y))
        with self.autocast:
            logits = self.network(augment(x, self.augment))
        losses = F.cross_entropy(logits.float(), y, reduction="none")
        loss = (losses * self.class_weights[y]).sum()
        (loss * (WORLD / clips)).backward()  # DistributedDataParallel divides by WORLD
        # Gradient centralisation (Yong et al. 2020). What enters a dense layer after ReLU is
        # positive: to change all weights of a unit alike moves the logits of all clips at once.
        for weight in self.centralised:
            weight.grad -= weight.grad.mean(tuple(range(1, weight.ndim)), keepdim=True)
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    def train_epoch(self, after_step: Callable[[], None]) -> float:
        """Goes on from `self.batch` to the epoch's end -> mean training loss per clip."""
        # Near-equal batches: a small last one would unsettle the batch-norms.
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.split["train"])
        batches = np.array_split(order, self.steps)
        self.model.train()
        bar = tqdm(
            self.loader(batches[self.batch :]),
            f"epoch {self.epoch}/{self.epochs}",
            self.steps,
            initial=self.batch,
            unit="batch",
            leave=False,
            delay=2,
            disable=None if RANK == 0 else True,
        )
        for x, y in bar:
            step = (self.epoch - 1) * self.steps + self.batch
            torch.manual_seed((self.seed * 1_000_003 + step) * WORLD + RANK)
            self.losses[self.batch] = self.step(x, y, len(batches[self.batch]))
            self.batch += 1
            after_step()
        return self.sum_losses() / len(order)

    def sum_losses(self) -> float:
        """The epoch's losses, of all processes; Diverged if they or the weights are not finite."""
        losses = self.losses.clone()
        if WORLD > 1:
            torch.distributed.all_reduce(losses)
        if not losses.isfinite().all():
            batch = int((~losses.isfinite()).nonzero()[0])
            raise Diverged(f"loss {losses[batch]:g} in epoch {self.epoch}, batch {batch + 1}")
        # oneDNN's max-pooling takes nan for the lowest number: the loss does not show it.
        if not are_finite(self.model.state_dict()):
            raise Diverged(f"non-finite weights in epoch {self.epoch}")
        return losses.sum().item()

    def predict(self, side: str, autocast: AbstractContextManager | None = None) -> np.ndarray:
        """Logits (N, C) of the clips of one side of the split, each process computing its share."""
        positions = self.split[side]  # in ascending order
        batches = np.array_split(positions, -(-len(positions) // self.batch_size) or 1)
        logits = predict_logits(self.model, (x for x, _ in self.loader(batches)), autocast)
        if WORLD > 1:
            shares = [None] * WORLD
            torch.distributed.all_gather_object(shares, logits)
            order = np.concatenate([b[rank::WORLD] for rank in range(WORLD) for b in batches])
            logits = np.concatenate(shares)[np.argsort(order)]
        return logits

    def validate(self, train_loss: float) -> dict:
        """The epoch's record; remembers the weights if the epoch is the best so far."""
        loss = accuracy = None
        if len(self.split["val"]):
            logits, labels = self.predict("val", self.autocast), self.labels[self.split["val"]]
            loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
            accuracy = float((logits.argmax(1) == labels).mean())
        if not self.patience or not self.best or loss < self.best["loss"]:
            weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"epoch": self.epoch, "loss": loss, "weights": weights}
        names = ("epoch", "train_loss", "val_loss", "val_accuracy")
        return dict(zip(names, (self.epoch, train_loss, loss, accuracy), strict=True))

    def out_of_patience(self) -> bool:
        """No better epoch within `patience`; never without validation clips."""
        if not self.best or not self.patience:
            return False
        return self.epoch - 1 - self.best["epoch"] >= self.patience

    def run_epoch(self, after_step: Callable[[], None]) -> dict | None:
        """Trains and validates one epoch -> its record, or None: the run is over."""
        if self.out_of_patience():
            kept = f"the weights of epoch {self.best['epoch']} are kept"
            print0(f"no better epoch in {self.patience}: {kept}")
            return None
        started = time.monotonic()
        try:
            record = self.validate(self.train_epoch(after_step))
        except Diverged as error:
            if not self.best:
                raise
            print0(f"{error}: stopped, the weights of epoch {self.best['epoch']} are kept")
            return None
        self.history.append(record)
        self.epoch, self.batch = self.epoch + 1, 0
        print0(f"{format_epoch(record, self.epochs)}  {time.monotonic() - started:.1f} s")
        return record

    def fit(
        self,
        save: Callable[[dict], None] = lambda state: None,
        on_epoch: Callable[[dict], None] = lambda record: None,
    ) -> None:
        """Trains to the end and leaves the chosen epoch's weights in the model.

        Args:
            save: called with `state()` every CHECKPOINT_SECONDS, and when the run cannot go on.
            on_epoch: called with each epoch's record.

        Raises:
            Interrupted: after a signal.
            Diverged: in the first epoch; in a later one the best epoch so far is kept.
        """
        with deferred_signals() as signals, saved_on_failure(lambda: save(self.state())) as due:

            def after_step():
                if signals or due():
                    save(self.state())
                if signals:
                    raise Interrupted(signals[0])

            try:
                while self.epoch <= self.epochs and (record := self.run_epoch(after_step)):
                    on_epoch(record)
                if signals:  # while the last epoch was validated
                    save(self.state())
                    raise Interrupted(signals[0])
            except RuntimeError as error:  # of workers that the same signal has ended
                if not signals or WORLD > 1:  # torchrun ends all processes when one is lost
                    raise
                save(self.state())
                raise Interrupted(signals[0]) from error
        self.model.load_state_dict(self.best["weights"])


@contextmanager
def saved_on_failure(save: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Saves before an error ends the run; yields whether CHECKPOINT_SECONDS have passed again.

    A lost process, GPU memory or a lost clip stops a run between two optimizer steps: its state
    is whole.
    """
    last = time.monotonic()

    def due() -> bool:
        nonlocal last
        passed = time.monotonic() - last > CHECKPOINT_SECONDS
        last = time.monotonic() if passed else last
        return passed

    try:
        yield due
    except (RuntimeError, InputError):
        save()
        raise


def format_epoch(record: dict, epochs: int) -> str:
    line = f"epoch {record['epoch']:3}/{epochs}  train loss {record['train_loss']:.4f}"
    if record["val_loss"] is not None:
        line += f"  val loss {record['val_loss']:.4f}  val accuracy {record['val_accuracy']:.3f}"
    return line


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, bounds: tuple[float, float] = TEMPERATURES
) -> float:
    """The T for which softmax(logits / T) fits the labels best (Guo et al. 2017); 1 without any."""
    if not len(labels):
        return 1.0
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        scaled = torch.from_numpy(logits / np.exp(log_t))
        return F.cross_entropy(scaled, torch.from_numpy(labels)).item()

    return float(np.exp(minimize_scalar(loss, bounds=np.log(bounds), method="bounded").x))


# --- weights files ------------------------------------------------------------------------------

HEADER = "speech-depression"  # the one entry of a safetensors header: the metadata
FAMILIARITY = "familiarity"  # of the metadata; its arrays stand among the tensors, as PREFIXname
PREFIX = f"{FAMILIARITY}."


def save_weights(path: str | Path, model: nn.Module, metadata: dict) -> None:
    """Writes a safetensors file that load_weights has rebuilt the model from."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    known = metadata.get(FAMILIARITY) or {}
    tensors |= {f"{PREFIX}{name}": torch.from_numpy(array) for name, array in known.items()}
    text = {name: value for name, value in metadata.items() if name != FAMILIARITY}
    # One entry: safetensors writes several in an order that differs from run to run.
    header = {HEADER: json.dumps(text, sort_keys=True)}
    with write_atomically(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, header))
        load_weights(temporary)


def parse_weights(content: bytes) -> tuple[dict, dict[str, torch.Tensor]]:
    """The metadata and the tensors of a file."""
    length = int.from_bytes(content[:8], "little")
    tensors = safetensors.torch.load(content)  # checks the header
    header = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return json.loads(header[HEADER]), tensors


def rebuild(metadata: dict, tensors: dict[str, torch.Tensor]) -> nn.Module:
    model_class = find_model(metadata["model"])
    for name, parameter in inspect.signature(model_class).parameters.items():
        kind, value = type(parameter.default), metadata["arguments"].get(name, parameter.default)
        known = parameter.default is not parameter.empty
        if known and type(value) is not kind and (kind, type(value)) != (float, int):
            raise ValueError(f"{name} {value!r:.50}, expected {kind.__name__}")
    with torch.device("meta"):  # no memory is taken for what the file does not hold
        models = [model_class(**metadata["arguments"]) for _ in range(metadata["members"])]
        model = Members(models) if len(models) > 1 else models[0]
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    model.load_state_dict(tensors, assign=True)
    if not (all(t.dtype == kinds[name] for name, t in tensors.items()) and are_finite(tensors)):
        raise ValueError("weights that are not finite float32 numbers")
    return model.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def take_familiarity(tensors: dict[str, torch.Tensor], n_mels: int) -> Familiarity | None:
    """Takes what is not the network's out of `tensors`; None of weights from before there was."""
    names = [name for name in tensors if name.startswith(PREFIX)]
    known = {name.removeprefix(PREFIX): tensors.pop(name).numpy() for name in names}
    if known:
        check_familiarity(known, n_mels)
    return known or None


def load_weights(path: str | Path, content: bytes | None = None) -> tuple[nn.Module, dict]:
    """Rebuilds a model from a file of save_weights, which is read once: it may change afterwards.

    Args:
        content: of the file, if it has been read.

    Returns:
        The model in eval mode (Members if the file holds several), and the metadata: model,
        arguments, members, shape (M, T), preprocessing, class_names, temperature, data, test,
        versions, and familiarity (speech.familiarity's arrays; None: whether a clip is like the
        training clips cannot be checked).

    Raises:
        InputError: no such file, not one of ours, or damaged.
    """
    try:
        metadata, tensors = parse_weights(read_file(path) if content is None else content)
        metadata = check_metadata(metadata)
        metadata[FAMILIARITY] = take_familiarity(tensors, metadata["shape"][0])
        return rebuild(metadata, tensors), metadata
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except KeyError as error:
        raise InputError(
            f"{path}: no weights of this project ({error} is missing); train_cnn.py or "
            "train_lstm.py make them"
        ) from error
    except Exception as error:  # a malformed header ends in a dozen kinds
        if Path(path).suffix in (".pt", ".pth"):
            advice = "README.md's section on predictions turns a notebook's into safetensors"
            raise InputError(f"{path}: a PyTorch file, expected .safetensors: {advice}") from error
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: damaged, or no weights file: {reason}") from error
