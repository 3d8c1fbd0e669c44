"""A run's numbers and pictures: metrics with intervals over people, the linear baseline, plots.

Shapes: N clips, P participants, R bootstrap resamples, M mel bins, T frames. A frame of
predictions has a row per clip: id, label (1 = Depressed), participant, probability, maybe gender.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from speech.cli import show_controls

import numpy as np
import pandas as pd
from numpy import ndarray as Array
from scipy.special import betaincinv, ndtr, stdtrit

# scikit-learn and matplotlib are imported where they are used: a second that predicting saves.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from sklearn.pipeline import Pipeline

REPORT_FORMAT = 2  # of the JSON beside the weights, under "format"; before it there was no number
THRESHOLD = 0.5  # Depressed from here on: probabilities are calibrated, and both errors cost alike
TAIL = 0.025  # on each side of a 95% interval
FEWEST_PEOPLE = 5  # for a bootstrap: of four people its interval holds the truth 82-87% of the time
RESAMPLES_AT_ONCE = 250  # keeps memory near 80 MB with 10,000 clips
BINS = 10  # of the calibration error and the reliability diagram: some clips in each
CLASS_NAMES = ("Not Depressed", "Depressed")
LEVELS = {"clips": "clips", "participants": "people"}  # key in a summary -> as shown
BRIEFLY = ("accuracy", "majority_accuracy", "balanced_accuracy", "auroc")  # for genders and folds
UNDEFINED = "undefined (one class)"
BLUE, RED, GREY = "#0072B2", "#D55E00", "#777777"  # Okabe & Ito: everyone can tell them apart

Scores = dict[str, dict[str, float | None]]  # {metric: {"value", "low", "high"}}; None: undefined
Runs = list[tuple[list[dict], int]]  # (history, best epoch) of each fold, or of the one run


# --- metrics ----------------------------------------------------------------------------------


class Metric(NamedTuple):
    """All there is to declare of a metric."""

    title: str  # at most 18 characters
    value: Callable[[SimpleNamespace], Array]  # of metric_values' sums -> (R,)
    carried_by: str  # whose number the interval depends on: a key of n_effective


def recall(sums: SimpleNamespace) -> Array:
    """Of each class, (2, R): specificity and sensitivity."""
    return sums.hits / sums.count


def f1(sums: SimpleNamespace) -> Array:
    return 2 * sums.hits / (sums.count + sums.predicted)


METRICS = {
    "accuracy": Metric("accuracy", lambda s: s.hits.sum(axis=0) / s.clips, "people"),
    "majority_accuracy": Metric("  majority class", lambda s: s.majority / s.clips, "people"),
    "balanced_accuracy": Metric("balanced accuracy", lambda s: recall(s).mean(axis=0), "smaller"),
    "sensitivity": Metric("sensitivity", lambda s: recall(s)[1], "positives"),
    "specificity": Metric("specificity", lambda s: recall(s)[0], "negatives"),
    "f1": Metric("F1 of Depressed", lambda s: f1(s)[1], "smaller"),
    "macro_f1": Metric("macro F1", lambda s: f1(s).mean(axis=0), "smaller"),
    "auroc": Metric("AUROC", lambda s: s.concordant / s.count.prod(axis=0), "smaller"),
    "brier": Metric("Brier (0 is best)", lambda s: s.squared_errors / s.clips, "people"),
}


def metric_values(labels: Array, probabilities: Array, weights: Array) -> Array:
    """All METRICS of N clips, each counted as often as `weights` (R, N) says -> (R, metrics).

    Labels are bool. NaN where a metric is undefined, for lack of a class that it needs.
    """
    actual = np.stack([~labels, labels])
    predicted = np.stack([probabilities < THRESHOLD, probabilities >= THRESHOLD])
    # The same class in every resample: a constant answer cannot follow whichever class is larger.
    majority = actual[int(labels.mean() >= 0.5)]
    sums = SimpleNamespace(
        clips=weights.sum(axis=1),  # (R,)
        count=actual @ weights.T,  # of each class (2, R), as are the next two
        predicted=predicted @ weights.T,
        hits=(actual & predicted) @ weights.T,
        concordant=concordant_pairs(labels, probabilities, weights),  # (R,), and so on
        majority=majority @ weights.T,
        squared_errors=(probabilities - labels) ** 2 @ weights.T,
    )
    sums.count[sums.count == 0] = np.nan
    return np.stack([metric.value(sums) for metric in METRICS.values()], axis=1)


def concordant_pairs(labels: Array, probabilities: Array, weights: Array) -> Array:
    """Weighted pairs in which the Depressed clip has the higher probability, ties 1/2 -> (R,)."""
    order = np.flatnonzero(~labels)[np.argsort(probabilities[~labels])]
    below = np.pad(weights[:, order].cumsum(axis=1), ((0, 0), (1, 0)))  # of the k lowest
    negatives, positives = probabilities[order], probabilities[labels]
    first, last = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
    return (weights[:, labels] * (below[:, first] + below[:, last])).sum(axis=1) / 2


def draw_people(n_people: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each of P people is drawn in a resample, a portion of the (R, P) at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        yield rng.multinomial(n_people, np.full(n_people, 1 / n_people), size).astype(float)


def interval(draws: Array, value: float, n: int) -> tuple[float, float]:
    """95% interval of a metric that n people carry, from its resampled values (R,).

    Percentiles, expanded for few people: Hesterberg (2015), "What Teachers Should Know About the
    Bootstrap". Plain ones are too narrow by sqrt((n - 1) / n), and as if the variance were known.
    A resample never leaves the range of what was seen, which says little of four people and
    nothing of a perfect score: there it is Clopper and Pearson's interval for value * n successes
    in n, which is wide and errs on the safe side.
    """
    draws = draws[~np.isnan(draws)]
    perfect = value in (0, 1) and np.all(draws == value)
    if n < FEWEST_PEOPLE or perfect or not len(draws):
        low = betaincinv(value * n, n - value * n + 1, TAIL) if value > 0 else 0
        high = betaincinv(value * n + 1, n - value * n, 1 - TAIL) if value < 1 else 1
        return float(low), float(high)
    tail = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, TAIL))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def resample(frame: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> Array:
    """Every metric as seen, then of a bootstrap that draws people, (1 + R, metrics).

    Clips of a person are alike: drawn one by one, they would seem more evidence than they are. Of
    two models' predictions for the same clips the same people are drawn.
    """
    labels, probabilities = frame["label"].to_numpy(bool), frame["probability"].to_numpy(float)
    people = np.unique(frame["participant"].to_numpy(str), return_inverse=True)[1]
    as_seen = np.ones((1, people.max() + 1))
    portions = chain([as_seen], draw_people(people.max() + 1, resamples, seed))
    return np.vstack([metric_values(labels, probabilities, w[:, people]) for w in portions])


def count_people(frame: pd.DataFrame) -> dict[str, int]:
    """How many people a metric of these clips rests on, by what it is carried by."""
    people, labels = frame["participant"], frame["label"].astype(bool)
    n_people, positives, negatives = (people[which].nunique() for which in (..., labels, ~labels))
    # The smaller class is what varies; F1 is defined without negatives, and rests on everyone then.
    smaller = min(positives, negatives) or n_people
    return dict(people=n_people, positives=positives, negatives=negatives, smaller=smaller)


def score_predictions(frame: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> Scores:
    """Every metric with its 95% interval over people."""
    values, n_effective = resample(frame, resamples, seed), count_people(frame)
    scores: Scores = {}
    for (name, metric), (value, *draws) in zip(METRICS.items(), values.T.tolist(), strict=True):
        scores[name] = {"value": None, "low": None, "high": None}
        if not np.isnan(value):
            low, high = interval(np.array(draws), value, n_effective[metric.carried_by])
            scores[name] = {"value": value, "low": low, "high": high}
    return scores


# --- summaries --------------------------------------------------------------------------------


def reliability(frame: pd.DataFrame) -> Array:
    """Clips, summed probability, number Depressed and its variance, by equal steps -> (4, BINS)."""
    probability = frame["probability"].to_numpy()
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    columns = (None, probability, frame["label"], probability * (1 - probability))
    return np.stack([np.bincount(bins, column, BINS) for column in columns])


def score_tables(frame: pd.DataFrame) -> dict:
    """Scores of a set of clips and of its people (their mean probability), and how many they are.

    A participant with both labels counts once for each, as two people, and is drawn as one.
    """
    people = frame.groupby(["participant", "label"], as_index=False)["probability"].mean()
    n_people = people["participant"].nunique()
    _, expected, observed, variance = reliability(frame)
    return {
        "clips": score_predictions(frame),
        "participants": score_predictions(people),
        "n_clips": len(frame),
        "n_participants": n_people,
        "n_depressed_participants": int(people["label"].sum()),
        "mixed": len(people) - n_people,
        "calibration_error": float(np.abs(expected - observed).sum() / len(frame)),
        # Of a model whose probabilities are right: so few clips never come out even.
        "calibration_chance": float(np.sqrt(2 / np.pi * variance).sum() / len(frame)),
    }


def summarize_predictions(frame: pd.DataFrame) -> dict:
    """The tables of a frame of predictions, and under "genders" those of each gender it names."""
    gender = frame.get("gender", pd.Series(None, frame.index, dtype=object)).replace("", None)
    genders = {str(name): score_tables(rows) for name, rows in frame.groupby(gender.to_numpy())}
    missing = int(gender.isna().sum())
    table = score_tables(frame) | {"genders": genders, "clips_without_gender": missing}
    return table | summarize_abstention(frame)


def summarize_abstention(frame: pd.DataFrame) -> dict:
    """What is left when clips without a verdict are left out, {} where that was not checked.

    Args:
        frame: with a column "answered", bool; NaN where it was not checked.
    """
    if "answered" not in frame or frame["answered"].isna().any():
        return {}
    kept = frame[frame["answered"].astype(bool)]
    counts = {"coverage": len(kept) / len(frame), "no_verdict": len(frame) - len(kept)}
    return {"answered": counts | (score_tables(kept) if len(kept) else {})}


def risk_coverage(frame: pd.DataFrame) -> tuple[Array, Array]:
    """Share of clips answered and share of these that are wrong, the surest first -> (N,), (N,).

    Clips without a verdict come last, whatever their probability (El-Yaniv & Wiener 2010).
    """
    sure = (frame["probability"] - THRESHOLD).abs()
    answered = frame.get("answered", pd.Series(True, frame.index)).fillna(True).astype(bool)
    order = np.lexsort([-sure, ~answered])
    wrong = ((frame["probability"] >= THRESHOLD) != frame["label"].astype(bool)).to_numpy()[order]
    count = np.arange(1, len(frame) + 1)
    return count / len(frame), wrong.cumsum() / count


def score_folds(frame: pd.DataFrame) -> Scores:
    """{metric: {"mean", "sd" (n - 1)}} over the values of "fold" that define it, None over none."""
    folds = [score_predictions(rows, resamples=0) for _, rows in frame.groupby("fold")]
    values = [{name: entry["value"] for name, entry in fold.items()} for fold in folds]
    values = pd.DataFrame(values, dtype=float)
    spread = pd.DataFrame({"mean": values.mean(), "sd": values.std()}).astype(object)
    return spread.where(spread.notna(), None).to_dict("index")


# --- linear baseline --------------------------------------------------------------------------


def fit_baseline(features: Array, labels: Array) -> "Pipeline":
    """Logistic regression on standardised features (N, F); ValueError with one class.

    Features are speech.familiarity's: each bin's mean, standard deviation and mean absolute change.
    Without the change AUROC is .83 instead of .92 (ravdess12): a network must beat the better one.

    C = 0.1 because it makes the harder baseline: AUROC .830 against .813 with scikit-learn's 1
    (ravdess12, 6 folds by participant, mean of 3 seeds).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return model.fit(features, labels)


