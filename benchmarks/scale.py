"""What training, predict.py and prepare.py cost as the work grows: seconds and memory.

    python benchmarks/scale.py train_lstm.py --clips 500 5000 50000
    python benchmarks/scale.py predict.py --clips 500 5000
    python benchmarks/scale.py prepare.py --minutes 10 60

The clips are links to twenty files and the sessions one file of noise: what is measured is what
grows with their number. Start is until the first epoch begins. The costs are linear, and memory
flat, if the last column hardly changes and the one before it does not grow.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from speech.cli import Parser, at_least, run

import numpy as np
import pandas as pd
import soundfile

ROOT = Path(__file__).parent.parent
FILES, SHAPE, PEOPLE = 20, (128, 251), 20
RATE = 16_000


def write_dataset(folder: Path, clips: int) -> list[str]:
    """Writes `clips` links and their labels -> the flags that name them."""
    (spectrograms := folder / "Spectrograms").mkdir()
    rng = np.random.default_rng(0)
    for number in range(FILES):
        np.save(folder / f"{number}.npy", rng.random(SHAPE, np.float32))
    people = [number % PEOPLE for number in range(clips)]
    ids = [f"S{person:02}_clip_{number}" for number, person in enumerate(people)]
    for number, clip in enumerate(ids):
        os.link(folder / f"{people[number]}.npy", spectrograms / f"{clip}.npy")
    labels = [person % 2 for person in people]
    pd.DataFrame({"id": ids, "label": labels}).to_csv(folder / "dataset.csv", index=False)
    return ["--spectrograms", str(spectrograms), "--labels", str(folder / "dataset.csv")]


def follow(command: list[str]) -> tuple[list[tuple[float, str]], float, int]:
    """Runs a script -> its lines with the second of each, all seconds, MiB at its peak."""
    started = time.monotonic()
    words = [sys.executable, "-u", str(ROOT / command[0]), *command[1:]]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tempfile.gettempdir())
    lines = [(time.monotonic() - started, line) for line in process.stdout]
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return lines, time.monotonic() - started, usage.ru_maxrss // unit


def time_training(script: str, folder: Path, clips: int) -> tuple[str, int, float]:
    flags = ["--epochs", "1", "--patience", "0", "--members", "1", "--weights", f"{folder}/w/"]
    lines, seconds, peak = follow([script, *write_dataset(folder, clips), *flags])
    start = next(at for at, line in lines if line.startswith("training on"))
    epoch = next(float(found[1]) for _, line in lines if (found := re.search(r"([\d.]+) s$", line)))
    rest = seconds - start - epoch
    return f"start {start:.1f} s, epoch {epoch:.1f} s, test and report {rest:.1f} s", peak, seconds


def time_predictions(script: str, folder: Path, clips: int) -> tuple[str, int, float]:
    write_dataset(folder, clips)
    command = [script, str(folder / "Spectrograms"), "--csv", str(folder / "p.csv")]
    _, seconds, peak = follow([*command, "--weights", str(ROOT / "examples")])
    return f"{seconds:.1f} s", peak, seconds


def time_preparing(script: str, folder: Path, minutes: int) -> tuple[str, int, float]:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE * 60)
    with soundfile.SoundFile(folder / "s.wav", "w", RATE, 1) as file:
        for _ in range(minutes):
            file.write(noise)
    (folder / "labels.csv").write_text("file,label\ns.wav,0\n")
    command = [script, str(folder), "--labels", str(folder / "labels.csv"), "--jobs", "1"]
    _, seconds, peak = follow([*command, "--out", str(folder / "out")])
    return f"{seconds:.1f} s", peak, seconds


def measure(args: argparse.Namespace) -> Iterator[str]:
    """The lines of a Markdown table."""
    time_one = {"predict.py": time_predictions, "prepare.py": time_preparing}
    in_minutes = args.script == "prepare.py"
    unit, per, scale = ("minutes", "s", 1) if in_minutes else ("clips", "ms", 1000)
    yield f"| {args.script}, {unit} | | peak MiB | {per} for one more |\n|---|---|---|---|"
    before = None
    for size in args.minutes if in_minutes else args.clips:
        with tempfile.TemporaryDirectory() as folder:
            function = time_one.get(args.script, time_training)
            words, peak, seconds = function(args.script, Path(folder), size)
        more = f"{scale * (seconds - before[1]) / (size - before[0]):.2f}" if before else ""
        yield f"| {size} | {words} | {peak} | {more} |"
        before = size, seconds


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("script", help="train_lstm.py or another training script, predict.py or prepare.py")
    size = {"metavar": "N", "nargs": "+", "type": at_least(1)}
    add("--clips", default=[500, 5000, 50_000, 100_000], help="in ascending order", **size)
    add("--minutes", default=[10, 60], help="of a session, in ascending order", **size)
    for line in measure(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    run(main)
