"""The notebooks' training loops beside ours, epoch by epoch in turn.

    python benchmarks/notebooks.py --epochs 1

Times each epoch of the notebooks' CNN and LSTM loops (restated from their description: fp32,
Adam, .item() at every step) and of common.Training on the same clips, and measures what a matrix
multiplication reaches here in the same run. Clips are random: speed does not depend on them.
Each loop has a process of its own, as how common takes memory would help the notebooks' too.

Then the answers for one clip and for many, without reading files: the notebooks' way (one clip at
a time, batch-norms apart), predict.py's, the same in the page's memory settings, and ONNX Runtime
and OpenVINO in batches as large as predict.py's, where `pip install onnxruntime openvino onnx`
has been run: no other part of the project needs them.
"""

import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from speech.cli import Parser, at_least, run
from speech.device import multiplies_bf16

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import trange

ROWS = ("notebook", "ours, fp32", "ours, auto", "ours, auto, recipe")
ANSWERS = ("notebook", "predict.py", "the page", "ONNX Runtime", "OpenVINO", "OpenVINO, bf16")
NEEDED = {"ONNX": "onnxruntime", "OpenVINO": "openvino"}  # by the first word of a row
LEAST = 64  # clips answered for in a round: what a process finds cold weighs little
GFLOP_PER_CLIP = {"cnn": 2 * 3 * 0.3356}  # 335.6 MMAC forward; the backward pass costs twice that


# --- the notebooks ------------------------------------------------------------------------------


class NotebookClips(Dataset):
    """CNN-DNN.ipynb's dataset: a channel is added, nothing is checked."""

    def __init__(self, folder, labels):
        self.folder, frame = folder, pd.read_csv(labels)
        self.ids, self.labels = frame["id"].astype(str).tolist(), frame["label"].tolist()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        array = np.load(f"{self.folder}/{self.ids[index]}.npy")
        clip = torch.tensor(array[np.newaxis], dtype=torch.float32)
        return clip, torch.tensor(self.labels[index], dtype=torch.long)


class NotebookCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1)
        self.pool, self.relu, self.dropout = nn.MaxPool2d(2, 2), nn.ReLU(), nn.Dropout(0.5)
        self.batchnorm1, self.batchnorm2 = nn.BatchNorm2d(32), nn.BatchNorm2d(64)
        self.batchnorm3 = nn.BatchNorm2d(128)
        self.fc1, self.fc2 = nn.Linear(63_488, 512), nn.Linear(512, 128)
        self.fc3 = nn.Linear(128, 2)

    def forward(self, x):
        x = self.pool(self.relu(self.batchnorm1(self.conv1(x))))
        x = self.pool(self.relu(self.batchnorm2(self.conv2(x))))
        x = self.pool(self.relu(self.batchnorm3(self.conv3(x))))
        x = self.dropout(self.relu(self.fc1(x.view(x.size(0), -1))))
        return self.fc3(self.dropout(self.relu(self.fc2(x))))


class NotebookLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(251, 128, 2, batch_first=True)
        self.fc, self.dropout = nn.Linear(128, 2), nn.Dropout(0.3)

    def forward(self, x):
        zeros = torch.zeros(2, x.size(0), 128)
        out, _ = self.lstm(x, (zeros, zeros.clone()))
        return self.fc(self.dropout(out[:, -1, :]))