# --- text -------------------------------------------------------------------------------------


def describe_people(summary: dict) -> str:
    """The clips and the people behind a table, in words."""
    people, depressed = summary["n_participants"], summary["n_depressed_participants"]
    text = f"{summary['n_clips']} clips of {people} {'person' if people == 1 else 'people'}"
    return f"{text}, {depressed} Depressed"


def format_score(entry: dict | None) -> str:
    """A value with its interval, for instance "0.712 [0.60, 0.81]"; of one entry of Scores."""
    if entry is None:  # not in the file, which is of another version
        return "-"
    defined = entry["value"] is not None
    return "{value:.3f} [{low:.2f}, {high:.2f}]".format(**entry) if defined else UNDEFINED


def format_scores(*tables: Scores) -> list[tuple[str, list[str]]]:
    """(title, score in each table) of the METRICS that any has: files of other versions differ."""
    return [
        (metric.title, [format_score(table.get(name)) for table in tables])
        for name, metric in METRICS.items()
        if any(name in table for table in tables)
    ]


def format_row(title: str, cells: list[str]) -> str:
    """A line of a table. Labels decide what is undefined: one cell says it for those after it."""
    cells = cells[: cells.index(UNDEFINED) + 1] if UNDEFINED in cells else cells
    return (f"{title:<19}" + "".join(f"{text:<19} " for text in cells)).rstrip()


