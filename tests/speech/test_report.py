"""speech/report.py against scikit-learn, hand-computed cases and simulated people."""

import functools
import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

from speech import report
from speech.familiarity import clip_features

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, t
from sklearn import metrics

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.filterwarnings("error"),
    # of what another file's tests left to the garbage collector, which may run here
    pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning"),
]

# scikit-learn's functions, and the labels without which each is undefined.
OF_PREDICTED = {
    "accuracy": (metrics.accuracy_score, set()),
    "balanced_accuracy": (metrics.balanced_accuracy_score, {0, 1}),
    "sensitivity": (metrics.recall_score, {1}),
    "specificity": (functools.partial(metrics.recall_score, pos_label=0), {0}),
    "f1": (metrics.f1_score, {1}),
    "macro_f1": (functools.partial(metrics.f1_score, average="macro"), {0, 1}),
}
OF_PROBABILITIES = {
    "auroc": (metrics.roc_auc_score, {0, 1}),
    "brier": (metrics.brier_score_loss, set()),
}


def simulate(people, seed=0, effect=1.2, mixed=False, clips=(4, 13)):
    """Clips of people who differ: 35% Depressed, probabilities correlated within a person."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), rng.integers(*clips, people))
    label = rng.random(people)[person] < 0.35
    if mixed:
        label = rng.random(len(person)) < 0.35
    voice, noise = rng.normal(0, 0.8, people)[person], rng.normal(0, 0.8, len(person))
    logit = effect * (label - 0.5) + voice + noise
    ids = [f"{p:03}_clip_{8 * i}" for i, p in enumerate(person)]
    columns = {"id": ids, "participant": person.astype(str), "label": label.astype(int)}
    return pd.DataFrame(columns | {"probability": 1 / (1 + np.exp(-logit)), "logit": logit})


def score(labels, probabilities, participants, **options):
    columns = {"label": labels, "probability": probabilities, "participant": participants}
    return report.score_predictions(pd.DataFrame(columns), **options)


def values(table):
    return {metric: entry["value"] for metric, entry in table.items()}


def by_scikit_learn(labels, probabilities):
    predicted = probabilities >= 0.5
    functions = {name: (*row, predicted) for name, row in OF_PREDICTED.items()}
    functions |= {name: (*row, probabilities) for name, row in OF_PROBABILITIES.items()}
    return {
        name: function(labels, argument) if needed <= set(labels) else None
        for name, (function, needed, argument) in functions.items()
    }


CLIPS = st.lists(  # label, probability in tenths (many ties), participant
    st.tuples(st.integers(0, 1), st.integers(0, 10), st.integers(0, 7)), min_size=1, max_size=30
)


# --- metrics ----------------------------------------------------------------------------------


def test_every_metric_by_hand():
    labels = [1, 1, 1, 0, 0, 0, 0, 0]
    probabilities = [0.9, 0.5, 0.2, 0.8, 0.5, 0.3, 0.1, 0.0]
    # Predicted 1 1 0 | 1 1 0 0 0: 2 of 3 hits, 3 of 5 rejections. Pairs won by 0.9: 5; by 0.5: 3
    # and a tie; by 0.2: 2. Squared errors .01 .25 .64 .64 .25 .09 .01 0.
    table = score(labels, probabilities, range(8))
    assert list(table) == list(report.METRICS)
    assert values(table) == pytest.approx(
        {
            "accuracy": 5 / 8,
            "majority_accuracy": 5 / 8,
            "balanced_accuracy": (2 / 3 + 3 / 5) / 2,
            "sensitivity": 2 / 3,
            "specificity": 3 / 5,
            "f1": 4 / 7,
            "macro_f1": (4 / 7 + 6 / 9) / 2,
            "auroc": 10.5 / 15,
            "brier": 1.89 / 8,
        }
    )


@settings(max_examples=100, deadline=None)
@given(clips=CLIPS)
def test_values_are_those_of_scikit_learn(clips):
    labels, tenths, people = np.array(clips).T
    expected = by_scikit_learn(labels, tenths / 10)
    expected["majority_accuracy"] = max(labels.mean(), 1 - labels.mean())
    table = score(labels, tenths / 10, people, resamples=1)
    assert values(table) == pytest.approx(expected, abs=1e-12)
    types = {name: {type(number) for number in entry.values()} for name, entry in table.items()}
    assert types == {m: {type(None) if n is None else float} for m, n in expected.items()}


@settings(max_examples=50, deadline=None)
@given(clips=CLIPS, seed=st.integers(0, 2**32 - 1))
def test_bootstrap_is_scikit_learn_on_resampled_people(clips, seed):
    labels, tenths, people = np.array(clips).T
    people = np.unique(people, return_inverse=True)[1]
    weights = next(report.draw_people(people.max() + 1, 3, seed))
    assert weights.shape == (3, people.max() + 1)
    assert (weights.sum(axis=1) == people.max() + 1).all()
    draws = report.metric_values(labels == 1, tenths / 10, weights[:, people])
    for weight, draw in zip(weights, draws, strict=True):
        drawn = np.repeat(np.arange(len(labels)), weight[people].astype(int))
        expected = by_scikit_learn(labels[drawn], tenths[drawn] / 10)
        expected["majority_accuracy"] = np.mean(labels[drawn] == (labels.mean() >= 0.5))
        got = [None if np.isnan(value) else value for value in draw]
        assert dict(zip(report.METRICS, got, strict=True)) == pytest.approx(expected, abs=1e-12)


def test_resamples_differ_and_come_in_portions():
    whole = np.vstack(list(report.draw_people(12, 2 * report.RESAMPLES_AT_ONCE + 1, seed=1)))
    assert whole.shape == (2 * report.RESAMPLES_AT_ONCE + 1, 12)
    assert len(np.unique(whole, axis=0)) == len(whole)
    assert whole.mean(axis=0) == pytest.approx(np.ones(12), abs=0.2)


def test_a_new_metric_is_one_row(monkeypatch):
    frame = with_gender(simulate(30)).assign(fold=1)
    before = report.summarize_predictions(frame)
    row = report.Metric("Youden's J", lambda s: report.recall(s).sum(axis=0) - 1, "smaller")
    monkeypatch.setitem(report.METRICS, "youden", row)
    summary = report.summarize_predictions(frame) | {"folds": report.score_folds(frame)}
    for level in ("clips", "participants"):
        expected = values(before[level])["balanced_accuracy"] * 2 - 1
        entry = summary[level].pop("youden")
        assert entry["value"] == pytest.approx(expected)
        assert entry["low"] < entry["value"] < entry["high"]
        assert summary[level] == before[level]  # the others are what they were
        summary[level]["youden"] = entry
    assert summary["folds"]["youden"]["mean"] == pytest.approx(summary["clips"]["youden"]["value"])
    cells = [report.format_score(summary[level]["youden"]) for level in ("clips", "participants")]
    assert report.format_scores(summary["clips"], summary["participants"])[-1] == (row.title, cells)
    assert report.format_row(row.title, cells) in report.format_summary("t", summary).splitlines()
    json.dumps(summary, allow_nan=False)


def test_a_draw_without_a_class_is_left_out_of_the_interval():
    draws = np.array([np.nan, 0.4, 0.5, 0.6, np.nan])
    assert report.interval(draws, 0.5, 1000) == pytest.approx((0.405, 0.595), abs=1e-3)


@pytest.mark.parametrize("n", [5, 12, 47, 1000])
def test_interval_takes_hesterbergs_percentiles(n):
    draws = np.random.default_rng(0).random(2000)
    level = norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(0.025, n - 1))
    expected = np.quantile(draws, [level, 1 - level])
    assert report.interval(draws, 0.5, n) == pytest.approx(tuple(expected))
    assert level < 0.025


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (1, 2), (2, 3), (4, 4), (0, 1)])
def test_few_people_or_a_perfect_score_get_the_exact_interval(hits, n):
    draws = np.full(100, hits / n)  # no resample differs: percentiles would claim certainty
    exact = binomtest(hits, n).proportion_ci(method="exact")
    assert report.interval(draws, hits / n, n) == pytest.approx((exact.low, exact.high))


def test_intervals_cover_the_truth():
    """400 studies of 40 people (14 Depressed) each, against a population of 60,000.

    Were the coverage 95% exactly, 400 studies would show 91.7-98.3% (three standard errors, as
    nine metrics are looked at). The bootstrap itself owes 1-2% to the few Depressed, hence the
    lower end of 91%. Drawing clips as if they were people must fail it: that is the old mistake.
    """
    truth = values(report.score_predictions(simulate(60_000, 99), resamples=1))
    held, held_by_clips = dict.fromkeys(report.METRICS, 0), 0
    for study in range(400):
        frame = simulate(40, study)
        for metric, entry in report.score_predictions(frame, resamples=200).items():
            held[metric] += entry["low"] <= truth[metric] <= entry["high"]
        if study < 100:
            by_clip = frame.assign(participant=frame["id"])
            by_clip = report.score_predictions(by_clip, resamples=200)["accuracy"]
            held_by_clips += by_clip["low"] <= truth["accuracy"] <= by_clip["high"]
    assert {m: n / 400 for m, n in held.items() if not 0.91 <= n / 400 <= 0.985} == {}
    assert held_by_clips / 100 < 0.85


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_none_and_no_number(label):
    table = score([label] * 6, [0.1, 0.2, 0.6, 0.7, 0.8, 0.9], list("aabbcc"))
    undefined = {"balanced_accuracy", "macro_f1", "auroc"}
    undefined |= {"specificity"} if label else {"sensitivity", "f1"}
    assert {m for m, entry in table.items() if entry["value"] is None} == undefined
    assert all(list(table[m].values()) == [None] * 3 for m in undefined)
    assert table["majority_accuracy"]["value"] == 1
    json.dumps(table, allow_nan=False)


def test_one_participant_per_class_has_wide_intervals():
    table = score([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], list("aabb"))
    assert table["auroc"]["value"] == 1 and table["auroc"]["low"] < 0.05
    assert table["accuracy"]["low"] < 0.2
    json.dumps(table, allow_nan=False)


def test_probabilities_of_exactly_0_and_1_and_a_half():
    table = score([0, 1, 0, 1], [0.0, 1.0, 1.0, 0.0], range(4))
    assert values(table)["brier"] == values(table)["accuracy"] == 0.5
    assert values(table)["auroc"] == 0.5
    assert values(score([1, 0], [0.5, 0.4], [0, 1]))["sensitivity"] == 1  # 0.5: Depressed
    perfect = report.summarize_predictions(pd.DataFrame(columns_of([0, 1], [0.0, 1.0])))
    assert perfect["calibration_error"] == 0 and values(perfect["clips"])["brier"] == 0


def columns_of(labels, probabilities, participants=None, **more):
    ids = [f"c{i}" for i in range(len(labels))]
    known = {"id": ids, "label": labels, "participant": participants or ids}
    return known | {"probability": probabilities, **more}


def test_same_seed_same_interval_whatever_the_order_of_rows():
    frame = simulate(20)
    assert report.score_predictions(frame) == report.score_predictions(frame)
    assert report.score_predictions(frame) != report.score_predictions(frame, seed=1)
    mixed_up = report.score_predictions(frame.sample(frac=1, random_state=0))
    for metric, entry in report.score_predictions(frame).items():
        assert entry == pytest.approx(mixed_up[metric], abs=1e-12)


@pytest.mark.parametrize("people", [200, 10_000])
def test_ten_thousand_clips_take_seconds(people):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 2, 10_000), rng.random(10_000), rng.integers(0, people, 10_000)
    score(*data, resamples=1)
    start = time.process_time()
    score(*data)
    assert time.process_time() - start < (4 if people == 200 else 8)  # 0.4 s and 1.4 s measured


# --- summaries --------------------------------------------------------------------------------


def test_people_are_scored_by_the_mean_of_their_clips():
    frame = simulate(25, 4)
    people = frame.groupby("participant").agg({"label": "first", "probability": "mean"})
    summary = report.summarize_predictions(frame)
    expected = by_scikit_learn(people["label"], people["probability"])
    got = values(summary["participants"])
    assert {m: got[m] for m in expected} == pytest.approx(expected, abs=1e-12)
    assert summary["clips"] == report.score_predictions(frame)
    assert (summary["n_clips"], summary["n_participants"]) == (len(frame), 25)
    assert summary["n_depressed_participants"] == people["label"].sum()
    assert summary["mixed"] == 0 and summary["genders"] == {}
    json.dumps(summary, allow_nan=False)


def test_a_participant_with_both_labels_counts_once_for_each():
    labels, probabilities = [1, 1, 0, 0, 1], [0.9, 0.3, 0.2, 0.7, 0.4]
    frame = pd.DataFrame(columns_of(labels, probabilities, ["a", "a", "a", "b", "c"]))
    summary = report.summarize_predictions(
        frame
    )  # a as 1: 0.6 right; a as 0: 0.2 right; b, c wrong
    assert (summary["mixed"], summary["n_participants"]) == (1, 3)
    assert summary["n_depressed_participants"] == 2
    assert values(summary["participants"])["accuracy"] == 0.5
    assert report.format_summary("t", summary).count("both labels") == 1
    once = report.format_summary("t", report.summarize_predictions(simulate(20)))
    assert "both labels" not in once


def test_gender_column_with_gaps():
    frame = simulate(20, 5)
    person = frame["participant"].astype(int)
    gender = np.where(person % 2, "female", "male").astype(object)
    gender[person == 0], gender[person == 1], gender[person == 2] = None, np.nan, ""
    summary = report.summarize_predictions(frame.assign(gender=gender))
    women = frame[gender == "female"]
    assert summary["genders"]["female"]["clips"] == report.score_predictions(women)
    assert set(summary["genders"]) == {"female", "male"}
    assert summary["genders"]["male"]["n_participants"] == 8
    assert summary["clips_without_gender"] == (person < 3).sum()
    assert {k: v for k, v in summary.items() if "gender" not in k} == {
        k: v for k, v in report.summarize_predictions(frame).items() if "gender" not in k
    }
    empty = report.summarize_predictions(frame.assign(gender=None))
    assert empty["genders"] == {} and empty["clips_without_gender"] == len(frame)
    json.dumps(summary, allow_nan=False)


def test_the_calibration_error_of_right_probabilities_is_chance():
    rng = np.random.default_rng(0)
    probability = rng.random(300)
    frame = pd.DataFrame({"participant": [f"{i % 30}" for i in range(300)]})
    frame = frame.assign(probability=probability)
    drawn = [frame.assign(label=(rng.random(300) < probability).astype(int)) for _ in range(20)]
    tables = [report.score_tables(one) for one in drawn]
    error, chance = (
        np.mean([table[f"calibration_{name}"] for table in tables]) for name in ("error", "chance")
    )
    assert error == pytest.approx(chance, rel=0.15) and 0.02 < chance < 0.1


def test_calibration_error_by_hand():
    labels, probabilities = [0, 1, 1, 0], [0.02, 0.08, 0.95, 1.0]
    # First bin: mean 0.05, share 0.5; last bin: mean 0.975, share 0.5; two clips each.
    summary = report.summarize_predictions(pd.DataFrame(columns_of(labels, probabilities)))
    assert summary["calibration_error"] == pytest.approx((0.45 + 0.475) / 2)


def test_spread_over_folds_leaves_out_what_a_fold_does_not_define():
    frame = pd.DataFrame(columns_of([0, 1, 0, 1, 1, 1], [0.2, 0.9, 0.2, 0.1, 0.9, 0.9]))
    frame["fold"] = [1, 1, 2, 2, 3, 3]
    spread = report.score_folds(frame)
    assert list(spread) == list(report.METRICS)
    assert spread["accuracy"] == pytest.approx({"mean": 2.5 / 3, "sd": np.std([1, 0.5, 1], ddof=1)})
    assert spread["auroc"] == pytest.approx({"mean": 0.5, "sd": np.sqrt(0.5)})
    assert report.score_folds(frame[4:])["auroc"] == {"mean": None, "sd": None}
    assert report.score_folds(frame[:2])["auroc"] == {"mean": 1, "sd": None}
    json.dumps(spread, allow_nan=False)


def test_linear_baseline_learns_and_repeats():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    clips = rng.random((60, 8, 20)) + labels[:, None, None] * np.linspace(0, 0.3, 8)[:, None]
    features = np.stack([clip_features(clip) for clip in clips])
    first, second = (report.fit_baseline(features[:40], labels[:40]) for _ in range(2))
    probabilities = first.predict_proba(features[40:])[:, 1]
    assert (probabilities == second.predict_proba(features[40:])[:, 1]).all()
    assert metrics.roc_auc_score(labels[40:], probabilities) > 0.9
    features = features * 80 - 40  # as it is standardised, dB do as well as [0, 1]
    rescaled = report.fit_baseline(features[:40], labels[:40])
    assert rescaled.predict_proba(features[40:])[:, 1] == pytest.approx(probabilities)


# --- text -------------------------------------------------------------------------------------


def with_gender(frame):
    gender = np.where(frame["participant"].astype(int) % 2, "female", "male").astype(object)
    gender[frame["participant"] == "3"] = None
    return frame.assign(gender=gender)


def without_verdicts(frame):
    """The same with a tenth of the clips, the first ones, without a verdict."""
    return frame.assign(answered=[i >= len(frame) // 10 for i in range(len(frame))])


CASES = {
    "abstaining": without_verdicts(with_gender(simulate(30))),
    "plain": simulate(30),
    "gender": with_gender(simulate(30)),
    "mixed": with_gender(simulate(12, 1, mixed=True)),
    "one class": with_gender(simulate(30)).query("label == 1"),
    "few": simulate(3, 2),
    "one person": simulate(3, 2).query("participant == '0'"),
    "large": simulate(1500, 1),
}


@functools.cache
def summary_of(case):
    return report.summarize_predictions(CASES[case])


def test_a_cell_never_runs_into_the_next():
    line = report.format_row("x", ["-0.011 [-0.04, 0.02]", "-0.046 [-0.08, -0.01]", "b"])
    assert "] -0.046" in line and "] b" in line


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_score_is_never_shown_without_people_interval_and_majority(case, baseline):
    frame = CASES[case]
    summary = summary_of(case)
    if case == "mixed":
        summary = summary | {"folds": report.score_folds(frame.assign(fold=frame.index % 2))}
    text = report.format_summary("CNN, test", summary, summary if baseline else None)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 and text.isascii()
    assert lines[0] == "CNN, test"
    people = frame["participant"].nunique()
    assert f"{len(frame)} clips of {people} {'person' if people == 1 else 'people'}, " in lines[1]
    columns = 4 if baseline else 2
    for metric, row in report.METRICS.items():
        (line,) = [line for line in lines if line.startswith(f"{row.title}  ")]
        shown = [report.format_score(summary[level][metric]) for level in ("clips", "participants")]
        defined = summary["clips"][metric]["value"] is not None
        assert all(cell in line for cell in shown)
        assert line.count("[") == line.count("]") == (columns if defined else 0)
        assert defined or line.count("undefined (one class)") == 1
    bare = re.sub(
        r"\d\.\d{3} (\[\d\.\d\d, \d\.\d\d\]|\(sd \d\.\d{3}\))",
        "",
        text.removesuffix(lines[-1] if baseline else ""),
    )
    bare = [line for line in bare.splitlines() if re.search(r"\d\.\d", line)]
    assert all(line.startswith("calibration error") for line in bare) and len(bare) == 1
    for gender, group in summary["genders"].items():
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{gender}: "))
        assert f"of {group['n_participants']} people" in lines[at]
        assert report.format_score(group["clips"]["majority_accuracy"]) in lines[at + 1]
        assert report.format_score(group["participants"]["majority_accuracy"]) in lines[at + 2]
    assert ("unknown gender: " in text) == (case in ("abstaining", "gender", "mixed", "one class"))
    assert ("90% have a verdict: " in text) == (case == "abstaining")
    assert ("mean of folds" in text) == (case == "mixed")


def test_the_last_line_says_whether_the_network_beats_the_baseline():
    weak, slight, strong = (
        report.summarize_predictions(simulate(60, effect=effect)) for effect in (0.5, 0.6, 4)
    )
    last = report.format_summary("t", strong, weak).splitlines()[-1]
    assert last.startswith("The network beats the linear baseline (AUROC 0.9")
    assert "60 people" in last and "sure" not in last
    last = report.format_summary("t", weak, strong).splitlines()[-1]
    assert "does NOT beat the linear baseline (AUROC " in last and "60 people" in last
    assert "does NOT beat" in report.format_summary("t", weak, weak).splitlines()[-1]
    assert "not by enough to be sure" in report.format_summary("t", slight, weak).splitlines()[-1]
    one = summary_of("one class")
    last = report.format_summary("t", one, one).splitlines()[-1]
    assert last == "No comparison with the linear baseline: AUROC needs clips of both classes."


def change_scores(summary, changes):
    """A copy as another version would write it: its scores changed, None for not there."""
    changed = dict(summary)
    for level in ("clips", "participants"):
        table = summary[level] | changes
        changed[level] = {name: entry for name, entry in table.items() if entry is not None}
    genders = summary.get("genders", {})
    changed["genders"] = {name: change_scores(group, changes) for name, group in genders.items()}
    return changed


def test_scores_of_other_versions_are_shown_as_far_as_they_go():
    new, unknown = summary_of("gender"), {"novel": {"value": 0.123, "low": 0.0, "high": 1.0}}
    old = change_scores(new, {"brier": None} | unknown)
    lines = report.format_summary("t", new).splitlines()
    known = [line for line in lines if not line.startswith("Brier")]
    assert report.format_summary("t", old).splitlines() == known
    cells = [report.format_score(new[level]["brier"]) for level in ("clips", "participants")]
    brier = report.format_row("Brier (0 is best)", [cells[0], "-", cells[1], "-"])
    assert brier in report.format_summary("t", new, old).splitlines()

    old = change_scores(new, {"auroc": None})
    old["folds"] = report.score_folds(CASES["gender"].assign(fold=1))
    del old["folds"]["auroc"]
    text = report.format_summary("t", old, old)
    assert text.splitlines()[-1].startswith("No comparison with the linear baseline")
    assert text.count(" -\n") == 4 and "mean of folds" in text  # of both genders


def test_what_is_left_after_abstaining_is_scored_apart():
    frame = simulate(30)
    summary = report.summarize_predictions(without_verdicts(frame))
    left, kept = summary["answered"], frame[len(frame) // 10 :]
    assert left["no_verdict"] == len(frame) // 10
    assert left["coverage"] == pytest.approx(len(kept) / len(frame))
    assert left["clips"] == report.score_predictions(kept)
    assert summary["clips"] == report.score_predictions(frame), "all clips are scored as before"
    text = report.format_summary("t", summary)
    expected = [report.format_score(left["clips"][name]) for name in report.BRIEFLY]
    assert report.format_row("  clips", expected) in text
    assert f"90% have a verdict: {report.describe_people(left)}" in text
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        (True, "no clip is without a verdict"),
        (False, "every clip is without a verdict"),
        (None, None),
    ],
)
def test_all_none_or_unchecked(answered, expected):
    summary = report.summarize_predictions(simulate(10).assign(answered=answered))
    text = report.format_summary("t", summary)
    assert (expected in text) if expected else ("verdict" not in text)


def test_risk_against_coverage_by_hand():
    columns = columns_of([1, 0, 1, 0], [0.9, 0.2, 0.4, 0.99])
    frame = pd.DataFrame(columns).assign(answered=[True, True, True, False])
    coverage, risk = report.risk_coverage(frame)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 2])  # the surest has no verdict: it comes last
    unchecked = report.risk_coverage(frame.drop(columns="answered"))[1]
    assert unchecked == pytest.approx([1, 1 / 2, 1 / 3, 1 / 2])


# --- pictures ---------------------------------------------------------------------------------


def history(epochs, validation=True):
    keys = ("epoch", "train_loss", "val_loss", "val_accuracy")
    rows = [(e, 1 / e, 1.1 / e, 1 - 0.5 / e) for e in range(1, epochs + 1)]
    rows = [(e, loss, *(rest if validation else (None, None))) for e, loss, *rest in rows]
    return [dict(zip(keys, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("case", "runs"),
    [
        ("gender", [(history(12), 7)]),
        ("mixed", [(history(9), 5), (history(5), 4), (history(7), 6)]),
        ("one class", [(history(3), 3)]),
        ("few", [(history(2), 1)]),
        ("one person", [(history(1, validation=False), 1)]),
        ("large", [(history(4, validation=False), 4)] * 2),
    ],
)
def test_report_is_a_png_twice_the_width_of_a_readme(tmp_path, case, runs):
    path = tmp_path / "picture.tmp"  # a temporary file need not end in .png
    report.draw_report(path, runs, CASES[case], summary_of(case), title="CNN")
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 60_000
    assert struct.unpack(">II", data[16:24]) == (1800, 1200)


def test_picture_shows_the_numbers_of_the_summary(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    frame, summary = CASES["abstaining"], summary_of("abstaining")
    report.draw_report("unused", [(history(12), 7)], frame, summary, "CNN, SYNTHETIC VOICES")
    report.draw_report("unused", [(history(2, validation=False), 2)], frame, summary, "")
    report.draw_report("unused", [(history(5), 4), (history(3), 2)], frame, summary, "")
    loss, accuracy, confusion, roc, reliability, risk = figures[0].axes
    heading = figures[0].get_suptitle()
    assert "CNN, SYNTHETIC VOICES" in heading and report.describe_people(summary) in heading
    assert report.format_score(summary["clips"]["majority_accuracy"]) in heading
    for axes, height in ((loss, 1.1 / 7), (accuracy, 1 - 0.5 / 7)):
        assert "chosen: epoch 7" in axes.get_legend_handles_labels()[1]
        assert axes.lines[-1].get_xydata().tolist() == [[7, pytest.approx(height)]]
    counts = metrics.confusion_matrix(frame["label"], frame["probability"] >= 0.5)
    assert [
        int(text.get_text().split("\n")[0]) for text in confusion.texts
    ] == counts.ravel().tolist()
    assert roc.get_legend_handles_labels()[1] == [
        f"AUROC {report.format_score(summary['clips']['auroc'])}"
    ]
    area = metrics.auc(*roc.lines[-1].get_data())
    assert area == pytest.approx(summary["clips"]["auroc"]["value"])
    assert sum(int(text.get_text()) for text in reliability.texts) == len(frame)
    assert f"{summary['calibration_error']:.3f}" in reliability.get_title()
    coverage, wrong = risk.lines[0].get_data()
    at = coverage.searchsorted(summary["answered"]["coverage"])
    left = 1 - summary["answered"]["clips"]["accuracy"]["value"]
    assert wrong[at] == pytest.approx(left) and coverage[-1] == 1
    assert wrong[-1] == pytest.approx(1 - summary["clips"]["accuracy"]["value"])
    assert "90% of the clips have a verdict" in risk.get_legend_handles_labels()[1]
    loss, accuracy = figures[1].axes[:2]
    assert [text.get_text() for text in accuracy.texts] == ["no validation split"]
    assert loss.get_legend_handles_labels()[1] == ["training"]
    legend = figures[2].axes[0].get_legend_handles_labels()[1]
    assert legend == ["training", "validation", "chosen"]  # once for both folds


def test_import_is_light_and_needs_no_display():
    heavy = ["torch", "gradio", "common", "matplotlib", "sklearn"]
    code = f"import sys, speech.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
