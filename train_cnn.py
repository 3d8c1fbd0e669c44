"""Trains the CNN-DNN on Spectrograms/*.npy and dataset.csv.

python train_cnn.py --epochs 20
"""

from functools import partial

from dataset import at_least, run
from recipe import Recipe, train


def add_arguments(add):
    share = at_least(0, float, below=1)
    emphasis = "of changes from frame to frame, below 1; 0 is the notebook's input"
    add("--emphasis", metavar="A", type=share, default=0.9, help=emphasis)
    add("--dropout", metavar="P", type=share, default=0.5, help="of the dense layers")


RECIPE = Recipe(
    name="cnn",  # common.CNNDNN
    defaults={
        "epochs": 20,
        "batch_size": 32,
        "lr": 0.001,
        "weight_decay": 0.05,
        "centralise": True,
    },
    add_arguments=add_arguments,
    arguments=("emphasis", "dropout"),
)

main = partial(train, RECIPE)

if __name__ == "__main__":
    run(main)
