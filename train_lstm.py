"""Trains the LSTM on Spectrograms/*.npy and dataset.csv.

python train_lstm.py --epochs 24
"""

import argparse

from common import LSTMClassifier
from experiment import train, training_parser
from speech.cli import at_least, run

SEARCH = {  # what tune.py may choose of this model's flags
    "dropout": (0.0, 0.7),
    "hidden_size": [32, 64, 128, 256],
    "num_layers": (1, 3),
    "steps": ["time", "mel"],
}


def make_parser() -> argparse.ArgumentParser:
    parser = training_parser(
        "lstm",
        __doc__,
        epochs=24,  # enough with the emphasis; without it 40 were
        batch_size=16,  # a corpus of a few hundred clips is then enough steps; 32 scored no better
        lr=0.003,  # at the peak of a cycle: AUROC .89 -> .91 over the notebook's .001
        weight_decay=0.01,  # PyTorch's default for AdamW
        centralise=False,  # AUROC .93 -> .90: an LSTM's inputs have both signs
        members=5,  # AUROC .94 -> .96 on ravdess12, .84 -> .85 on nemo5; 1 is the notebook's
    )
    add, share = parser.add_argument_group("model").add_argument, at_least(0, float, below=1)
    steps = "what the LSTM walks along; mel is the notebook's"
    add("--steps", choices=("time", "mel"), default="time", help=steps)  # AUROC .63 -> .80
    pool = "which steps' output decides; last is the notebook's"
    add("--pool", choices=("mean", "last"), default="mean", help=pool)  # AUROC .82 -> .89
    hidden, layers = "of a layer", "one on the other"
    add("--hidden-size", metavar="UNITS", type=at_least(1), default=128, help=hidden)
    add("--num-layers", metavar="N", type=at_least(1), default=2, help=layers)  # the notebook's
    emphasis = "of changes from frame to frame, below 1; 0 is the notebook's input"
    add("--emphasis", metavar="A", type=share, default=0.9, help=emphasis)  # AUROC .85 -> .93
    dropout = "before the last layer"
    add("--dropout", metavar="P", type=share, default=0.3, help=dropout)  # the notebook's
    return parser


def build(args: argparse.Namespace, n_mels: int, n_frames: int) -> LSTMClassifier:
    return LSTMClassifier(
        n_mels,
        n_frames,
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        dropout=args.dropout,
        steps=args.steps,
        pool=args.pool,
        emphasis=args.emphasis,
    )


def main() -> int:
    return train(make_parser(), build)


if __name__ == "__main__":
    run(main)
