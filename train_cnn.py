"""Trains the CNN-DNN on Spectrograms/*.npy and dataset.csv.

python train_cnn.py --epochs 20
"""

import argparse

from common import CNNDNN, MOST_ROTATIONS
from experiment import train, training_parser
from speech.cli import at_least, run

SEARCH = {"dropout": (0.0, 0.7)}  # what tune.py may choose of this model's flags


def make_parser() -> argparse.ArgumentParser:
    parser = training_parser(
        "cnn",
        __doc__,
        epochs=20,  # the notebook's
        batch_size=32,  # the notebook's
        lr=0.001,  # the notebook's, here the peak of a cycle
        weight_decay=0.05,  # 32.7 million weights learn from a few hundred clips
        centralise=True,  # AUROC .83 -> .90: without it the dense layers learn levels, not speech
    )
    add, share = parser.add_argument_group("model").add_argument, at_least(0, float, below=1)
    emphasis = "of changes from frame to frame, below 1; 0 is the notebook's input"
    add("--emphasis", metavar="A", type=share, default=0.9, help=emphasis)  # AUROC .90 -> .93
    dropout = "of the dense layers"
    add("--dropout", metavar="P", type=share, default=0.5, help=dropout)  # the notebook's
    turned = "of the features in time, whose mean answers; 1 is the notebook's"
    count = at_least(1, below=MOST_ROTATIONS + 1)
    add("--rotations", metavar="N", type=count, default=4, help=turned)  # nemo5: .71 -> .74
    return parser


def build(args: argparse.Namespace, n_mels: int, n_frames: int) -> CNNDNN:
    return CNNDNN(
        n_mels,
        n_frames,
        dropout=args.dropout,
        emphasis=args.emphasis,
        rotations=args.rotations,
    )


def main() -> int:
    return train(make_parser(), build)


if __name__ == "__main__":
    run(main)
