"""A run's numbers and pictures: metrics with intervals over people, the linear yardstick, plots.

    python report.py weights/cnn.json weights/lstm.json

scores runs made with --folds as one: it averages their out-of-fold logits, clip by clip.

Shapes: N clips, P participants, R bootstrap resamples, M mel bins, T frames. A frame of
predictions has a row per clip: id, label (1 = Depressed), participant, probability, maybe gender.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import betaincinv, expit, ndtr, stdtrit

from dataset import InputError, Parser, run

# scikit-learn and matplotlib are imported where they are used: a second that predicting saves.

THRESHOLD = 0.5  # probability from which the verdict is Depressed
TAIL = 0.025  # on each side of a 95% interval
FEWEST_PEOPLE = 5  # for a bootstrap: of four people its interval holds the truth 82-87% of the time
RESAMPLES_AT_ONCE = 250  # keeps memory near 50 MB
BINS = 10  # of the calibration error and the reliability diagram
NAMES = {
    "accuracy": "accuracy",
    "majority_accuracy": "  majority class",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "f1": "F1 of Depressed",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "brier": "Brier (0 is best)",
}
METRICS = tuple(NAMES)
CLASS_NAMES = ("Not Depressed", "Depressed")
LEVELS = {"clips": "clips", "participants": "people"}
UNDEFINED = "undefined (one class)"
BLUE, RED, GREY = "#0072B2", "#D55E00", "#777777"  # Okabe & Ito: everyone can tell them apart


# --- metrics ----------------------------------------------------------------------------------


def point_values(labels, probabilities):
    """Every metric by scikit-learn; None where a class that it needs is missing."""
    from sklearn import metrics

    verdicts = probabilities >= THRESHOLD
    depressed, others = labels.any(), not labels.all()
    both = depressed and others
    return {
        "accuracy": metrics.accuracy_score(labels, verdicts),
        "majority_accuracy": float(max(labels.mean(), 1 - labels.mean())),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, verdicts) if both else None,
        "sensitivity": metrics.recall_score(labels, verdicts) if depressed else None,
        "specificity": metrics.recall_score(~labels, ~verdicts) if others else None,
        "f1": metrics.f1_score(labels, verdicts) if depressed else None,
        "macro_f1": metrics.f1_score(labels, verdicts, average="macro") if both else None,
        "auroc": metrics.roc_auc_score(labels, probabilities) if both else None,
        "brier": metrics.brier_score_loss(labels, probabilities),
    }


def draw_people(people, resamples, seed):
    """How often each of P people is drawn in a resample, a portion of the (R, P) at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        yield rng.multinomial(people, np.full(people, 1 / people), size).astype(float)


def resampled_values(labels, probabilities, people, weights):
    """The METRICS under weights (R, P) -> (R, 9); NaN where a class was not drawn."""
    verdicts = probabilities >= THRESHOLD
    majority = labels if labels.mean() >= 0.5 else ~labels  # the same class in every resample
    sums = [labels & verdicts, ~labels & ~verdicts, labels, ~labels, verdicts, majority]
    sums = np.column_stack([*sums, (probabilities - labels) ** 2])
    sums = weights @ pd.DataFrame(sums).groupby(people).sum().to_numpy()
    hits, rejections, depressed, others, named, majority, errors = sums.T
    clips = depressed + others
    depressed[depressed == 0] = others[others == 0] = np.nan
    sensitivity, specificity = hits / depressed, rejections / others
    f1 = 2 * hits / (depressed + named)
    macro_f1 = f1 / 2 + rejections / (others + clips - named)
    auroc = concordant_pairs(labels, probabilities, people, weights) / (depressed * others)
    rates = [(hits + rejections) / clips, majority / clips, (sensitivity + specificity) / 2]
    return np.array([*rates, sensitivity, specificity, f1, macro_f1, auroc, errors / clips]).T


def concordant_pairs(labels, probabilities, people, weights):
    """Weighted pairs in which the Depressed clip has the higher probability, ties 1/2 -> (R,)."""
    order = np.argsort(probabilities[~labels])
    others, owners = probabilities[~labels][order], people[~labels][order]
    below = np.pad(weights[:, owners].cumsum(axis=1), ((0, 0), (1, 0)))  # of the k lowest
    first, last = (np.searchsorted(others, probabilities[labels], s) for s in ("left", "right"))
    return (weights[:, people[labels]] * (below[:, first] + below[:, last])).sum(axis=1) / 2


