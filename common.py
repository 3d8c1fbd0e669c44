"""Dataset, models, train/eval loop and weights files, shared by every script.

Shapes: B batch, M mel bins, T frames, C classes (0 Not Depressed, 1 Depressed), N clips.
"""

import ctypes
import hashlib
import json
import mmap
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import report
from dataset import MAX_CLIP_BYTES, InputError, read_spectrogram, write_atomically

CLASS_NAMES = report.CLASS_NAMES
NOTICE = (
    "This is not a diagnosis. It is a research model's guess from a few seconds of sound; "
    "it can be wrong, and only a professional can assess depression."
)
SYNTHETIC_NOTICE = "Trained on synthetic voices: its verdicts mean nothing about real people."
TEMPERATURES = (1.0, 5.0)  # bounds: a few validation people must not make the model more certain
CHECKPOINT_SECONDS = 60.0
# mallopt's numbers
MALLOC = {"trim_threshold": -1, "mmap_threshold": -3, "mmap_max": -4, "arena_max": -8}
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun's


# --- dataset ------------------------------------------------------------------------------------


class SpectrogramDataset(Dataset):
    """Clips read on demand: item i is (float32 tensor (M, T) in [0, 1], label)."""

    def __init__(self, frame: pd.DataFrame, folder: str | Path):
        self.ids, self.labels = frame["id"].tolist(), frame["label"].tolist()
        self.folder = str(folder)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = os.path.join(self.folder, self.ids[index] + ".npy")
        try:
            return torch.from_numpy(read_spectrogram(path)), self.labels[index]
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


# --- models -------------------------------------------------------------------------------------


def emphasise(x: torch.Tensor, emphasis: float) -> torch.Tensor:
    """Makes changes from frame to frame stand out of (B, M, T): (x[t] - a x[t-1]) / (1 - a).

    What does not change keeps its level. 0 is the notebooks' input. The idea is that of RASTA
    (Hermansky & Morgan 1994): the voice moves, the room and the microphone do not.
    """
    if not emphasis:
        return x
    changes = (x[..., 1:] - emphasis * x[..., :-1]) / (1 - emphasis)
    return torch.cat([x[..., :1], changes], -1)


def _in_onednn(x: torch.Tensor) -> torch.Tensor:
    """`x` in oneDNN's own layout on processors for which it has fast code, else as it is.

    Batch-norm and pooling there make a step 1.2 times faster than PyTorch's own.
    """
    bf16 = torch.is_autocast_enabled("cpu")
    fast = torch.backends.cpu.get_cpu_capability() in (("AVX512",) if bf16 else ("AVX512", "AVX2"))
    if x.device.type != "cpu" or not (fast and torch.backends.mkldnn.is_available()):
        return x
    return x.to_mkldnn(torch.bfloat16 if bf16 else torch.float32)


