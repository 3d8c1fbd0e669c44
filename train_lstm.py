"""Trains the LSTM on Spectrograms/*.npy and dataset.csv.

python train_lstm.py --epochs 40
"""

from functools import partial

from common import Recipe, at_least, run, train


def add_arguments(add):
    add("--steps", choices=("time", "mel"), default="time", help="what the LSTM walks along")
    add("--pool", choices=("mean", "last"), default="mean", help="which steps' output decides")
    add("--hidden-size", metavar="UNITS", type=at_least(1), default=128)
    add("--num-layers", metavar="N", type=at_least(1), default=2)
    add(
        "--dropout",
        metavar="P",
        type=at_least(0, float),
        default=0.3,
        help="before the dense layer",
    )


RECIPE = Recipe(
    name="lstm",  # common.LSTMClassifier
    defaults={
        "epochs": 40,
        "batch_size": 32,
        "lr": 0.003,
        "weight_decay": 0.01,
        "mixup": 0.0,
        "patience": 0,
    },
    add_arguments=add_arguments,
    arguments=("steps", "pool", "hidden_size", "num_layers", "dropout"),
)

main = partial(train, RECIPE)

if __name__ == "__main__":
    run(main)
