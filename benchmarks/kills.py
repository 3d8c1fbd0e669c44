"""Kills training again and again, resumes it, and compares the weights with an undisturbed run's.

    python benchmarks/kills.py --kills 50

SIGKILL comes at a random moment after the first epoch: while a clip is read, a checkpoint is
written, the weights are renamed. What counts is the outcome: the same bytes in the end, and never
a file that does not load.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import common
from speech.cli import Parser, at_least, run

from conftest import data_flags, write_clips, write_weights

# The script with a checkpoint after every step, so that many kills fall into its writing.
TRAIN = """
import common, train_lstm
from speech.cli import run
common.CHECKPOINT_SECONDS = 0
run(train_lstm.main)
"""
MOST_TRIES = 10  # per kill that counts
BEGUN = "epoch   1/"  # half of such a short run is imports: a kill there shows nothing
WRITE = """
import itertools, sys, common
models = [common.load_weights(path) for path in sys.argv[2:]]
for number, model in enumerate(itertools.cycle(models)):
    common.save_weights(sys.argv[1], *model)
    print("wrote" * (number == 0), end="\\n" * (number == 0), flush=True)
"""


def start(code, *arguments, line):
    """Starts code in a process of its own -> the process, once it has printed such a line."""
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n"
    command = [sys.executable, "-c", path + code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not any(text.startswith(line) for text in process.stdout):
        sys.exit(process.communicate()[1])
    return process


def finish(process):
    """Waits for the end -> seconds until then."""
    started = time.monotonic()
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(errors)
    return time.monotonic() - started


def kill(process, delay):
    """Kills the process after so many seconds -> whether it was still running."""
    time.sleep(delay)
    process.kill()
    process.communicate()
    return process.returncode < 0


def kill_training(folder, kills, rng):
    """Returns in how many of `kills` interrupted runs the resumed weights were the same bytes."""
    flags = [*data_flags(folder), "--epochs", 10, "--batch-size", 8, "--members", 1]
    whole, cut = folder / "whole.safetensors", folder / "cut.safetensors"
    usual = finish(start(TRAIN, *flags, "--weights", whole, line=BEGUN))
    killed = torn = same = 0
    for _ in range(MOST_TRIES * kills):
        if killed == kills:
            break
        cut.unlink(missing_ok=True)
        running = kill(start(TRAIN, *flags, "--weights", cut, line=BEGUN), rng.uniform(0, usual))
        if not (running and cut.with_suffix(".checkpoint").exists()):
            continue  # it was done: nothing to resume
        killed += 1
        torn += any(folder.glob(".*.tmp"))
        finish(start(TRAIN, *flags, "--weights", cut, "--resume", line="going on from"))
        same += cut.read_bytes() == whole.read_bytes()
        print(f"training: {killed} kills, {torn} in mid-write, {same} same weights", flush=True)
    return same


def kill_writing(folder, kills, rng):
    """Returns after how many of `kills` in mid-write the weights were those of before or after."""
    path, temporary = folder / "written.safetensors", folder / ".written.safetensors.tmp"
    models = [write_weights(folder / f"{seed}.safetensors", seed=seed) for seed in (0, 1)]
    contents = [model.read_bytes() for model in models]
    killed = whole = 0
    for _ in range(MOST_TRIES * kills):
        if killed == kills:
            break
        temporary.unlink(missing_ok=True)
        kill(start(WRITE, path, *models, line="wrote"), rng.uniform(0, 0.1))
        common.load_weights(path)
        killed += (torn := temporary.exists())
        whole += torn and path.read_bytes() in contents
        print(f"writing: {killed} kills in mid-write, {whole} times a whole file", flush=True)
    return whole


def main():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=at_least(1), default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        clips = write_clips(Path(folder) / "clips")
        same = kill_training(clips, args.kills, rng)
        whole = kill_writing(clips, args.kills, rng)
    print(f"{same} of {args.kills} same weights, {whole} of {args.kills} loadable")
    return int(same + whole < 2 * args.kills)


if __name__ == "__main__":
    run(main)