def _convolve(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """`conv(x)`; in oneDNN's layout torch.nn refuses bf16, which oneDNN itself takes."""
    if not x.is_mkldnn:
        return conv(x)
    bias, how = conv.bias.to(x.dtype), (conv.padding, conv.stride, conv.dilation, conv.groups)
    return torch.mkldnn_convolution(x, conv.weight, bias, *how)


class CNNDNN(nn.Module):
    """Three convolutions, three dense layers (CNN-DNN.ipynb); 32,665,410 weights at (128, 251)."""

    def __init__(self, n_mels=128, n_frames=251, dropout=0.5, emphasis=0.0):
        super().__init__()
        if min(n_mels, n_frames) < 8:
            raise InputError(f"({n_mels}, {n_frames}) is too small for the CNN; try the LSTM")
        self.emphasis = emphasis
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
        for conv in (self.conv1, self.conv2, self.conv3):
            conv.bias.requires_grad_(False)  # batch-norm takes away whatever a bias adds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, M, T) in [0, 1] -> logits (B, C)."""
        x = emphasise(x, self.emphasis).unsqueeze(1)
        x = _in_onednn(x) if self.training else x  # evaluation gains little
        # ReLU after the pooling: the same function, as both are monotonic, on a quarter of the data
        x = self.relu(self.pool(self.batchnorm1(_convolve(self.conv1, x))))  # (B, 32, M/2, T/2)
        x = self.relu(self.pool(self.batchnorm2(_convolve(self.conv2, x))))  # (B, 64, M/4, T/4)
        x = self.relu(self.pool(self.batchnorm3(_convolve(self.conv3, x))))  # (B, 128, M/8, T/8)
        x = x.to_dense() if x.is_mkldnn else x
        x = self.dropout(self.relu(self.fc1(x.flatten(1))))
        x = self.dropout(self.relu(self.fc2(x)))
        return self.fc3(x)


class LSTMClassifier(nn.Module):
    """Two stacked LSTM layers and a dense one (LSTM.ipynb); 327,426 weights at (128, 251)."""

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
        self.steps, self.pool, self.emphasis = steps, pool, emphasis
        input_size = n_frames if steps == "mel" else n_mels
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_size, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, M, T) in [0, 1] -> logits (B, C)."""
        x = emphasise(x, self.emphasis)
        if self.steps == "time":
            x = x.transpose(1, 2)
        out, _ = self.lstm(x)  # (B, steps, hidden_size)
        out = out.mean(1) if self.pool == "mean" else out[:, -1]
        return self.fc(self.dropout(out))


# --- augmentation -------------------------------------------------------------------------------


MAX_MASK = 20  # bins and frames, at strength 1


def _mask(x: torch.Tensor, dim: int, strength: float) -> torch.Tensor:
    """Silences a random band of bins (dim 1) or frames (dim 2) in every clip of (B, M, T)."""
    size = x.shape[dim]
    width = torch.randint(min(round(MAX_MASK * strength), size) + 1, (len(x), 1, 1))
    start = (torch.rand(len(x), 1, 1) * (size - width + 1)).long()
    place = torch.arange(size).view((1, -1, 1) if dim == 1 else (1, 1, -1))
    band = (place >= start) & (place < start + width)
    return x.masked_fill(band.to(x.device), 0.0)


def augment(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Each clip of (B, M, T) turned in time and masked (SpecAugment, Park et al. 2019).

    Args:
        strength: 1 masks up to 20 bins and up to 20 frames.
    """
    clips, mels, frames = x.shape
    turned = (torch.arange(frames) + torch.randint(frames, (clips, 1, 1))) % frames
    x = x.gather(2, turned.expand(clips, mels, frames).to(x.device))
    return _mask(_mask(x, 1, strength), 2, strength)


# --- training -----------------------------------------------------------------------------------

SCHEDULES = {
    "onecycle": torch.optim.lr_scheduler.OneCycleLR,  # Smith & Topin 2018
    "constant": lambda optimizer, *_: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
}


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after the batch was finished and the checkpoint written."""


class Diverged(Exception):
    """The loss is no longer a number."""


def say(*words) -> None:
    """Prints at once, on the first process only."""
    if RANK == 0:
        try:
            print(*words, flush=True)
        except BrokenPipeError:  # `| head` has seen enough: the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def pick_device(name: str) -> torch.device:
    """`auto` is the accelerator where PyTorch sees one; torchrun gives each process its own."""
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: PyTorch cannot use it here; try cpu") from error
    return torch.device(name)


def pick_precision(name: str, device: torch.device):
    """The autocast context for auto, fp32 or bf16.

    auto is bf16 where the processor or GPU multiplies it natively; elsewhere bf16 is slower.
    """
    if device.type == "cpu":
        flags = torch.cpu.get_capabilities()
        native = bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))
    else:
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = name == "bf16" or (name == "auto" and native)
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


def set_malloc(**options: int) -> None:
    """Sets how the C library takes and keeps memory, where that is glibc: MALLOC's options."""
    with suppress(AttributeError, TypeError, OSError):  # other systems have no mallopt
        for name, value in options.items():
            ctypes.CDLL(None).mallopt(MALLOC[name], value)


@cache
def keep_memory(reserve: int = 2**32) -> None:
    """Makes glibc keep what tensors free for those to come, and in huge pages.

    Else every step waits for the system to clear the same memory again: up to twice the time.

    Args:
        reserve: bytes of address space that get huge pages. No memory is taken until it is used.
    """
    set_malloc(mmap_max=0, trim_threshold=-1)
    with suppress(AttributeError, TypeError, OSError):
        advice, libc = mmap.MADV_HUGEPAGE, ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        if start := libc.malloc(ctypes.c_size_t(reserve)):
            page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # the first whole one
            libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(start + reserve - page), advice)
            libc.free(ctypes.c_void_p(start))