def interval(draws, value, n):
    """95% interval of a metric that n people carry, from its resampled values (R,).

    Percentiles, expanded for few people: Hesterberg (2015), "What Teachers Should Know About the
    Bootstrap". A resample never leaves the range of what was seen, which says little of four
    people and nothing of a perfect score: there it is Clopper and Pearson's interval for
    value * n successes in n, which is wide and errs on the safe side.
    """
    if value is None:
        return None, None
    draws = draws[~np.isnan(draws)]
    perfect = value in (0, 1) and np.all(draws == value)
    if n < FEWEST_PEOPLE or perfect or not len(draws):
        low = betaincinv(value * n, n - value * n + 1, TAIL) if value > 0 else 0
        high = betaincinv(value * n + 1, n - value * n, 1 - TAIL) if value < 1 else 1
        return float(low), float(high)
    tail = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, TAIL))
    return tuple(map(float, np.quantile(draws, [tail, 1 - tail])))


def score(labels, probabilities, participants, resamples=2000, seed=0):
    """Every metric with its 95% interval, from a bootstrap that draws people and not clips.

    Takes (N,) each: labels 0 or 1, probabilities of Depressed, and whose clip it is. Returns
    {metric: {"value", "low", "high"}}, all three None where one class leaves it undefined.
    """
    labels, probabilities = np.asarray(labels, bool), np.asarray(probabilities, float)
    people = np.unique(np.asarray(participants, str), return_inverse=True)[1]
    everyone = int(people.max()) + 1
    portions = draw_people(everyone, resamples, seed)
    draws = np.vstack([resampled_values(labels, probabilities, people, w) for w in portions])
    values = point_values(labels, probabilities)
    depressed, others = (len(np.unique(people[side])) for side in (labels, ~labels))
    carriers = dict.fromkeys(("accuracy", "majority_accuracy", "brier"), everyone)
    carriers |= {"sensitivity": depressed, "specificity": others}
    fewest = min(depressed, others) or everyone
    table = {}
    for (metric, value), draw in zip(values.items(), draws.T, strict=True):
        low, high = interval(draw, value, carriers.get(metric, fewest))
        table[metric] = {"value": value, "low": low, "high": high}
    return table


# --- summaries --------------------------------------------------------------------------------


def reliability(frame):
    """Clips, summed probability and number Depressed in each of BINS equal steps, (BINS,) each."""
    bins = np.minimum((frame["probability"].to_numpy() * BINS).astype(int), BINS - 1)
    return [np.bincount(bins, w, BINS) for w in (None, frame["probability"], frame["label"])]


def tables(frame):
    """Scores of a set of clips and of its people (their mean probability), and how many they are.

    A participant with both labels counts once for each, as two people, and is drawn as one.
    """
    people = frame.groupby(["participant", "label"], as_index=False)["probability"].mean()
    persons = people["participant"].nunique()
    _, expected, observed = reliability(frame)
    return {
        "clips": score(frame["label"], frame["probability"], frame["participant"]),
        "participants": score(people["label"], people["probability"], people["participant"]),
        "n_clips": len(frame),
        "n_participants": persons,
        "n_depressed_participants": int(people["label"].sum()),
        "mixed": len(people) - persons,
        "calibration_error": float(np.abs(expected - observed).sum() / len(frame)),
    }


def summarise(frame):
    """The tables of a frame of predictions, and under "genders" those of each gender it names."""
    gender = frame.get("gender", pd.Series(None, frame.index, dtype=object)).replace("", None)
    genders = {str(name): tables(rows) for name, rows in frame.groupby(gender.to_numpy())}
    return tables(frame) | {"genders": genders, "clips_without_gender": int(gender.isna().sum())}


def across_folds(folds):
    """Mean and sd (n - 1) of each metric over the folds whose table, made by score, defines it."""
    spread = {}
    for metric in METRICS:
        values = [fold[metric]["value"] for fold in folds if fold[metric]["value"] is not None]
        mean = float(np.mean(values)) if values else None
        spread[metric] = {"mean": mean, "sd": float(np.std(values, ddof=1)) if values[1:] else None}
    return spread


# --- linear yardstick -------------------------------------------------------------------------


def linear_features(spectrogram):
    """Mean and standard deviation over time of each mel bin, (M, T) -> (2M,)."""
    return np.concatenate([spectrogram.mean(axis=1), spectrogram.std(axis=1)])