def format_group(title: str, group: dict) -> list[str]:
    """Lines about a part of the clips."""
    lines = [f"{show_controls(title)}: {describe_people(group)}"]
    for level, name in LEVELS.items():
        cells = [format_score(group[level].get(metric)) for metric in BRIEFLY]
        lines.append(format_row(f"  {name}", cells))
    return lines


def format_details(summary: dict) -> list[str]:
    """Lines: the spread over folds, the tables of each gender, and of clips with a verdict."""
    lines = []
    if spread := summary.get("folds"):
        entries = [spread[name] for name in BRIEFLY if name in spread]
        cells = ["{mean:.3f} (sd {sd:.3f})".format(**e) for e in entries if e["sd"] is not None]
        lines.append(format_row("mean of folds", cells))
    for gender, group in summary["genders"].items():
        lines += format_group(gender, group)
    left, notes = summary.get("answered"), []
    if left and left["no_verdict"] and "n_clips" in left:
        lines += format_group(f"{left['coverage']:.0%} have a verdict", left)
    elif left:
        notes.append(f"{'every' if left['no_verdict'] else 'no'} clip is without a verdict")
    if summary["genders"] and summary["clips_without_gender"]:
        notes.append(f"unknown gender: {summary['clips_without_gender']} clips, not scored apart")
    heading = format_row("", [METRICS[name].title.strip() for name in BRIEFLY])
    return [*(["", heading, *lines] if lines else []), *(["", *notes] if notes else [])]


