"""Predictions of clips whose labels are known: joined with them, and report.py's pictures."""

import io
from collections.abc import Iterator

from speech import report
from speech.audio import SOUND
from speech.cli import InputError, join_names
from speech.dataset import compose
from speech.verdict import NO_VERDICT, Row

import pandas as pd


def strip_suffixes(labels: pd.DataFrame, names: set[str]) -> pd.DataFrame:
    """Labels whose ids are a recording's name: interview.wav, which clips call interview."""
    bare = labels["id"].str.replace(f"(?i){SOUND}$", "", regex=True)
    kept = labels["id"].isin(names) | bare.duplicated(keep=False)
    bare = bare.mask(kept, labels["id"])
    people = labels["participant"].mask(labels["participant"] == labels["id"], bare)
    return labels.assign(id=bare, participant=people)


def match_labels(rows: list[Row], labels: pd.DataFrame) -> pd.DataFrame:
    """The clips that have a label, their own or their recording's, as report.py scores them.

    Raises:
        InputError: a label could be that of several files, whose names are the same.
    """
    clips = [row for row in rows if row.clip and row.probability is not None]
    clips = pd.DataFrame(clips, columns=Row._fields)
    for name in ("clip", "participant"):
        clips[name] = clips[name].map(compose)
    labels = strip_suffixes(labels, {*clips["clip"], *clips["participant"]})
    own = clips["clip"].isin(labels["id"])
    ids = clips["clip"].where(own, clips["participant"])
    people = clips.groupby("clip")["participant"].transform("nunique")
    unclear = ids.isin(labels["id"]) & ((own & clips["clip"].duplicated(keep=False)) | (people > 1))
    if unclear.any():
        named = join_names(clips["clip"][unclear].unique(), 3)
        raise InputError(f"labels: several files have clips named {named}: rename the files")
    clips = clips.assign(id=ids, answered=clips["verdict"] != NO_VERDICT)
    return labels.merge(clips[["id", "probability", "answered"]], on="id")


def draw_scores(known: pd.DataFrame) -> Iterator[tuple[str, bytes]]:
    """Yields report.py's pictures that need no training, each with what it shows, as PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    summary = report.summarize_predictions(known)
    pictures = {
        "Confusion matrix": (report.draw_confusion,),
        "ROC": (report.draw_roc, summary["clips"]["auroc"]),
        "Reliability": (report.draw_reliability, report.format_calibration(summary)),
        "Risk against coverage": (report.draw_risk, summary.get("answered")),
    }
    with matplotlib.rc_context({"font.size": 8, "legend.frameon": False}):
        for name, (draw, *more) in pictures.items():
            figure = Figure(figsize=(3.2, 3.2), dpi=200, layout="constrained")
            draw(figure.subplots(), known, *more)
            figure.savefig(file := io.BytesIO(), format="png")
            yield name, file.getvalue()