def fit_linear(features, labels):
    """Logistic regression on standardised features (N, 2M); ValueError with one class.

    C = 0.1 because it makes the harder yardstick: AUROC .830 against .813 with scikit-learn's 1
    (ravdess12, 6 folds by participant, mean of 3 seeds).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return model.fit(features, labels)


# --- text -------------------------------------------------------------------------------------


def describe(summary):
    """The clips and the people behind a table, in words."""
    people, depressed = summary["n_participants"], summary["n_depressed_participants"]
    text = f"{summary['n_clips']} clips of {people} {'person' if people == 1 else 'people'}"
    return f"{text}, {depressed} Depressed"


def cell(entry):
    defined = entry["value"] is not None
    return "{value:.3f} [{low:.2f}, {high:.2f}]".format(**entry) if defined else UNDEFINED


def row(name, cells):
    """A line of a table. Labels decide what is undefined: one cell says it for those after it."""
    cells = cells[: cells.index(UNDEFINED) + 1] if UNDEFINED in cells else cells
    return (f"{name:<19}" + "".join(f"{text:<20}" for text in cells)).rstrip()


def detail_rows(summary):
    """The spread over folds, and the tables of each gender."""
    shown = ("accuracy", "majority_accuracy", "balanced_accuracy", "auroc")
    lines = []
    if spread := summary.get("folds"):
        cells = [spread[metric] for metric in shown if spread[metric]["sd"] is not None]
        cells = ["{mean:.3f} (sd {sd:.3f})".format(**entry) for entry in cells]
        lines.append(row("mean of folds", cells))
    for gender, group in summary["genders"].items():
        lines.append(f"{gender}: {describe(group)}")
        for level, name in LEVELS.items():
            lines.append(row(f"  {name}", [cell(group[level][metric]) for metric in shown]))
    if summary["genders"] and summary["clips_without_gender"]:
        lines.append(f"unknown: {summary['clips_without_gender']} clips, not scored apart")
    return ["", row("", [NAMES[metric].strip() for metric in shown]), *lines] if lines else []


def verdict(network, linear):
    """Whether the network beats the linear model on the same clips, by AUROC where it exists."""
    ours, theirs = network["clips"]["auroc"], linear["clips"]["auroc"]
    if ours["value"] is None:
        return "Clips of one class cannot tell whether the network beats the linear model."
    people = f"{network['n_participants']} people"
    scores = f"(AUROC {ours['value']:.3f} to {theirs['value']:.3f}, {people})"
    if ours["value"] <= theirs["value"]:
        return f"The network does NOT beat the linear model {scores}: not worth its name."
    doubt = ", but not by enough to be sure" if ours["low"] <= theirs["value"] else ""
    return f"The network beats the linear model {scores}{doubt}."


def format_summary(title, summary, linear_summary=None):
    """A run's tables as text of at most 100 columns; the last line is the verdict."""
    models = [summary, linear_summary] if linear_summary else [summary]
    columns = [(model, level) for level in LEVELS for model in models]
    kinds = (": network", ": linear") if linear_summary else ("",)
    lines = [title, f"{describe(summary)}. In brackets: 95% interval over people."]
    if mixed := summary["mixed"]:
        lines.append(f"{mixed} of them have clips of both labels, and count as a person for each.")
    lines += ["", row("", [name + kind for name in LEVELS.values() for kind in kinds])]
    for metric, name in NAMES.items():
        lines.append(row(name, [cell(model[level][metric]) for model, level in columns]))
    lines.append(row("calibration error", [f"{m['calibration_error']:.3f}" for m in models]))
    lines += detail_rows(summary)
    lines += ["", verdict(summary, linear_summary)] if linear_summary else []
    return "\n".join(lines)


# --- pictures ---------------------------------------------------------------------------------


def plot(path, history, frame, summary, best_epoch, title=""):
    """Writes a PNG: learning curves, confusion matrix, ROC and reliability, all over clips.

    Under --folds `history` is a list of histories and `best_epoch` a list of epochs.
    """
    import matplotlib
    from matplotlib.figure import Figure

    folds = bool(history) and isinstance(history[0], list)
    runs = list(zip(history, best_epoch, strict=True)) if folds else [(history, best_epoch)]
    fonts = {"font.size": 8, "axes.titlesize": 9, "legend.fontsize": 7, "legend.frameon": False}
    layout = [["loss", "accuracy", "confusion"], ["roc", "reliability", "reliability"]]
    with matplotlib.rc_context(fonts):
        figure = Figure(figsize=(9, 6), dpi=200, layout="constrained")  # 900 px wide in a README
        axes = figure.subplot_mosaic(layout)
        draw_curves(axes["loss"], runs, "loss")
        draw_curves(axes["accuracy"], runs, "accuracy")
        draw_confusion(axes["confusion"], frame)
        draw_roc(axes["roc"], frame, summary)
        draw_reliability(axes["reliability"], frame, summary)
        ours, majority = (cell(summary["clips"][m]) for m in ("accuracy", "majority_accuracy"))
        heading = [title, describe(summary), f"accuracy {ours}, majority class {majority}"]
        figure.suptitle("\n".join(filter(None, heading)), fontsize=9)
        figure.savefig(path, format="png")