@contextmanager
def noted_signals() -> Iterator[list]:
    """Yields the list of Ctrl-C and SIGTERM received, for the loop to look at between batches."""
    noted = []
    before = {
        number: signal.signal(number, lambda received, _: noted.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@torch.inference_mode()
def predict_logits(model: nn.Module, batches, autocast=None) -> np.ndarray:
    """Logits (N, C), float32, of an iterable of tensors (B, M, T); leaves `model` in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    with autocast or nullcontext():
        logits = [model(batch.to(device)).float().cpu() for batch in batches]
    return torch.cat(logits).numpy() if logits else np.empty((0, 2), np.float32)


class Training:
    """One run of one model on one split; `state()` is all that a checkpoint needs.

    With validation clips the epoch of least validation loss is chosen, and `patience` epochs
    without a better one end the run; without them the last epoch is chosen. The randomness of a
    step is seeded by the step's number, so that no random state has to be kept.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, split: dict, args, device):
        keep_memory()
        # 1.5 to 3 times faster, but for training in oneDNN's own layout.
        self.model = model.to(device, memory_format=torch.channels_last)
        self.dataset, self.split, self.args = dataset, split, args
        self.device, self.autocast = device, pick_precision(args.precision, device)
        self.labels = np.array(dataset.labels)
        self.network = nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True
        )
        self.steps = -(-len(split["train"]) // args.batch_size)  # per epoch
        self.schedule = SCHEDULES[args.schedule](self.optimizer, args.lr, args.epochs * self.steps)
        counts = np.bincount(self.labels[split["train"]], minlength=2)
        weights = counts.sum() / (2 * counts) if args.balance else np.ones(2)
        self.class_weights = torch.tensor(weights, dtype=torch.float32, device=device)
        self.change = partial(augment, strength=args.augment) if args.augment else nn.Identity()
        self.centred = [p for p in model.parameters() if p.ndim > 1] if args.centralise else []
        self.epoch, self.batch, self.losses = 1, 0, torch.zeros(self.steps, device=device)
        self.history, self.best = [], None

    def state(self) -> dict:
        parts = ("model", "optimizer", "schedule")
        state = {name: getattr(self, name).state_dict() for name in parts}
        progress = ("epoch", "batch", "losses", "history", "best")
        return state | {"progress": {name: getattr(self, name) for name in progress}}

    def load_state(self, state: dict) -> None:
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        vars(self).update(state["progress"])
        self.losses = self.losses.to(self.device) * (RANK == 0)  # they are rank 0's

    def load(self, batches: list) -> DataLoader:
        """Batches of this process's share of each batch of positions."""
        shares = [batch[RANK::WORLD].tolist() for batch in batches if len(batch) > RANK]
        return DataLoader(
            self.dataset,
            batch_sampler=shares,
            num_workers=self.args.workers,
            pin_memory=self.device.type == "cuda",
        )

    def step(self, x: torch.Tensor, y: torch.Tensor, clips: int) -> torch.Tensor:
        """Learns from this process's share of a batch of `clips` -> the sum of its losses."""
        self.optimizer.zero_grad()  # before the activations need memory
        x, y = (tensor.to(self.device, non_blocking=True) for tensor in (x, y))
        with self.autocast:
            logits = self.network(self.change(x))
        losses = F.cross_entropy(logits.float(), y, reduction="none")
        loss = (losses * self.class_weights[y]).sum()
        (loss * (WORLD / clips)).backward()  # DistributedDataParallel divides by WORLD
        # Gradient centralisation (Yong et al. 2020). What enters a dense layer after ReLU is
        # positive: to change all weights of a unit alike moves the logits of all clips at once.
        for weight in self.centred:
            weight.grad -= weight.grad.mean(tuple(range(1, weight.ndim)), keepdim=True)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def train_epoch(self, after_step: Callable) -> float:
        """Goes on from `self.batch` to the epoch's end -> mean training loss per clip."""
        args = self.args
        # Near-equal batches: a runt at the end would unsettle the batch-norms.
        order = np.random.default_rng([args.seed, self.epoch]).permutation(self.split["train"])
        batches = np.array_split(order, self.steps)
        self.model.train()
        bar = tqdm(
            self.load(batches[self.batch :]),
            f"epoch {self.epoch}/{args.epochs}",
            self.steps,
            initial=self.batch,
            unit="batch",
            leave=False,
            delay=2,
            disable=None if RANK == 0 else True,
        )
        for x, y in bar:
            step = (self.epoch - 1) * self.steps + self.batch
            torch.manual_seed((args.seed * 1_000_003 + step) * WORLD + RANK)
            self.losses[self.batch] = self.step(x, y, len(batches[self.batch]))
            self.batch += 1
            after_step()
        losses = self.losses.clone()
        if WORLD > 1:
            torch.distributed.all_reduce(losses)
        if not losses.isfinite().all():
            batch = int((~losses.isfinite()).nonzero()[0])
            raise Diverged(f"loss {losses[batch]:g} in epoch {self.epoch}, batch {batch + 1}")
        # oneDNN's max-pooling takes nan for the lowest number: the loss does not show it.
        if not all(tensor.isfinite().all() for tensor in self.model.state_dict().values()):
            raise Diverged(f"weights that are no numbers in epoch {self.epoch}")
        return losses.sum().item() / len(order)

    def predict(self, name: str, autocast=None) -> np.ndarray:
        """Logits (N, C) of the clips of one side of the split, each process computing its share."""
        positions = self.split[name]  # in ascending order
        batches = np.array_split(positions, -(-len(positions) // self.args.batch_size) or 1)
        logits = predict_logits(self.model, (x for x, _ in self.load(batches)), autocast)
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
        if not self.args.patience or not self.best or loss < self.best["loss"]:
            weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"epoch": self.epoch, "loss": loss, "weights": weights}
        names = ("epoch", "train_loss", "val_loss", "val_accuracy")
        return dict(zip(names, (self.epoch, train_loss, loss, accuracy), strict=True))

    def stale(self) -> bool:
        """No better epoch within `patience`; never without validation clips."""
        return bool(self.best) and 0 < self.args.patience <= self.epoch - 1 - self.best["epoch"]

    def fit(self, save=None, on_epoch=None) -> None:
        """Trains to the end and leaves the chosen epoch's weights in the model.

        Args:
            save: called with `state()` every CHECKPOINT_SECONDS and at an interruption.
            on_epoch: called with each epoch's record.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM.
            Diverged: NaN in the first epoch; in a later one the best epoch so far is kept.
        """
        due = time.monotonic() + CHECKPOINT_SECONDS
        with noted_signals() as signals:

            def after_step():
                nonlocal due
                if save and (signals or time.monotonic() > due):
                    save(self.state())
                    due = time.monotonic() + CHECKPOINT_SECONDS
                if signals:
                    raise Interrupted(signals[0])

            while self.epoch <= self.args.epochs:
                if self.stale():
                    epoch, patience = self.best["epoch"], self.args.patience
                    say(f"no better epoch in {patience}: the weights of epoch {epoch} are kept")
                    break
                started = time.monotonic()
                try:
                    record = self.validate(self.train_epoch(after_step))
                except Diverged as error:
                    if not self.best:
                        raise
                    say(f"{error}: stopped, the weights of epoch {self.best['epoch']} are kept")
                    break
                except (RuntimeError, InputError):  # a lost process, GPU memory, a lost clip:
                    if save:  # it came between two optimizer steps, so the state is whole
                        save(self.state())
                    raise
                self.history.append(record)
                self.epoch, self.batch = self.epoch + 1, 0
                say(_epoch_line(record, self.args.epochs, time.monotonic() - started))
                if on_epoch:
                    on_epoch(record)
        self.model.load_state_dict(self.best["weights"])


def _epoch_line(record: dict, epochs: int, seconds: float) -> str:
    line = f"epoch {record['epoch']:3}/{epochs}  train loss {record['train_loss']:.4f}"
    if record["val_loss"] is not None:
        line += f"  val loss {record['val_loss']:.4f}  val accuracy {record['val_accuracy']:.3f}"
    return f"{line}  {seconds:.1f} s"


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T for which softmax(logits / T) fits the labels best (Guo et al. 2017); 1 without any."""
    if not len(labels):
        return 1.0
    from scipy.optimize import minimize_scalar

    def loss(log_t):
        scaled = torch.from_numpy(logits / np.exp(log_t))
        return F.cross_entropy(scaled, torch.from_numpy(labels)).item()

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


# --- weights files ------------------------------------------------------------------------------

MODELS = {"cnn": CNNDNN, "lstm": LSTMClassifier}
LARGEST_ARGUMENT, MOST_LAYERS = 2**24, 1000  # a header that asks for more lies


def versions() -> dict:
    """The versions that a result depends on."""
    packages = {"torch": torch.__version__, "numpy": np.__version__}
    return {"python": platform.python_version(), **packages}


def fingerprint(participant: str) -> str:
    """Tells whether training saw a participant, without the weights naming anybody."""
    return hashlib.sha256(participant.encode()).hexdigest()[:16]


def save_weights(path: str | Path, model: nn.Module, metadata: dict) -> None:
    """Writes a safetensors file that load_weights rebuilds the model from."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    # One entry: safetensors writes several in an order that differs from run to run.
    header = {"speech-depression": json.dumps(metadata, sort_keys=True)}
    with write_atomically(path) as temporary:
        temporary.write_bytes(to_safetensors(tensors, header))


def makes_shape(sound: dict | None, shape) -> bool:
    """Whether these settings turn recordings into clips (M, T), within bounded memory."""
    if sound is None:  # not known
        return True
    names = ("sample_rate", "clip_seconds", "n_fft", "hop_length", "n_mels")
    rate, seconds, window, hop, bins = numbers = [sound[name] for name in names]
    return (
        all(type(n) is int and n > 0 for n in numbers)
        and 1_000 <= rate <= 1_000_000
        and [bins, rate * seconds // hop + 1] == list(shape)
        and max(rate * seconds, window * max(shape)) <= 2**28
    )


def _check(metadata: dict) -> None:
    """Raises unless the scripts find what they read: much of it by reading it as they do."""
    shape, arguments, data = (metadata[name] for name in ("shape", "arguments", "data"))
    json.dumps(metadata, ensure_ascii=False).encode()  # halves of characters cannot be shown
    [data["participants"][side] for side, _ in data["clips"].items()]
    [report.cell(metadata["test"][level][key]) for level in report.LEVELS for key in report.METRICS]
    _ = data["corpus"], data["split"], set(data["seen"])
    _ = metadata["versions"].items()
    numbers = [n for name, n in arguments.items() if name not in ("steps", "pool")]
    usable = {
        "arguments": all(type(n) in (int, float) and 0 <= n <= LARGEST_ARGUMENT for n in numbers)
        and (arguments.get("num_layers", 1) <= MOST_LAYERS and arguments.get("emphasis", 0) < 1),
        "shape": shape == [arguments["n_mels"], arguments["n_frames"]]
        and all(type(n) is int and n > 0 for n in shape)
        and shape[0] * shape[1] <= MAX_CLIP_BYTES,
        "temperature": 0.01 <= metadata["temperature"] <= 100,
        "preprocessing": makes_shape(metadata["preprocessing"]["sound"], shape),
        "data": type(data["synthetic"]) is bool,
        "class_names": metadata["class_names"] == list(CLASS_NAMES),  # else a verdict is inverted
    }
    if wrong := [f"{name} {metadata[name]}"[:80] for name, good in usable.items() if not good]:
        raise ValueError(f"unusable {', '.join(wrong)}")


def _rebuild(metadata: dict, tensors: dict) -> nn.Module:
    with torch.device("meta"):  # no memory is taken for what the file does not hold
        model = MODELS[metadata["model"]](**metadata["arguments"])
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    model.load_state_dict(tensors, assign=True)
    if not all(t.dtype == kinds[name] and t.isfinite().all() for name, t in tensors.items()):
        raise ValueError("weights that are not finite float32 numbers")
    return model.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def load_weights(path: str | Path) -> tuple[nn.Module, dict]:
    """Rebuilds a model from a file of save_weights.

    Returns:
        The model in eval mode, and the metadata: model, arguments, shape (M, T), preprocessing,
        class_names, temperature, data, test, versions.

    Raises:
        InputError: no such file, not one of ours, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {})["speech-depression"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check(metadata)
        return _rebuild(metadata, tensors), metadata
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except KeyError as error:
        raise InputError(
            f"{path}: no weights of this project ({error} is missing); train_cnn.py or "
            "train_lstm.py make them"
        ) from error
    except Exception as error:  # lies in a header end in a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: damaged, or no weights file: {reason}") from error
