"""report.py as a user runs it: runs averaged; anything else refused in one line."""

import copy
import json
import os

import report
from speech.report import (
    REPORT_FORMAT,
    format_summary,
    score_predictions,
    summarize_predictions,
)

import numpy as np
import pandas as pd
import pytest
from conftest import FUZZ, call_script, error_line
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit


def predict(seed, people=12, clips=4):
    """What a run predicts for the same clips, whatever the seed."""
    person = np.repeat(np.arange(people), clips)
    return pd.DataFrame(
        {
            "id": [f"{p:03}_clip_{8 * i}" for i, p in enumerate(person)],
            "participant": person.astype(str),
            "label": person % 3 // 2,
            "gender": [[None, "female", "male"][p % 5 % 3] for p in person],
            "logit": np.random.default_rng(seed).normal(size=len(person)) + person % 3 // 2,
        }
    )


def content(frame, sha256="abc", **more):
    """What train_*.py --folds writes of a run, as far as report.py reads it."""
    predictions = frame.astype(object).where(frame.notna(), None).to_dict("list")
    pooled = {"predictions": predictions, **more}
    return {"format": REPORT_FORMAT, "out_of_fold": pooled, "data": {"sha256": sha256}}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    return write


def summarize(frame):
    return summarize_predictions(frame.assign(probability=expit(frame["logit"])))


def test_ensemble_is_the_mean_of_the_logits(write):
    one, other = predict(0), predict(1)
    linear = summarize(predict(2))
    shuffled = other.sample(frac=1, random_state=0)
    paths = write("cnn.json", content(one, linear=linear)), write("lstm.json", content(shuffled))
    process = call_script("report.py", *paths)
    together = summarize(one.assign(logit=(one["logit"] + other["logit"]) / 2))
    title = f"Mean logit of {', '.join(paths)}"
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith(format_summary(title, together, linear) + "\n\n")
    assert "female: " in process.stdout and "the linear baseline" in process.stdout


def test_a_report_from_before_the_formats_is_read(write):
    today = content(predict(0), linear=summarize(predict(1)))
    old = copy.deepcopy(today)
    del old["format"], old["out_of_fold"]["linear"]["clips"]["brier"]
    old["out_of_fold"]["linear"]["clips"]["gone"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    new, old = (call_script("report.py", write("run.json", run)) for run in (today, old))
    assert (old.returncode, old.stderr) == (0, "")
    changed = [row for row in new.stdout.splitlines() if row not in old.stdout.splitlines()]
    assert [row.split()[0] for row in changed] == ["Brier"]


def test_runs_on_other_clips_are_refused_in_one_line(write):
    frame = predict(0)
    good = write("good.json", content(frame))
    others = {
        "ids": content(frame.assign(id=frame["id"] + "x")),
        "fewer": content(frame[1:]),
        "labels": content(frame.assign(label=1 - frame["label"])),
        "people": content(frame.assign(participant="1")),
        "sha256": content(frame, sha256="abd"),
    }
    for name, other in others.items():
        process = call_script("report.py", good, write(f"{name}.json", other))
        line = error_line(process)
        assert f"{name}.json: its clips or labels are not those of {good}" in line
        assert not process.stdout


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"12",
        b'{"format": 1}',
        b'{"test": {}, "data": {"sha256": "abc"}}',
        b"\x89PNG\r\n\x1a\n\x00\x00",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"1" * 5000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, data):
    path = tmp_path / "run.json"
    path.write_bytes(data)
    assert f"{path}: no out-of-fold predictions" in error_line(call_script("report.py", path))


def test_missing_files_folders_and_newer_formats_are_refused_in_one_line(tmp_path, write):
    for path in (tmp_path / "missing.json", tmp_path):
        assert str(path) in error_line(call_script("report.py", path))
    for number in (REPORT_FORMAT + 1, 0, "2", True, None):
        path = write("run.json", content(predict(0)) | {"format": number})
        line = error_line(call_script("report.py", path))
        assert path in line and f"reads 1 to {REPORT_FORMAT}" in line


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.drop(columns="id"),
        lambda f: f.drop(columns="label"),
        lambda f: f.drop(columns="participant"),
        lambda f: f.drop(columns="logit"),
        lambda f: f[:0],
        lambda f: f.assign(id=f["id"][0]),
        lambda f: f.assign(id=range(len(f))),
        lambda f: f.assign(participant=[[]] * len(f)),
        lambda f: f.assign(label=2),
        lambda f: f.assign(label=0.5),
        lambda f: f.assign(label="1"),
        lambda f: f.assign(logit=np.inf),
        lambda f: f.assign(logit="x"),
        lambda f: f.assign(gender=1),
        lambda f: f.assign(gender="\ud800"),
    ],
)
def test_damaged_predictions_are_refused_in_one_line(write, damage):
    path = write("run.json", content(damage(predict(0))))
    assert f"{path}: no out-of-fold predictions" in error_line(call_script("report.py", path))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
JUNK = st.just("\ud800") | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(tree):
    """Every (container, key) in nested dicts and lists."""
    for key, inner in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(inner, dict | list):
            yield from places(inner)