def draw_curves(axes, runs, name):
    """Loss or accuracy by epoch, a line for each fold, a dot where validation chose."""
    many = len(runs) > 1
    for fold, (history, best) in enumerate(runs):
        for side, colour, style in (("train", BLUE, ".-"), ("val", RED, ".--")):
            columns = ["epoch", f"{side}_{name}"]
            line = pd.DataFrame(history, columns=columns, dtype=float).set_index("epoch").dropna()
            if line.empty:
                continue
            look = {"color": colour, "alpha": 0.4 if many else 1}
            label = {"train": "training", "val": "validation"}[side]
            axes.plot(line, style, ms=3, label=None if fold else label, **look)
            if side == "val" and best in line.index:
                label = "chosen" if many else f"chosen: epoch {best}"
                axes.plot(best, line.loc[best], "o", label=None if fold else label, **look)
    axes.set(title=f"{name}, {len(runs)} folds" if many else name, xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.lines:
        axes.legend()
    else:
        say(axes, "no validation split")


def say(axes, text):
    axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def draw_confusion(axes, frame):
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(frame["label"], frame["probability"] >= THRESHOLD, labels=[0, 1])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for (label, named), share in np.ndenumerate(shares):
        text = f"{counts[label, named]}\n{share:.0%}" if counts[label].any() else "no clips"
        look = {"color": "black" if share > 0.5 else "white", "size": 11}
        axes.text(named, label, text, ha="center", va="center", **look)
    axes.set(title="clips, and % of their label", xlabel="verdict", ylabel="label")
    axes.set_xticks([0, 1], CLASS_NAMES)
    axes.set_yticks([0, 1], CLASS_NAMES, rotation=90, va="center")


def draw_roc(axes, frame, summary):
    """The ROC over those of 200 resamples of the people."""
    from sklearn.metrics import roc_curve

    axes.set(title="ROC, and in 200 resamples of the people", aspect="equal")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    auroc = summary["clips"]["auroc"]
    if auroc["value"] is None:
        return say(axes, UNDEFINED)
    people = np.unique(frame["participant"].astype(str), return_inverse=True)[1]
    for weights in next(draw_people(people.max() + 1, 200, seed=0))[:, people]:
        if frame["label"][weights > 0].nunique() == 2:
            curve = roc_curve(frame["label"], frame["probability"], sample_weight=weights)
            axes.plot(*curve[:2], color=BLUE, alpha=0.04)
    axes.plot([0, 1], [0, 1], ":", color=GREY)
    curve = roc_curve(frame["label"], frame["probability"])
    axes.plot(*curve[:2], color=BLUE, label=f"AUROC {cell(auroc)}")
    axes.legend(loc="lower right")


def draw_reliability(axes, frame, summary):
    bins = np.array(reliability(frame))
    clips, expected, observed = bins[:, bins[0] > 0]
    axes.plot([0, 1], [0, 1], ":", color=GREY)
    axes.plot(expected / clips, observed / clips, "o-", color=BLUE)
    for n, x, y in zip(clips, expected / clips, observed / clips, strict=True):
        axes.annotate(f"{n:.0f}", (x, y), (0, 6), textcoords="offset points", ha="center")
    error = f"calibration error {summary['calibration_error']:.3f}"
    axes.set(title=f"reliability in {BINS} bins, with their clips: {error}")
    axes.set(xlabel="mean probability of Depressed", ylabel="share Depressed")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.12))


# --- command line -----------------------------------------------------------------------------


def read_run(path):
    """What train_*.py --folds wrote -> (frame of predictions by id, linear summary, SHA-256)."""
    try:
        run = json.loads(Path(path).read_text(encoding="utf-8"))
        pooled, sha256 = run["out_of_fold"], run["data"]["sha256"]
        frame = pd.DataFrame(pooled["predictions"]).sort_values("id", ignore_index=True)
        return frame.astype({"logit": float, "label": int}), pooled.get("linear"), sha256
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no out-of-fold predictions in it; train with --folds") from error


def average_runs(paths):
    """Runs on the same clips -> (frame with their mean logit, the first one's linear summary)."""
    runs = [read_run(path) for path in paths]
    frame, linear, sha256 = runs[0]
    same = ["id", "participant", "label"]
    for path, (other, _, other_sha256) in zip(paths, runs, strict=True):
        if other_sha256 != sha256 or not other[same].equals(frame[same]):
            raise InputError(f"{path}: its clips or labels are not those of {paths[0]}")
    logit = np.mean([other["logit"] for other, _, _ in runs], axis=0)
    return frame.assign(logit=logit, probability=expit(logit)), linear


def main():
    parser = Parser(description="Scores runs made with --folds as one ensemble.")
    parser.add_argument("runs", nargs="+", metavar="RUN.json", help="from train_*.py --folds K")
    paths = parser.parse_args().runs
    frame, linear = average_runs(paths)
    print(format_summary(f"Mean logit of {', '.join(paths)}", summarise(frame), linear))


if __name__ == "__main__":
    run(main)
