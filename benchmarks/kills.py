"""Kills training again and again, resumes it, and compares the weights with an undisturbed run's.

    python benchmarks/kills.py --kills 50

SIGKILL comes at a random moment: while a clip is read, a checkpoint is written, the weights are
renamed. What counts is the outcome: the same bytes in the end, and never a file that does not load.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import write_clips

import common

# The script with a checkpoint after every step, so that many kills fall into its writing.
TRAIN = "import common, train_lstm; common.CHECKPOINT_SECONDS = 0; common.run(train_lstm.main)"
WRITE = """
import sys, common
from conftest import write_weights
while True:
    write_weights(sys.argv[1], "lstm", (128, 251))
"""


def start(code, *arguments):
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    command = [sys.executable, "-c", path + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def seconds_of_an_undisturbed_run(flags, out):
    started = time.monotonic()
    process = start(TRAIN, *flags, "--weights", out)
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(errors)
    return time.monotonic() - started


def kill_training(folder, kills, rng):
    """Returns in how many of `kills` interrupted runs the resumed weights were the same bytes."""
    flags = ["--spectrograms", folder / "Spectrograms", "--labels", folder / "dataset.csv"]
    flags += ["--epochs", 30, "--batch-size", 8]
    whole, cut = folder / "whole.safetensors", folder / "cut.safetensors"
    usual = seconds_of_an_undisturbed_run(flags, whole)
    same = cut_short = 0
    for number in range(1, kills + 1):
        cut.unlink(missing_ok=True)
        resume = []
        while not cut.exists() or resume == []:
            process = start(TRAIN, *flags, "--weights", cut, *resume)
            try:
                process.communicate(timeout=rng.uniform(0.3, 1.0) * usual if not resume else 600)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                cut_short += 1
            resume = ["--resume"]
        same += cut.read_bytes() == whole.read_bytes()
        print(f"training: {number} runs, {cut_short} killed, {same} with the same weights")
    return same


def kill_writing(folder, kills, rng):
    """Returns after how many of `kills` in mid-write the weights file still loaded."""
    path = folder / "written.safetensors"
    loaded = 0
    for number in range(1, kills + 1):
        process = start(WRITE, path)
        while not path.exists():
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        common.load_weights(path)
        loaded += 1
        print(f"writing: {number} kills, {loaded} times the file loads")
        if number % 5:  # most kills overwrite an old file, some make the first one
            continue
        path.unlink()
    return loaded


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        clips = write_clips(Path(folder) / "clips")
        same = kill_training(clips, args.kills, rng)
        loaded = kill_writing(clips, args.kills, rng)
    print(f"{same} of {args.kills} same weights, {loaded} of {args.kills} loadable")
    return int(same + loaded < 2 * args.kills)


if __name__ == "__main__":
    sys.exit(main())