def format_calibration(summary: dict) -> str:
    """The calibration error beside the one that chance alone would make."""
    chance = summary.get("calibration_chance")  # older reports have none
    beside = "" if chance is None else f" (chance {chance:.2f})"
    return f"{summary['calibration_error']:.3f}{beside}"


def compare_with_baseline(network: dict, baseline: dict) -> str:
    """Whether the network beats the linear baseline on the same clips, by AUROC."""
    ours, theirs = (summary["clips"].get("auroc") for summary in (network, baseline))
    if None in (ours, theirs) or None in (ours["value"], theirs["value"]):
        return "No comparison with the linear baseline: AUROC needs clips of both classes."
    people = f"{network['n_participants']} people"
    scores = f"(AUROC {ours['value']:.3f} against {theirs['value']:.3f}, {people})"
    if ours["value"] <= theirs["value"]:
        return f"The network does NOT beat the linear baseline {scores}."
    doubt = ", but not by enough to be sure" if ours["low"] <= theirs["value"] else ""
    return f"The network beats the linear baseline {scores}{doubt}."


def format_summary(title: str, summary: dict, baseline: dict | None = None) -> str:
    """Summaries of the same clips as text of at most 100 columns; its last line compares them."""
    models = {": network": summary, ": baseline": baseline} if baseline else {"": summary}
    about = f"{describe_people(summary)}. In brackets: 95% interval over people."
    lines = [show_controls(title), about]
    if mixed := summary["mixed"]:
        lines.append(f"{mixed} of them have clips of both labels, and count as a person for each.")
    lines += ["", format_row("", [name + kind for name in LEVELS.values() for kind in models])]
    tables = [model[level] for level in LEVELS for model in models.values()]
    lines += [format_row(name, cells) for name, cells in format_scores(*tables)]
    errors = [format_calibration(model) for model in models.values()]
    lines += [format_row("calibration error", errors), *format_details(summary)]
    if baseline:
        lines += ["", compare_with_baseline(summary, baseline)]
    return "\n".join(lines)


# --- pictures ---------------------------------------------------------------------------------


def draw_report(path: Path, runs: Runs, frame: pd.DataFrame, summary: dict, title: str) -> None:
    """Writes a PNG: learning curves, confusion, ROC, reliability and risk, all over clips."""
    import matplotlib
    from matplotlib.figure import Figure

    fonts = {"font.size": 8, "axes.titlesize": 9, "legend.fontsize": 7, "legend.frameon": False}
    layout = [["loss", "accuracy", "confusion"], ["roc", "reliability", "risk"]]
    with matplotlib.rc_context(fonts):
        figure = Figure(figsize=(9, 6), dpi=200, layout="constrained")  # 900 px wide in a README
        axes = figure.subplot_mosaic(layout)
        draw_curves(axes["loss"], runs, "loss")
        draw_curves(axes["accuracy"], runs, "accuracy")
        draw_confusion(axes["confusion"], frame)
        draw_roc(axes["roc"], frame, summary["clips"]["auroc"])
        draw_reliability(axes["reliability"], frame, format_calibration(summary))
        draw_risk(axes["risk"], frame, summary.get("answered"))
        names = ("accuracy", "majority_accuracy")
        ours, majority = (format_score(summary["clips"][name]) for name in names)
        heading = [title, describe_people(summary), f"accuracy {ours}, majority class {majority}"]
        figure.suptitle("\n".join(filter(None, heading)), fontsize=9)
        figure.savefig(path, format="png")


