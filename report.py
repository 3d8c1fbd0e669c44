"""Scores runs made with --folds as one: averages their out-of-fold logits, clip by clip.

python report.py cv/cnn.json cv/lstm.json
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from speech.cli import InputError, Parser, check_format, run
from speech.report import REPORT_FORMAT, format_summary, summarize_predictions

# What looking for predictions in any other file raises; a deeply nested one the RecursionError.
NO_REPORT = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def check_predictions(frame: pd.DataFrame) -> None:
    """Raises one of NO_REPORT unless every row has what scoring needs."""
    genders = frame["gender"].dropna() if "gender" in frame else []
    "".join([*frame["id"], *frame["participant"], *genders]).encode()  # raises unless all are text
    labels, logits = frame["label"].isin((0, 1)), np.isfinite(frame["logit"].astype(float))
    if frame.empty or not (frame["id"].is_unique and labels.all() and logits.all()):
        raise ValueError("expected a row per clip, labels of 0 or 1 and finite logits")


def read_run(path: str) -> tuple[pd.DataFrame, dict | None, str]:
    """What train_*.py --folds wrote -> (predictions by id, the baseline's summary, SHA-256)."""
    try:
        content = json.loads(Path(path).read_bytes())
        check_format(content, REPORT_FORMAT)
        pooled, sha256 = content["out_of_fold"], content["data"]["sha256"]
        frame, baseline = pd.DataFrame(pooled["predictions"]), pooled.get("linear")
        check_predictions(frame)
        if baseline:
            format_summary(path, baseline, baseline)  # raises unless it can be shown
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except NO_REPORT as error:
        reason = "no out-of-fold predictions that can be read; train with --folds"
        raise InputError(f"{path}: {reason}") from error
    frame = frame.sort_values("id", ignore_index=True)
    return frame.astype({"logit": float, "label": int}), baseline, sha256


def average_runs(paths: list[str]) -> tuple[pd.DataFrame, dict | None]:
    """Runs on the same clips -> (predictions with their mean logit, the first one's baseline)."""
    runs = [read_run(path) for path in paths]
    frame, baseline, sha256 = runs[0]
    same = ["id", "participant", "label"]
    for path, (other, _, other_sha256) in zip(paths, runs, strict=True):
        if other_sha256 != sha256 or not other[same].equals(frame[same]):
            raise InputError(f"{path}: its clips or labels are not those of {paths[0]}")
    logit = np.mean([other["logit"] for other, _, _ in runs], axis=0)
    return frame.assign(logit=logit, probability=expit(logit)), baseline


def main() -> None:
    parser = Parser(description="Scores runs made with --folds as one ensemble.")
    parser.add_argument("runs", nargs="+", metavar="RUN.json", help="from train_*.py --folds K")
    paths = parser.parse_args().runs
    frame, baseline = average_runs(paths)
    title = f"Mean logit of {', '.join(paths)}"
    print(format_summary(title, summarize_predictions(frame), baseline))


if __name__ == "__main__":
    run(main)
