"""Trains the LSTM on Spectrograms/*.npy and dataset.csv.

python train_lstm.py --epochs 24
"""

from functools import partial

from dataset import at_least, run
from recipe import Recipe, train


def add_arguments(add):
    add("--steps", choices=("time", "mel"), default="time", help="what the LSTM walks along")
    add("--pool", choices=("mean", "last"), default="mean", help="which steps' output decides")
    add("--hidden-size", metavar="UNITS", type=at_least(1), default=128, help="of a layer")
    add("--num-layers", metavar="N", type=at_least(1), default=2, help="one on the other")
    share = at_least(0, float, below=1)
    emphasis = "of changes from frame to frame, below 1; 0 is the notebook's input"
    add("--emphasis", metavar="A", type=share, default=0.9, help=emphasis)
    add("--dropout", metavar="P", type=share, default=0.3, help="before the last")


RECIPE = Recipe(
    name="lstm",  # common.LSTMClassifier
    defaults={
        "epochs": 24,
        "batch_size": 16,
        "lr": 0.003,
        "weight_decay": 0.01,
    },
    add_arguments=add_arguments,
    arguments=("steps", "pool", "hidden_size", "num_layers", "emphasis", "dropout"),
)

main = partial(train, RECIPE)

if __name__ == "__main__":
    run(main)