@pytest.fixture(scope="module")
def small_run():
    frame = predict(0, people=3, clips=2)
    return content(frame, linear=summarize(frame))


@settings(max_examples=FUZZ // 20, deadline=None)
@given(data=st.data())
def test_fuzzed_reports_are_read_or_refused_in_one_line(small_run, tmp_path_factory, data):
    run = copy.deepcopy(small_run)
    container, key = data.draw(st.sampled_from(list(places(run))))
    if data.draw(st.booleans()):
        container[key] = data.draw(JUNK)
    else:
        del container[key]
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(run))
    process = call_script("report.py", path)
    if process.returncode:
        assert str(path) in error_line(process)


# --- which is better ----------------------------------------------------------------------------


def test_a_better_run_is_told_from_luck(write):
    frame = predict(0, people=40)
    good = frame.assign(logit=frame["logit"] + 3 * (2 * frame["label"] - 1))
    again = frame.assign(logit=frame["logit"] + 1e-3 * np.arange(len(frame)) % 2)
    paths = [write(f"{name}.json", content(f)) for name, f in (("a", frame), ("b", good))]
    text = call_script("report.py", *paths).stdout
    assert f"{paths[0]} minus {paths[1]}, paired, over people: the second is better" in text
    text = call_script("report.py", *reversed(paths)).stdout
    assert "over people: the first is better" in text
    text = call_script("report.py", paths[0], write("c.json", content(again))).stdout
    assert "over people: no significant difference" in text
    assert "paired" not in call_script("report.py", paths[0]).stdout


def test_a_paired_difference_is_that_of_the_scores_and_narrower_than_their_intervals():
    frame = summarizable(predict(0, people=40))
    other = summarizable(
        predict(0, people=40).assign(logit=lambda f: f["logit"] + 0.3 * f["label"])
    )
    difference = report.compare_pair(other, frame)["auroc"]
    scores = [score_predictions(f)["auroc"] for f in (other, frame)]
    assert difference["value"] == pytest.approx(scores[0]["value"] - scores[1]["value"])
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert difference["high"] - difference["low"] < scores[0]["high"] - scores[0]["low"]
    swapped = report.compare_pair(frame, other)["auroc"]
    assert swapped["low"] == pytest.approx(-difference["high"], abs=0.005)
    assert set(report.compare_pair(frame, frame)["auroc"].values()) == {0.0}
    # 20 people, 4 of them Depressed: it is the four who vary.
    few = frame[frame["label"].eq(0) | frame["participant"].isin(["2", "5", "8", "11"])]
    assert report.compare_pair(few, few)["auroc"] == {"value": 0.0, "low": -1.0, "high": 1.0}
    some = frame[frame["label"].eq(0) | frame["participant"].isin(["2", "5", "8", "11", "14"])]
    assert set(report.compare_pair(some, some)["auroc"].values()) == {0.0}  # some draws lack them


def summarizable(frame):
    return frame.assign(probability=expit(frame["logit"]))


def known(frame, **data):
    run = content(frame)
    return run | {"data": run["data"] | data}


def test_runs_whose_clips_have_changed_are_refused(write):
    """The table of labels can be the same while half of the clips are others."""
    frame = predict(0)
    old, one = write("old.json", known(frame)), write("a.json", known(frame, content="1"))
    assert call_script("report.py", one, old).returncode == 0
    line = error_line(call_script("report.py", one, write("b.json", known(frame, content="2"))))
    assert "b.json: its clips or labels are not those of" in line


def test_runs_by_clip_and_by_people_are_no_ensemble_and_other_folds_are_noted(write):
    frame = predict(0).assign(fold=1)
    one = write("a.json", known(frame, split="participant", folds=6))
    line = error_line(
        call_script("report.py", one, write("b.json", known(frame, split="clip", folds=6)))
    )
    assert "b.json: split by clip" in line and "optimistic" in line
    same = write("c.json", known(predict(1).assign(fold=1), split="participant", folds=6))
    assert "note:" not in call_script("report.py", one, same).stdout
    for name, other in {
        "folds": known(frame, split="participant", folds=12),
        "seed": known(frame.assign(fold=frame["label"]), split="participant", folds=6),
        "given": known(frame, split="given", folds=6),
    }.items():
        process = call_script("report.py", one, path := write(f"{name}.json", other))
        assert process.returncode == 0
        assert process.stdout.startswith(f"note: {path} has other folds than {one}\n")


def test_no_gender_and_no_name_forges_a_line(tmp_path):
    frame = predict(0).assign(gender="f\nAUROC 0.999\x1b[31m")
    paths = [tmp_path / name for name in ("a\nAUROC 0.998.json", "b.json")]
    for path in paths:
        path.write_text(json.dumps(content(frame)))
    text = call_script("report.py", *paths).stdout
    assert r"f\nAUROC 0.999\x1b[31m: 48 clips" in text and r"a\nAUROC 0.998.json" in text
    assert "\nAUROC 0" not in text and "\x1b" not in text


def test_a_pipe_is_no_report(tmp_path):
    os.mkfifo(tmp_path / "r.json")
    line = error_line(call_script("report.py", tmp_path / "r.json"))
    assert "r.json: not a regular file" in line
