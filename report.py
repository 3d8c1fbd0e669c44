"""Scores runs made with --folds as one, their mean logit clip by clip, and compares them in pairs.

python report.py cv/cnn.json cv/lstm.json
"""

import json
from itertools import combinations

from speech.cli import InputError, Parser, check_format, print_lines, read_file, run
from speech.report import (
    FEWEST_PEOPLE,
    METRICS,
    REPORT_FORMAT,
    count_people,
    format_row,
    format_score,
    format_summary,
    interval,
    resample,
    score_predictions,
    summarize_predictions,
)

import numpy as np
import pandas as pd
from scipy.special import expit

COMPARED = ("auroc", "balanced_accuracy")  # of METRICS

# What looking for predictions in any other file raises; a deeply nested one the RecursionError.
NO_REPORT = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def check_predictions(frame: pd.DataFrame) -> None:
    """Raises one of NO_REPORT unless every row has what scoring needs."""
    genders = frame["gender"].dropna() if "gender" in frame else []
    "".join([*frame["id"], *frame["participant"], *genders]).encode()  # raises unless all are text
    labels, logits = frame["label"].isin((0, 1)), np.isfinite(frame["logit"].astype(float))
    if frame.empty or not (frame["id"].is_unique and labels.all() and logits.all()):
        raise ValueError("expected a row per clip, labels of 0 or 1 and finite logits")


def read_run(path: str) -> tuple[pd.DataFrame, dict | None, dict]:
    """What train_*.py --folds wrote -> (predictions by id, the baseline's summary, its data)."""
    try:
        content = json.loads(read_file(path))
        check_format(content, REPORT_FORMAT)
        pooled, data = content["out_of_fold"], dict(content["data"])
        _ = data["sha256"]
        frame, baseline = pd.DataFrame(pooled["predictions"]), pooled.get("linear")
        check_predictions(frame)
        if baseline:
            format_summary(path, baseline, baseline)  # raises unless it can be shown
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except NO_REPORT as error:
        reason = "no out-of-fold predictions that can be read; train with --folds"
        raise InputError(f"{path}: {reason}") from error
    frame = frame.sort_values("id", ignore_index=True)
    return frame.astype({"logit": float, "label": int}), baseline, data


def read_runs(paths: list[str]) -> tuple[list[pd.DataFrame], dict | None]:
    """Runs on the same clips -> (each one's predictions, the first one's baseline).

    What a run does not say of its clips, as an earlier version's, is taken for the same.
    """
    runs = [read_run(path) for path in paths]
    first, baseline, known = runs[0]
    same = ["id", "participant", "label"]
    for path, (other, _, data) in zip(paths, runs, strict=True):
        differing = {name for name in data.keys() & known.keys() if data[name] != known[name]}
        if differing & {"sha256", "content"} or not other[same].equals(first[same]):
            raise InputError(f"{path}: its clips or labels are not those of {paths[0]}")
        if "split" in differing and "clip" in (data["split"], known["split"]):
            found = f"split by {data['split']}, {paths[0]} by {known['split']}"
            raise InputError(f"{path}: {found}: with people on both sides scores are optimistic")
        folds = [frame.get("fold", pd.Series()).astype(str).tolist() for frame in (first, other)]
        if differing & {"split", "folds"} or (all(folds) and folds[0] != folds[1]):
            print_lines(f"note: {path} has other folds than {paths[0]}")
    return [frame.assign(probability=expit(frame["logit"])) for frame, _, _ in runs], baseline


def average_runs(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """The predictions of the runs' mean logit."""
    logit = np.mean([frame["logit"] for frame in frames], axis=0)
    return frames[0].assign(logit=logit, probability=expit(logit))


def compare_pair(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, dict]:
    """How much better `one` scores the same clips: COMPARED, with 95% intervals over people.

    Paired: both are scored on the same resamples of the people, so that what is hard for both, or
    easy, cancels out.
    """
    differences = pd.DataFrame(resample(one) - resample(other), columns=list(METRICS))
    n_smaller, scores = count_people(one)["smaller"], {}
    for name in COMPARED:
        value, *draws = differences[name]
        draws = np.array(draws)[~np.isnan(draws)]
        scores[name] = dict.fromkeys(("value", "low", "high"))
        if not np.isnan(value):
            low, high = -1.0, 1.0  # the smaller class varies: too few for a bootstrap
            if n_smaller >= FEWEST_PEOPLE:
                low, high = interval(draws, value, n_smaller) if draws.any() else (0.0, 0.0)
            scores[name] = {"value": value, "low": low, "high": high}
    return scores


def format_pairs(paths: list[str], frames: list[pd.DataFrame]) -> list[str]:
    """Each run's scores of clips, and the difference of every two, with what it means."""
    lines = [format_row("", [METRICS[name].title for name in COMPARED])]
    for path, frame in zip(paths, frames, strict=True):
        scores = score_predictions(frame)
        lines.append(path)
        lines.append(format_row("", [format_score(scores[name]) for name in COMPARED]))
    for (path, one), (other_path, other) in combinations(zip(paths, frames, strict=True), 2):
        scores = compare_pair(one, other)
        lines.append(f"{path} minus {other_path}, paired, over people: {explain(scores['auroc'])}")
        lines.append(format_row("", [format_score(scores[name]) for name in COMPARED]))
    return lines


def explain(difference: dict) -> str:
    """What an interval of a difference in AUROC says."""
    if difference["value"] is None:
        return "undefined (one class)"
    if difference["low"] > 0:
        return "the first is better"
    if difference["high"] < 0:
        return "the second is better"
    return "no significant difference"


def main() -> None:
    parser = Parser(description="Scores runs made with --folds as one ensemble, and in pairs.")
    parser.add_argument("runs", nargs="+", metavar="RUN.json", help="from train_*.py --folds K")
    paths = parser.parse_args().runs
    frames, baseline = read_runs(paths)
    title = f"Mean logit of {', '.join(paths)}"
    summary = summarize_predictions(average_runs(frames))
    print_lines(*format_summary(title, summary, baseline).split("\n"))
    if len(paths) > 1:
        print_lines("", *format_pairs(paths, frames))


if __name__ == "__main__":
    run(main)