def notebook(name, folder, labels):
    """-> a function that trains one epoch as the notebook does."""
    clips = NotebookClips(folder, labels)
    if name == "lstm":  # LSTM.ipynb holds all clips in memory
        clips = [(clip[0], label) for clip, label in clips]
    loader = DataLoader(clips, batch_size=32, shuffle=True)
    model = NotebookCNN() if name == "cnn" else NotebookLSTM()
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=0.001)

    def epoch():
        model.train()
        running_loss = 0.0
        for spectrograms, targets in loader:
            outputs = model(spectrograms)
            loss = criterion(outputs, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running_loss += loss.item()

    return epoch


# --- ours ---------------------------------------------------------------------------------------


def ours(name, folder, labels, flags):
    """-> a function that trains one epoch as train_cnn.py or train_lstm.py does."""
    from common import SpectrogramDataset  # not above: the notebook's process is to be as it was
    from experiment import load_dataset, parse_training
    from members import make_training

    script = import_module(f"train_{name}")
    paths = ["--spectrograms", str(folder), "--labels", str(labels)]
    flags = [*paths, "--epochs", "1000", "--batch-size", "32", *flags]
    args = parse_training(script.make_parser(), flags)
    clips = load_dataset(args).clips
    everything = np.arange(len(clips.frame))
    split = {"train": everything, "val": everything[:0], "test": everything[:0]}
    dataset = SpectrogramDataset(clips.frame["path"], clips.frame["label"])
    model = script.build(args, *clips.shape)
    training = make_training(args, model, dataset, split, torch.device("cpu"))

    def epoch():
        training.train_epoch(lambda: None)
        training.epoch, training.batch = training.epoch + 1, 0

    return epoch


# --- answers ------------------------------------------------------------------------------------


def make_networks(name):
    """-> the notebook's network and ours, of the same weights."""
    from common import find_model

    torch.manual_seed(0)
    theirs, our = NotebookCNN() if name == "cnn" else NotebookLSTM(), find_model(name)()
    our.load_state_dict(theirs.state_dict())
    return theirs.eval(), our.requires_grad_(False).eval()


def export(name, path):
    """Writes an ONNX file; the newer exporter would write an LSTM as 128 steps of its own."""
    options = {"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(make_networks(name)[1], (torch.rand(2, 128, 251),), path, **options)


def open_onnx(who, path):
    """-> a function of a batch of clips, by ONNX Runtime or OpenVINO."""
    threads = torch.get_num_threads()
    if who == "ONNX Runtime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")  # others are next
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        [known] = session.get_inputs()
        return lambda clips: session.run(None, {known.name: clips})[0]
    import openvino

    hint = "bf16" if "bf16" in who else "f32"
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda clips: compiled(clips)[0]


def answer_as_notebook(network, name, clips):
    with torch.no_grad():
        for clip in clips:
            clip = torch.tensor(clip[np.newaxis], dtype=torch.float32)
            network(clip[np.newaxis] if name == "cnn" else clip)


def make_answers(name, who, path, count):
    """-> a function that answers for `count` clips as `who` does, until they are LEAST in all."""
    from predict import CLIPS_AT_ONCE, predict_probabilities
    from speech.device import keep_little_memory, reuse_freed_memory

    if who == "the page":
        keep_little_memory()
    elif who == "predict.py":
        reuse_freed_memory()
    clips = np.random.default_rng(0).random((count, 128, 251), dtype=np.float32)
    theirs, our = make_networks(name)
    if who == "notebook":
        work = partial(answer_as_notebook, theirs, name, clips)
    elif who in ("predict.py", "the page"):
        our.fold()
        work = partial(predict_probabilities, [(our, {"temperature": 1.0})], clips)
    else:
        answer = open_onnx(who, path)
        batches = [clips[i : i + CLIPS_AT_ONCE] for i in range(0, count, CLIPS_AT_ONCE)]

        def work():
            return [answer(batch) for batch in batches]

    return lambda: [work() for _ in range(repetitions(count))]


def repetitions(count):
    return -(-LEAST // count)


# --- measuring ----------------------------------------------------------------------------------


def write_clips(folder, clips):
    """Random clips as .npy files, and their dataset.csv."""
    rng = np.random.default_rng(0)
    (folder / "Spectrograms").mkdir()
    ids = [f"{i % 7}_clip_{i}" for i in range(clips)]
    for name in ids:
        np.save(folder / "Spectrograms" / f"{name}.npy", rng.random((128, 251), dtype=np.float32))
    pd.DataFrame({"id": ids, "label": np.arange(clips) % 2}).to_csv(folder / "dataset.csv")
    return folder / "Spectrograms", folder / "dataset.csv"


def multiply_rate(dtype, size=4096):
    """GFLOP/s of one large matrix multiplication: the best of three."""
    a = torch.rand(size, size).to(dtype)
    best = min(seconds(lambda: a @ a) for _ in range(3))
    return 2 * size**3 / best / 1e9


def seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def max_memory():
    """KiB of this process at its peak; getrusage tells its parent's, where that was more."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def make_loop(name, who, folder, labels):
    """-> a function that trains one epoch of `name` as `who` does."""
    if who == "notebook":
        return notebook(name, folder, labels)
    flags = ["--precision", "fp32" if "fp32" in who else "auto"]
    if "recipe" not in who:  # what the notebook does, no more
        flags += ["--no-augment", "--no-balance", "--no-centralise", "--emphasis", "0"]
        flags += ["--rotations", "1"] if name == "cnn" else []
        flags += ["--steps", "mel", "--pool", "last"] if name == "lstm" else []
    return ours(name, folder, labels, flags)


def time_rounds(pipe, make, *args):
    """A loop's process: does a round of it whenever asked to, and answers with its seconds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark's process ends this one
    work = make(*args)
    while pipe.recv():
        pipe.send(seconds(work))
    pipe.send(max_memory())


def start(make, *args):
    """-> the pipe to the process of the loop that `make(*args)` gives."""
    pipe, its_end = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process
    process(target=time_rounds, args=(its_end, make, *args), daemon=True).start()
    its_end.close()  # so that a process that fails is noticed
    return pipe


def ask(pipe, wanted):
    pipe.send(wanted)
    return pipe.recv()


def take_turns(pipes, rounds, what):
    """-> of each loop the seconds of its rounds, and its peak in KiB."""
    turns = trange(rounds + 1, desc=what, leave=False)
    taken = [[ask(pipe, True) for pipe in pipes.values()] for _ in turns]
    times = dict(zip(pipes, np.transpose(taken[1:]), strict=True))  # the first warmed up
    return times, {who: ask(pipe, False) for who, pipe in pipes.items()}


def spread(ratios):
    return f"{np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})"


def measure_answers(name, path, rows, count, rounds):
    """Prints the table of one model's answers for `count` clips."""
    pipes = {}
    for who in rows:
        os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(who == "the page"))  # as demo.py has it
        pipes[who] = start(make_answers, name, who, path, count)
    times, peaks = take_turns(pipes, rounds, f"{name}, answers for {count}")
    print(f"\n{name.upper()}, answers for {count} clip(s), {rounds} rounds")
    print(f"{'':20}{'ms/clip':>9}{'x notebook':>20}{'x ONNX Runtime':>20}{'peak MiB':>10}")
    for who, taken in times.items():
        each = np.median(taken) / (repetitions(count) * count) * 1000
        runtime = spread(times["ONNX Runtime"] / taken) if "ONNX Runtime" in times else ""
        faster = spread(times["notebook"] / taken)
        print(f"{who:20}{each:9.2f}{faster:>20}{runtime:>20}{peaks[who] // 1024:10}")


def list_rows():
    """ANSWERS, without those whose packages are not installed; says which."""
    rows = []
    for who in ANSWERS:
        package = NEEDED.get(who.split()[0].strip(","))
        missing = [p for p in (package, "onnx") if package and not find_spec(p)]
        if missing:
            print(f"{who}: skipped, {' and '.join(missing)} not installed")
        elif "bf16" not in who or multiplies_bf16():
            rows.append(who)
    return rows


def measure(name, folder, labels, clips, epochs):
    """Prints the table of one model."""
    pipes = {who: start(make_loop, name, who, folder, labels) for who in ROWS}
    times, peaks = take_turns(pipes, epochs, f"{name}, epochs of each loop")
    print(f"\n{name.upper()}, {clips} clips of (128, 251), batches of 32, {epochs} epoch(s)")
    print(f"{'':20}{'s/epoch':>9}{'x notebook':>12}{'(min-max)':>13}{'GFLOP/s':>9}{'peak MiB':>10}")
    for who, taken in times.items():
        ratios = times["notebook"] / taken
        rate = f"{clips * GFLOP_PER_CLIP[name] / np.median(taken):9.0f}" if name == "cnn" else ""
        spread = f"({ratios.min():.2f}-{ratios.max():.2f})"
        print(
            f"{who:20}{np.median(taken):9.2f}{np.median(ratios):12.2f}{spread:>13}{rate:>9}"
            f"{peaks[who] // 1024:10}"
        )


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=at_least(1), default=3, metavar="N")
    parser.add_argument("--clips", type=at_least(1), default=464, metavar="N", help="theirs: 464")
    parser.add_argument("--answers", type=at_least(1), default=1000, metavar="N", help="clips")
    parser.add_argument("--rounds", type=at_least(1), default=10, metavar="N", help="of answers")
    parser.add_argument("--only-answers", action="store_true", help="no training")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(
        f"{threads} threads, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    )
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix multiplication, {dtype}: {multiply_rate(dtype):.0f} GFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_clips(Path(folder), args.clips)
        for name in () if args.only_answers else ("cnn", "lstm"):
            measure(name, *paths, args.clips, args.epochs)
        rows = list_rows()
        for name in ("cnn", "lstm"):
            path = Path(folder) / f"{name}.onnx"
            if set(rows) & {*ANSWERS[3:]}:
                export(name, path)
            for count in (1, 16, args.answers):
                measure_answers(name, path, rows, count, args.rounds)


if __name__ == "__main__":
    run(main)