def draw_curves(axes: "Axes", runs: Runs, name: str) -> None:
    """Loss or accuracy by epoch, a line for each fold, a dot where validation chose."""
    many = len(runs) > 1
    sides = {"train": ("training", BLUE, ".-"), "val": ("validation", RED, ".--")}
    for side, (label, color, style) in sides.items():
        look = {"color": color, "alpha": 0.4 if many else 1}
        for fold, (history, best) in enumerate(runs):
            values = {row["epoch"]: row.get(f"{side}_{name}") for row in history}
            line = {epoch: value for epoch, value in values.items() if value is not None}
            if line:
                points = list(line), list(line.values())
                axes.plot(*points, style, ms=3, label=None if fold else label, **look)
            if side == "val" and best in line:
                chosen = "chosen" if many else f"chosen: epoch {best}"
                axes.plot(best, line[best], "o", label=None if fold else chosen, **look)
    axes.set(title=f"{name}, {len(runs)} folds" if many else name, xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.lines:
        axes.legend()
    else:
        write_note(axes, "no validation split")


def write_note(axes: "Axes", text: str) -> None:
    """Text where there is nothing to draw."""
    axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def draw_confusion(axes: "Axes", frame: pd.DataFrame) -> None:
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(frame["label"], frame["probability"] >= THRESHOLD, labels=[0, 1])
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for (label, predicted), share in np.ndenumerate(shares):
        text = f"{counts[label, predicted]}\n{share:.0%}" if counts[label].any() else "no clips"
        look = {"color": "black" if share > 0.5 else "white", "size": 11}
        axes.text(predicted, label, text, ha="center", va="center", **look)
    axes.set(title="clips, and % of their label", xlabel="predicted", ylabel="label")
    axes.set_xticks([0, 1], CLASS_NAMES)
    axes.set_yticks([0, 1], CLASS_NAMES, rotation=90, va="center")


def draw_roc(axes: "Axes", frame: pd.DataFrame, auroc: dict) -> None:
    """The ROC over those of 200 resamples of the people."""
    from matplotlib.collections import LineCollection
    from sklearn.metrics import roc_curve

    axes.set(title="ROC, and in 200 resamples of the people", aspect="equal")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    if auroc["value"] is None:
        write_note(axes, UNDEFINED)
        return
    label, probability = frame["label"].to_numpy(), frame["probability"].to_numpy()
    people = np.unique(frame["participant"].astype(str), return_inverse=True)[1]
    resamples = next(draw_people(people.max() + 1, 200, seed=0))[:, people]
    curves = [
        np.column_stack(roc_curve(label, probability, sample_weight=weights)[:2])
        for weights in resamples
        if 0 < label[weights > 0].mean() < 1
    ]
    axes.add_collection(LineCollection(curves, colors=BLUE, alpha=0.04))  # faster than 200 lines
    axes.plot([0, 1], [0, 1], ":", color=GREY)
    axes.plot(*roc_curve(label, probability)[:2], color=BLUE, label=f"AUROC {format_score(auroc)}")
    axes.legend(loc="lower right")


def draw_reliability(axes: "Axes", frame: pd.DataFrame, calibration_error: str) -> None:
    bins = reliability(frame)
    clips, expected, observed, _ = bins[:, bins[0] > 0]
    axes.plot([0, 1], [0, 1], ":", color=GREY)
    axes.plot(expected / clips, observed / clips, "o-", color=BLUE)
    for n, x, y in zip(clips, expected / clips, observed / clips, strict=True):
        axes.annotate(f"{n:.0f}", (x, y), (0, 6), textcoords="offset points", ha="center")
    error = f"calibration error {calibration_error}"
    axes.set(title=f"reliability, with its bins' clips:\n{error}")
    axes.set(xlabel="mean probability of Depressed", ylabel="share Depressed")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.12))


def draw_risk(axes: "Axes", frame: pd.DataFrame, left: dict | None) -> None:
    """Errors among the surest clips, and where those without a verdict begin."""
    coverage, risk = risk_coverage(frame)
    axes.plot(coverage, risk, color=BLUE)
    if left:
        end = left["coverage"]
        axes.axvline(end, ls=":", color=GREY, label=f"{end:.0%} of the clips have a verdict")
        axes.legend(loc="upper left")
    axes.set(title="risk against coverage, the surest first")
    axes.set(xlabel="share of the clips answered", ylabel="share of them wrong")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.02, max(0.5, risk.max()) + 0.05))
