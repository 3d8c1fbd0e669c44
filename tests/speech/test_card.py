"""speech/card.py: the verdict in words."""

import copy
import re

import common
import predict
from speech import card, verdict, words
from speech.verdict import Row

import pytest


@pytest.fixture(scope="module")
def metadata(weights):
    _, metadata = common.load_weights(weights / "lstm.safetensors")
    metadata["data"]["synthetic"] = True
    return metadata


@pytest.fixture
def facts(metadata):
    return {"lstm": metadata}


def row(name, p, note=""):
    word = "error" if p is None else predict.verdict(p)
    return Row(name, name.split("_clip_")[0], p, word, note)


def person(name, p, word=None, note="mean of 2"):
    return Row("", name, p, word or predict.verdict(p), note)


def test_the_verdict_in_words(facts):
    word, text = card.format_result(
        facts, [row("<a>", 0.7), row("<a>", 0.7), person("<a>", 0.7)], 2
    )
    assert words.find_key("Depressed") in word and 'class="yes"' in word
    assert "Score 0.70: more like the clips labelled Depressed." in text
    assert "&lt;a&gt;" in text and "<a>" not in text and "left:70.0%" in text
    assert "about 1 of 2 people [0.60, 0.80]" in text and words.SYNTHETIC in text
    word, text = card.format_result(facts, [person("a", 0.55)], 1)
    assert words.find_key("uncertain") in word and "between" in text


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "under 0.05"), (0.049, "under 0.05"), (0.27, "0.27"), (1.0, "over 0.95")]
)
def test_no_score_is_certain(p, text):
    assert verdict.format_number(p) == text


def test_no_verdict_is_a_result_with_its_reason(facts):
    reason = "unlike the training clips, 3.1 times the limit"
    clips = [Row("a_clip_0", "a", 0.9, verdict.NO_VERDICT, reason)]
    refused = person("a", 0.9, verdict.NO_VERDICT, "1 of 1 without a verdict")
    word, text = card.format_result(facts, [*clips, refused], 1)
    assert words.find_key("no verdict") in word
    assert "3.1 times the limit" in text and "marker" not in text and "Score" not in text


@pytest.mark.parametrize(
    ("clips", "note", "text"),
    [
        (1, "mean of 1", "(a, one clip)"),
        (3, "mean of 3", "(a, mean of 3 clips)"),
        (4, "mean of 3, 1 without a verdict left out", "clips, 1 without a verdict left out)"),
        (2, "mean of 1, 1 without a verdict left out", "(a, mean of 1 clip, 1 without a verdict"),
    ],
)
def test_the_clips_behind_a_score_are_a_sentence(facts, clips, note, text):
    rows = [row(f"a_clip_{n}", 0.7) for n in range(clips)]
    assert text in card.format_result(facts, [*rows, person("a", 0.7, note=note)], 1)[1]


def test_several_people_are_a_table(facts):
    people = [person("a", 0.9), person("b", 0.1), person("c", 0.5, verdict.NO_VERDICT)]
    clips = [row("a_clip_0", 0.9), row("b_clip_0", 0.1), row("b_clip_8", None, "why")]
    word, text = card.format_result(facts, [*clips, *people], 3)
    plain = re.sub("<[^>]*>", "", word)
    assert "3 people: 1 Depressed, 1 Not Depressed, 1 no verdict" in plain
    keys = [words.find_key(verdict) for verdict in ("Depressed", "Not Depressed", "no verdict")]
    assert re.findall('data-word="([^"]*)"', word) == keys  # each in the visitor's language
    assert text.count("<tr>") == 4 and "1 of 3 files could not be read" in text
    assert "b_clip_8: why" in text


def test_synthetic_weights_are_named_with_the_verdict(facts):
    for people in ([person("a", 0.9)], [person("a", 0.9), person("b", 0.1)]):
        word, _ = card.format_result(facts, people, 1)
        assert "nothing for a real voice" in word
    facts["lstm"]["data"]["synthetic"] = False
    word, _ = card.format_result(facts, [person("a", 0.9)], 1)
    facts["lstm"]["data"]["synthetic"] = True
    assert "real voice" not in word


def test_all_unread_files_are_named_and_most_are_folded():
    clips = [row(f"{n}.m4a", None, "why") for n in range(30)]
    shown, _, folded = card.list_unread([*clips, row("a.csv", None, "(text)")], 40).partition(
        "<details>"
    )
    assert "31 of 40" in shown and "<li>9.m4a: why</li>" in shown and "10.m4a" not in shown
    assert "and 21 more" in folded and "<li>29.m4a: why</li>" in folded
    assert "I have labels" in folded and "labels" not in card.list_unread(clips, 40)


def test_nothing_readable_is_reported(facts):
    word, text = card.format_result(facts, [row("a", None, "why")], 1)
    assert words.find_key("no verdict") in word and "a: why" in text


def test_about_shows_data_split_scores_and_versions(metadata):
    metadata = copy.deepcopy(metadata)
    metadata["test"]["clips"]["auroc"] = {"value": None, "low": None, "high": None}
    brief, rest = card.describe_weights("cnn-old", metadata)
    text = brief + rest
    assert brief.count("| ") < 40 and "AUROC" not in brief
    assert "### cnn-old" in text and "plit by participant" in text and "test 8 (2)" in text
    assert "right about 1 of 2 people" in text and "It learnt from 8 people of a test" in brief
    assert "| accuracy | 0.700 [0.60, 0.80] | 0.700 [0.60, 0.80] |" in text
    assert "majority" in text and "undefined" in text and "torch" in text


def test_every_language_has_every_word():
    texts = words.translations()
    assert {"en", "de", "it", "es", "fr", "zh-CN"} <= set(texts)
    for language in texts.values():
        assert language.keys() == texts["en"].keys() and all(language.values())
        assert "https://findahelpline.com" in language[words.find_key("help")]
    assert texts["en"][words.find_key("notice")] == predict.NOTICE
