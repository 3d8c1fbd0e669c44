"""The corpora with their traps: whose turns are read, labels, splits, and what is reported.

Every corpus is made up here; what a session holds is read and must be free of the tone.
"""

import re
import unicodedata
from itertools import chain

from speech.audio import cut_clips, log_mel, read_sound
from speech.cli import InputError
from speech.corpora import (
    NOT_SPEECH,
    Findings,
    account_for_sounds,
    merge,
    read_corpus,
    subtract,
)
from speech.dataset import read_labels, split_folds

import numpy as np
import pytest
import soundfile
from conftest import call_script
from hypothesis import given
from hypothesis import strategies as st
from recordings import RATE, hears_tone, make_rows, write_daic_session, write_recording


def read(source, labels=None, layout=None):
    """(name, sessions by their name, findings) of a corpus."""
    findings = Findings()
    name, sessions = read_corpus(source, labels, layout, findings)
    by_name = {session.name: session for session in sessions}
    assert len(by_name) == len(sessions)
    return name, by_name, findings


def facts_of(sessions, *names):
    return {who: tuple(getattr(s, name) for name in names) for who, s in sessions.items()}


def count_clips(session):
    """How many clips the session's speech makes, having listened for the tone in each."""
    turns = (read_sound(path, RATE, start, stop) for path, start, stop in session.turns)
    clips = [log_mel(clip) for clip in cut_clips(chain.from_iterable(turns), 8 * RATE)]
    loudest = max(map(hears_tone, clips))
    assert loudest < 0.2, (session.name, loudest)
    return len(clips)


# --- turns --------------------------------------------------------------------------------------

TURNS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).filter(lambda t: t[0] < t[1]))


@given(TURNS, TURNS)
def test_turns_are_merged_and_holes_subtracted(turns, holes):
    def seconds(pieces):
        return {second for start, stop in pieces for second in range(start, stop)}

    merged = merge(turns)
    assert seconds(merged) == seconds(turns)
    assert all(a[1] < b[0] for a, b in zip(merged, merged[1:], strict=False))
    left = subtract(merged, holes)
    assert seconds(left) == seconds(turns) - seconds(holes)
    assert sum(stop - start for start, stop in left) == len(seconds(left))


@pytest.mark.parametrize(
    ("text", "speech"),
    [
        ("<laughter> yeah", True),
        ("[laughter] i don't know", True),
        ("i <i just> think", True),
        ("", False),
        ("<sync>", False),
        ("<synch>", False),
        ("[syncing]", False),
        ("<sync.", False),
        ("<sigh> <laughter>", False),
        ("my name is scrubbed_entry", False),
        ("scrubbed_entry", False),
    ],
)
def test_rows_that_are_not_speech(text, speech):
    assert (re.fullmatch(NOT_SPEECH, text) is None) == speech


# --- DAIC-WOZ -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def daic(tmp_path_factory):
    root = tmp_path_factory.mktemp("daic")
    ellie = make_rows((0, 2), text="how are you today", speaker="Ellie")
    rows = [
        *make_rows((0.5, 3), text="<sync>"),
        *make_rows((4.001, 12.5), (11.25, 16)),  # they overlap
        *make_rows((16.5, 20), text='so what"s this'),  # a stray quotation mark
        *make_rows((20.5, 29), text="scrubbed_entry"),
        *make_rows((30, 39), text="<laughter>"),
        *make_rows((40, 41), text="   "),
        *make_rows((45, 57)),
    ]
    speech = [(0.5, 3), (20.5, 29), (30, 39), (40, 41)]  # of which nothing may be read
    # While the participant speaks, the interviewer says something from 47 to 48 s.
    over = make_rows((47, 48), text="mhm", speaker="Ellie")
    write_daic_session(root, "300", 60, ellie + rows + over, silent=[*speech, (47, 48)])
    plain = ellie + make_rows((2, 20.5))
    write_daic_session(root, "301", 25, plain, folder="301")  # without _P
    write_daic_session(root, "318", 60, plain, late=34.32)
    write_daic_session(root, "321", 60, plain, late=3.84)
    write_daic_session(root, "341", 60, plain, late=6.19)
    write_daic_session(root, "362", 60, plain, late=16.86)
    long = ellie + make_rows((340, 440))
    write_daic_session(root, "373", 445, long, silent=[(352, 428)])
    write_daic_session(root, "409", 25, plain)
    write_daic_session(root, "444", 400, ellie + make_rows((280, 398)), silent=[(286, 387)])
    write_daic_session(root, "451", 25, make_rows((2, 20.5)))
    write_daic_session(root, "302", 25, plain)
    write_daic_session(root, "303", 25, plain)
    columns = "Participant_ID,PHQ8_Binary,PHQ8_Score,Gender,PHQ8_NoInterest"
    train = ["300,0,4,1,0", "301,1,12,0,3", "318,0,2,1,0", "321,1,20,0,1", "341,0,7,1,1"]
    train += ["362,1,20,0,1", "373,0,9,1,1", "409,0,10,0,1", "444,0,7,0,1"]
    (root / "train_split_Depression_AVEC2017.csv").write_text("\n".join([columns, *train]))
    (root / "dev_split_Depression_AVEC2017.csv").write_text(f"{columns}\n451,1,17,0,3\n")
    test = "participant_ID,Gender\n302,0\n303,1\n"
    (root / "test_split_Depression_AVEC2017.csv").write_text(test)
    return root


@pytest.fixture(scope="module")
def daic_read(daic, tmp_path_factory):
    full = tmp_path_factory.mktemp("labels") / "full_test_split.csv"
    full.write_text("Participant_ID,PHQ_Binary,PHQ_Score,Gender\n\n302,1,11,0\n\n303,0,3,1\n\n")
    return read(daic, full)


def test_daic_woz_labels_splits_and_genders(daic_read):
    name, sessions, findings = daic_read
    assert name == "DAIC-WOZ" and not findings.problems
    assert facts_of(sessions, "participant", "label", "split", "gender") == {
        "300": ("300", 0, "train", "female"),
        "301": ("301", 1, "train", "male"),
        "318": ("318", 0, "train", "female"),
        "321": ("321", 1, "train", "male"),
        "341": ("341", 0, "train", "female"),
        "362": ("362", 1, "train", "male"),
        "373": ("373", 0, "train", "female"),
        "409": ("409", 1, "train", "male"),
        "444": ("444", 0, "train", "male"),
        "451": ("451", 1, "val", "male"),
        "302": ("302", 1, "test", "male"),
        "303": ("303", 0, "test", "female"),
    }


def test_daic_woz_speech(daic_read):
    sessions = daic_read[1]
    assert [times for _, *times in sessions["300"].turns] == [
        *([4.001, 16], [16.5, 20], [45, 47], [48, 57])
    ]
    assert {who: count_clips(session) for who, session in sessions.items()} == {
        **dict.fromkeys(("301", "318", "321", "341", "362", "409", "451", "302", "303"), 2),
        "300": 3,
        "373": 3,  # 340 to 352 and 428 to 440
        "444": 2,  # 280 to 286 and 387 to 398
    }


def test_daic_woz_faults_are_reported(daic_read, daic, capsys):
    findings = daic_read[2]
    corrected = ["318", "321", "341", "362", "373", "409", "444"]
    assert sorted(line[:3] for line in findings.corrections) == corrected
    text = "\n".join(findings.corrections)
    assert "34.32 s later" in text and "352 to 428 s" in text
    assert "409: label 0, but PHQ-8 score 10: the label is 1" in text
    assert findings.notes == ["451: no interviewer's rows; the participant's are used as they are"]
    read(daic)
    assert f"{daic}: DAIC-WOZ (12 files like 300_P/300_TRANSCRIPT" in capsys.readouterr().out


def test_daic_woz_without_test_labels(daic):
    _, sessions, findings = read(daic)
    assert len(sessions) == 10
    assert "2 sessions without a label: 302, 303" in findings.notes


def test_daic_woz_labels_elsewhere(daic, tmp_path):
    for name in ("dev", "train"):
        path = daic / f"{name}_split_Depression_AVEC2017.csv"
        (tmp_path / path.name).write_bytes(path.read_bytes())
    small = tmp_path / "small"
    small.mkdir()
    (small / "301").symlink_to(daic / "301")
    with pytest.raises(InputError, match="train_split"):
        read(small)
    _, sessions, findings = read(small, tmp_path)
    assert list(sessions) == ["301"]
    assert findings.problems[0].startswith("9 labelled sessions lack sound or transcript: 300")


HEADER = "Participant_ID,PHQ8_Binary,PHQ8_Score,Gender"


def write_daic(root, rows, header=HEADER, whos=("300", "301", "302")):
    """Three sessions without sound; the participant says 5 s."""
    for who in whos:
        folder = root / f"{who}_P"
        folder.mkdir(parents=True)
        (folder / f"{who}_AUDIO.wav").touch()
        lines = ["start_time\tstop_time\tspeaker\tvalue", "0\t1\tEllie\thi", "2\t7\tParticipant\ta"]
        (folder / f"{who}_TRANSCRIPT.csv").write_text("\n".join([*lines, ""]))
    (root / "train_split_Depression_AVEC2017.csv").write_text("\n".join([header, *rows, ""]))
    return root


@pytest.mark.parametrize(
    "header",
    [
        "participant_id,phq8_binary,phq8_score,gender",
        "\ufeffSpeaker , PHQ_BINARY,PHQ_Score,Sex",
        "SUBJECT_ID;PHQ-8_Binary;PHQ-8 Score;Gender",
    ],
)
def test_spellings_of_avec_columns(tmp_path, header):
    separator = ";" if ";" in header else ","
    rows = [separator.join(row) for row in (["300.0", "0", "4", "1"], ["301", "0", "24", "0"])]
    _, sessions, findings = read(write_daic(tmp_path, rows, header))
    assert facts_of(sessions, "label", "gender") == {"300": (0, "female"), "301": (1, "male")}
    line = (
        "accounted for: 3 of 3 sound files: 2 used, 1 not: 1 without a label (302_P/302_AUDIO.wav)"
    )
    assert count_used(findings, sessions) == line


def test_two_columns_of_one_meaning(tmp_path):
    root = write_daic(
        tmp_path, ["300,300,0,4"], "Participant_ID,participant,PHQ8_Binary,PHQ8_Score"
    )
    with pytest.raises(InputError, match="participant_id and participant mean the same"):
        read(root)


@pytest.mark.parametrize("score", ["-1", "25", "99"])
def test_an_impossible_score_is_no_label(tmp_path, score):
    _, sessions, findings = read(
        write_daic(tmp_path, ["300,0,4,1", f"301,1,{score},0", "302,1,24,0"])
    )
    assert list(sessions) == ["300", "302"]
    expected = f"301: PHQ-8 score {score}, expected 0 to 24: no label, not used"
    assert findings.problems == [expected]
    assert "1 with an impossible score (301_P/301_AUDIO.wav)" in count_used(findings, sessions)


@pytest.mark.parametrize(("score", "label"), [("12,0", 1), ("9,0", 0), ("", 1), ("NaN", 1)])
def test_scores_that_a_spreadsheet_saved(tmp_path, score, label):
    root = write_daic(tmp_path, [f"300,0;1,0;{score};1,0"], HEADER.replace(",", ";"))
    _, sessions, findings = read(root)
    assert facts_of(sessions, "label", "gender") == {"300": (label, "female")}
    assert not findings.problems


def test_a_score_that_is_no_number_is_not_silently_none(tmp_path):
    _, sessions, findings = read(write_daic(tmp_path, ["300,0,4,1", "301,1,12. Mai,0"]))
    assert list(sessions) == ["300"]
    expected = "301: PHQ-8 score 12. Mai, expected 0 to 24: no label, not used"
    assert findings.problems == [expected]


def test_label_files_twice(tmp_path):
    root = write_daic(tmp_path, ["300,0,4,1", "301,1,12,0", "302,0,3,0"])
    path, copy = root / "train_split_Depression_AVEC2017.csv", root / "labels" / "train_split.csv"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert len(read(root)[1]) == 3
    copy.write_text(path.read_text().replace("300,0,4", "300,1,14"))
    _, sessions, findings = read(root)
    assert list(sessions) == ["301", "302"]
    (problem,) = findings.problems
    assert problem.startswith("300: label files disagree (train_split")
    assert " and train_split" in problem and problem.endswith(": not used")


def test_speech_before_the_interviewers_first_row_is_left_out(tmp_path):
    root = write_daic(tmp_path, ["300,0,4,1"], whos=["300"])
    rows = [
        "start_time\tstop_time\tspeaker\tvalue",
        "1\t4\tParticipant\tis it on",
        "5\t9\tParticipant\tyes",
    ]
    rows += ["8\t8.5\tEllie\thi", "10\t20\tParticipant\thello"]
    (root / "300_P" / "300_TRANSCRIPT.csv").write_text("\n".join(rows))
    _, sessions, findings = read(root)
    assert [times for _, *times in sessions["300"].turns] == [[8.5, 9], [10, 20]]
    left = "300: left out 6.0 s of speech before the interviewer's first row"
    assert findings.corrections == [left]


SAVED_ROWS = ["0,5;2;Ellie;hi", "2;7,5;Participant;a", "10;20,25;Participant;b"]


def read_rows_of_300(tmp_path, rows, header="start_time;stop_time;speaker;value"):
    """(turns, problems) of a transcript of these rows."""
    root = write_daic(tmp_path, ["300,0,4,1"], whos=["300"])
    (root / "300_P" / "300_TRANSCRIPT.csv").write_text("\n".join([header, *rows]))
    _, sessions, findings = read(root)
    return [times for _, *times in sessions["300"].turns], findings.problems


def test_decimal_commas_of_a_spreadsheet_are_read(tmp_path):
    rows = [*SAVED_ROWS, "12;13,5;Ellie;mhm"]
    turns = [[2, 7.5], [10, 12], [13.5, 20.25]]
    assert read_rows_of_300(tmp_path, rows) == (turns, [])


@pytest.mark.parametrize("start", ["07. Mai", "", "inf", "1,2,3", "17"])
def test_rows_without_times_are_a_problem(tmp_path, start):
    rows = [*SAVED_ROWS, f"{start};13,5;Ellie;mhm", "x;y;Participant;<laughter>"]
    turns, (problem,) = read_rows_of_300(tmp_path, rows)
    assert turns == [[2, 7.5], [10, 20.25]]
    found = f"300: 1 of 4 rows without times, left out: row 5 is from {start!r} to '13,5'"
    assert problem == found


def test_commas_beside_points_are_no_decimal_ones(tmp_path):
    rows = ["0.5\t2\tEllie\thi", "2\t1,234\tParticipant\ta", "3\t3\tParticipant\tb"]
    turns, (problem,) = read_rows_of_300(tmp_path, rows, "start_time\tstop_time\tspeaker\tvalue")
    assert not turns and "1 of 3 rows without times" in problem


def test_daic_woz_participant_in_two_splits(daic, tmp_path):
    path = tmp_path / "full_test_split.csv"
    path.write_text("Participant_ID,PHQ_Binary,PHQ_Score,Gender\n300,0,4,1\n")
    with pytest.raises(InputError, match="1 participants are in more than one split: 300"):
        read(daic, path)


def test_a_label_that_is_none(daic, tmp_path):
    path = tmp_path / "full_test_split.csv"
    path.write_text("Participant_ID,PHQ_Binary,PHQ_Score,Gender\n302,2,4,1\n")
    with pytest.raises(InputError, match="other than 0 and 1: participants 302"):
        read(daic, path)


def test_damaged_transcript_is_named(daic, tmp_path):
    root = tmp_path / "in"
    for name in ("301", "409"):
        (root / name).mkdir(parents=True)
    (root / "301" / "301_AUDIO.wav").symlink_to(daic / "301" / "301_AUDIO.wav")
    (root / "301" / "301_TRANSCRIPT.csv").write_text("who\tknows\n1\t2\n")
    (root / "409" / "409_AUDIO.wav").symlink_to(daic / "409_P" / "409_AUDIO.wav")
    (root / "409" / "409_TRANSCRIPT.csv").symlink_to(daic / "409_P" / "409_TRANSCRIPT.csv")
    labels = tmp_path / "train_split.csv"
    labels.write_text("Participant_ID,PHQ8_Binary,PHQ8_Score,Gender\n301,1,12,0\n409,0,10,0\n")
    _, sessions, findings = read(root, labels)
    assert list(sessions) == ["409"]
    (problem,) = findings.problems
    assert "301_TRANSCRIPT.csv: expected columns start_time" in problem


# --- the other corpora --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edaic(tmp_path_factory):
    root = tmp_path_factory.mktemp("edaic")
    turns = [(3, 9.5), (9.5, 14), (20, 29.25)]
    for who in ("300", "302", "600", "700"):
        folder = root / "data" / f"{who}_P"
        write_recording(folder / f"{who}_AUDIO.wav", 31, turns, seed=int(who))
        rows = [f'{a},{b},"well, ""you"" know",0.9' for a, b in turns]
        header = "Start_Time,End_Time,Text,Confidence"
        (folder / f"{who}_Transcript.csv").write_text("\n".join([header, *rows, ""]))
        (folder / f"._{who}_Transcript.csv").write_bytes(b"\x00\x05\x16")
    header = "Participant_ID,Gender,PHQ_Binary,PHQ_Score,PCL-C (PTSD),PTSD Severity\n"
    train = "300,male,0,9,0,20\n302,female,0,12,0,1\n"
    (root / "labels").mkdir()
    (root / "labels" / "train_split.csv").write_text(header + train)
    (root / "labels" / "dev_split.csv").write_text(header + "600,female,1,10,0,20\n")
    (root / "labels" / "test_split.csv").write_text(header + "700,male,0,3,0,20\n")
    return root


def test_edaic(edaic):
    name, sessions, findings = read(edaic)
    assert facts_of(sessions, "label", "split", "gender") == {
        "300": (0, "train", "male"),
        "302": (1, "train", "female"),  # by the score
        "600": (1, "val", "female"),
        "700": (0, "test", "male"),
    }
    assert set(map(count_clips, sessions.values())) == {2}  # 20.25 s
    (correction,) = findings.corrections
    assert correction.startswith("302: label 0") and name == "E-DAIC"


def test_rows_without_times_of_edaic(edaic, tmp_path):
    (tmp_path / "300_P").mkdir()
    (tmp_path / "300_P" / "300_AUDIO.wav").touch()
    rows = ['"1,5",4,yes', "5,?,no"]
    text = "\n".join(["Start_Time,End_Time,Text", *rows])
    (tmp_path / "300_P" / "300_Transcript.csv").write_text(text)
    (tmp_path / "train_split.csv").write_text("Participant_ID,PHQ_Score,PHQ_Binary\n300,9,0")
    _, sessions, findings = read(tmp_path)
    assert [times for _, *times in sessions["300"].turns] == [[1.5, 4]]
    found = "300: 1 of 2 rows without times, left out: row 3 is from '5' to '?'"
    assert findings.problems == [found]


def test_two_corpora_in_one_folder(daic, edaic, tmp_path):
    (tmp_path / "a").symlink_to(daic)
    (tmp_path / "b").symlink_to(edaic)
    with pytest.raises(InputError, match="daic-woz and e-daic.* --layout"):
        read(tmp_path)


@pytest.fixture(scope="module")
def eatd(tmp_path_factory):
    root = tmp_path_factory.mktemp("eatd")
    for number, (who, score) in enumerate({"t_1": 53, "t_12": 52.5, "v_3": 61.25}.items()):
        folder = root / "EATD-Corpus" / who
        for feeling in ("positive", "neutral", "negative"):
            # The original begins with noise, here the tone, that was cut from the cleaned one.
            write_recording(folder / f"{feeling}.wav", 8, [(2, 8)], seed=number)
            write_recording(folder / f"{feeling}_out.wav", 6, seed=number)
            (folder / f"{feeling}.txt").write_text("我很好")
        (folder / "label.txt").write_text(f"{score / 1.25}")
        (folder / "new_label.txt").write_text(f"{score}\n")
    empty = root / "EATD-Corpus" / "v_3"
    soundfile.write(empty / "neutral_out.wav", np.zeros(0, np.float32), RATE)
    write_recording(empty / "neutral.wav", 6, seed=2)
    return root


def test_eatd(eatd):
    name, sessions, findings = read(eatd)
    expected = {"t_1": (1, "train"), "t_12": (0, "train"), "v_3": (1, "val")}
    assert facts_of(sessions, "label", "split") == expected and name == "EATD-Corpus"
    assert set(map(count_clips, sessions.values())) == {2}  # three answers of 6 s, joined
    used = "v_3/neutral_out.wav: empty or not there; neutral.wav is used"
    assert findings.corrections == [used]


def test_eatd_without_new_label(eatd, tmp_path):
    for path in sorted(eatd.rglob("*.*")):
        if path.name != "new_label.txt":
            copy = tmp_path / path.relative_to(eatd)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(path)
    _, sessions, _ = read(tmp_path)
    assert sum(session.label for session in sessions.values()) == 2  # 42.4 * 1.25 = 53


def test_androids(tmp_path):
    root, speakers = tmp_path / "Androids-Corpus", {"01_CF56_1": "HC", "01_PM33_2": "PT"}
    speakers["12_PF40_X"] = "PT"
    for seed, (speaker, group) in enumerate(speakers.items()):
        write_recording(root / "Reading-Task" / group / f"{speaker}.wav", 9, rate=44_100, seed=seed)
        turns = [(2 * k, 2 * k + 0.8) for k in range(1, 12)]
        interviews = root / "Interview-Task"
        write_recording(interviews / "audio" / group / f"{speaker}.wav", 26, turns, seed=seed)
        for number in range(1, 12):
            path = interviews / "audio_clip" / speaker / f"{speaker}_{number}.wav"
            write_recording(path, 0.8 + number / 10, seed=number)
    _, sessions, findings = read(tmp_path)
    people = {"01_CF56_1": ("01_C", 0, "female"), "01_PM33_2": ("01_P", 1, "male")}
    people["12_PF40_X"] = ("12_P", 1, "female")
    assert facts_of(sessions, "participant", "label", "gender", "split") == {
        f"{who} {task}": (*facts, None)
        for who, facts in people.items()
        for task in ("interview", "reading")
    }
    assert "no fold-lists.csv" in findings.notes[0] and not findings.problems
    # An interview of 15.4 s and a reading of 9 s, each one clip.
    assert set(map(count_clips, sessions.values())) == {1}
    names = [path.stem for path, _, _ in sessions["01_CF56_1 interview"].turns]
    assert names == [f"01_CF56_1_{number}" for number in range(1, 12)]  # 10 after 9


@pytest.mark.parametrize("text", ["", "n/a", "-1", "101", "nan"])
def test_a_volunteers_label_is_that_volunteers_problem(tmp_path, text):
    for who in ("t_1", "t_2", "v_1"):
        folder = tmp_path / who
        folder.mkdir()
        for feeling in ("positive", "neutral", "negative"):
            (folder / f"{feeling}.wav").touch()
            (folder / f"{feeling}_out.wav").write_bytes(bytes(2000))
        (folder / "new_label.txt").write_text(text if who == "t_2" else "53")
        (folder / "label.txt").write_text("30" if who == "v_1" else "42")
    _, sessions, findings = read(tmp_path)
    assert list(sessions) == ["t_1"]
    assert findings.problems == [
        f"t_2/new_label.txt: {text!r} is no SDS score: not used",
        "v_1: the label files disagree (standard score by new_label.txt 53 and label.txt 37.5): "
        "not used",
    ]
    line = count_used(findings, sessions)
    assert line.startswith("accounted for: 18 of 18 sound files: 3 used, 15 not: ")
    assert "3 before cleaning (" in line and "12 without a valid label (" in line


SPEAKERS = ["01_CF56_1", "01_PM33_2", "02_CM20_1", "02_PF40_3", "03_CF30_2"]


def write_androids(root, reading="Reading-Task/audio", seconds=0):
    """Files as they lie there, empty by default: readings, interviews, and those in turns."""
    for speaker in SPEAKERS:
        group = "HC" if "_C" in speaker else "PT"
        names = [f"{reading}/{group}/{speaker}", f"Interview-Task/audio/{group}/{speaker}"]
        names += [f"Interview-Task/audio_clip/{speaker}/{speaker}_{n}" for n in (1, 2)]
        for name in names:
            path = root / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if seconds:
                write_recording(path, seconds, seed=len(name) + SPEAKERS.index(speaker))
    return root


def fold_list(reading, interview, name="fold-lists.csv"):
    """As the corpus has it: five columns, two empty ones, five columns; names in quotes."""
    quote = [f"'{name}'" if name else "" for name in (*reading, "", "", *interview)]
    header = ["Read"] + [""] * 6 + ["Interview"] + [""] * 4
    folds = [f"fold{n}" for n in range(1, 6)]
    return "\n".join(map(",".join, (header, [*folds, "", "", *folds], quote))) + "\n"


def count_used(findings, sessions):
    used = [path for session in sessions.values() for path, *_ in session.turns]
    return account_for_sounds(findings, used)


@pytest.mark.parametrize("reading", ["Reading-Task/audio", "Reading-Task"])
@pytest.mark.parametrize("inside", [".", "Androids-Corpus"])
@pytest.mark.parametrize("name", ["fold-lists.csv", "fold-list.csv"])
def test_androids_layouts_and_folds(tmp_path, reading, inside, name):
    root = write_androids(tmp_path / inside, reading)
    (root / name).write_text(fold_list(SPEAKERS, SPEAKERS))
    _, sessions, findings = read(tmp_path)
    assert {session.participant: session.fold for session in sessions.values()} == {
        "01_C": "1",
        "01_P": "2",
        "02_C": "3",
        "02_P": "4",
        "03_C": "5",
    }
    assert len(sessions) == 10 and findings == Findings()
    line = "accounted for: 20 of 20 sound files: 15 used, 5 not: 5 with the interviewer's voice ("
    assert count_used(findings, sessions).startswith(line)


def test_androids_people_in_no_fold_or_several_are_named(tmp_path):
    root = write_androids(tmp_path)
    path = root / "fold-lists.csv"
    path.write_text(fold_list(SPEAKERS, SPEAKERS[::-1]))
    _, sessions, findings = read(root)
    assert {session.fold for session in sessions.values()} == {None}
    (problem,) = findings.problems
    assert "4 people are in more than one of its folds: 01_C (1 and 5)" in problem
    _, sessions, findings = read(root / "Reading-Task", path)  # one task by itself
    assert [session.fold for session in sessions.values()] == list("12345")
    assert not findings.problems
    path.write_text(fold_list([*SPEAKERS[:4], ""], [*SPEAKERS[:4], ""]))
    _, sessions, findings = read(root)
    assert {session.fold for session in sessions.values()} == {None} and not findings.problems
    assert findings.notes == [
        "fold-lists.csv: 1 people are in none of its folds: 03_C: no column fold"
    ]


def test_androids_lists_that_differ(tmp_path):
    root = write_androids(tmp_path)
    (root / "fold-lists.csv").write_text(fold_list(SPEAKERS, SPEAKERS))
    (root / "copy").mkdir()
    (root / "copy" / "fold-list.csv").write_text(fold_list(SPEAKERS, SPEAKERS))
    assert read(root)[1]["01_CF56_1 reading"].fold == "1"
    (root / "copy" / "fold-list.csv").write_text(fold_list(SPEAKERS[::-1], SPEAKERS))
    with pytest.raises(InputError, match="fold-list found twice, and not alike"):
        read(root)


@pytest.mark.parametrize("corpus", ["daic", "edaic", "eatd", "Reading-Task/audio", "Reading-Task"])
def test_a_dry_run_accounts_for_every_sound_file(corpus, request, tmp_path):
    if "-" in corpus:
        root = write_androids(tmp_path / "in" / "Androids-Corpus", corpus, seconds=9)
        (root / "fold-lists.csv").write_text(fold_list(SPEAKERS, SPEAKERS))
    else:
        root = request.getfixturevalue(corpus)
    process = call_script("prepare.py", root, "--dry-run", "--out", tmp_path / "out")
    assert process.returncode == 0, process.stdout + process.stderr
    there = len([path for path in root.rglob("*.wav") if not path.name.startswith(".")])
    found = re.fullmatch(
        r"accounted for: (\d+) of (\d+) sound files: (\d+) used(?:, (\d+) not: .*)?",
        process.stdout.splitlines()[-1],
    )
    assert int(found[1]) == int(found[2]) == there == int(found[3]) + int(found[4] or 0)


def test_androids_published_folds_reach_training(tmp_path):
    root, out = write_androids(tmp_path / "in", seconds=9), tmp_path / "out"
    (root / "fold-lists.csv").write_text(fold_list(SPEAKERS, SPEAKERS))
    process = call_script("prepare.py", root, "--out", out, "--jobs", 1)
    assert process.returncode == 0, process.stdout + process.stderr
    frame, _ = read_labels(out / "dataset.csv")
    held = [frame["participant"][rows] for _, rows in split_folds(frame, "given", "participant", 0)]
    assert [set(people) for people in held] == [{"01_C"}, {"01_P"}, {"02_C"}, {"02_P"}, {"03_C"}]
    assert len(frame) == 5 * 3


# --- a folder of recordings ---------------------------------------------------------------------

SOUNDS = ["a.wav", "b.wav", "d1.wav", "d2.wav", "more/c.flac"]


@pytest.fixture
def folder(tmp_path):
    """Four people's recordings, empty here, of which one in two files with two labels."""
    root = tmp_path / "recordings"
    (root / "more").mkdir(parents=True)
    for name in SOUNDS:
        (root / name).touch()
    return root


def write_labels(folder, *changes):
    rows = ["a.wav,0,a,m,train", "b.wav,1,bea,F,dev", "more\\c.flac,1,007,,test"]
    rows += ["d1.wav,0,dee,female,train", "d2.wav,1,dee,female,train"]
    text = "\n".join(["File,label,participant,gender,split", *rows, ""])
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder.parent / "labels.csv"
    path.write_text(text)
    return path


def test_folder(folder):
    name, sessions, findings = read(folder, write_labels(folder))
    assert facts_of(sessions, "participant", "label", "split", "gender") == {
        "recordings/a.wav": ("a", 0, "train", "male"),
        "recordings/b.wav": ("bea", 1, "val", "female"),
        "more/c.flac": ("007", 1, "test", None),
        "recordings/d1.wav": ("dee", 0, "train", "female"),
        "recordings/d2.wav": ("dee", 1, "train", "female"),
    }
    assert sessions["more/c.flac"].turns == [(folder / "more" / "c.flac", 0.0, None)]
    assert name == "recordings"
    [note] = findings.notes
    assert findings == Findings(notes=[note]) and note.endswith("with both labels: dee")


def test_folder_with_files_and_labels_only(folder):
    path = folder.parent / "labels.csv"
    path.write_text("file;label\n" + "".join(f"{name};1\n" for name in SOUNDS))
    _, sessions, _ = read(folder, path)
    facts = facts_of(sessions, "participant", "label", "split", "gender")
    assert facts["more/c.flac"] == ("c", 1, None, None) and len(facts) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("a.wav,0", "a.wav,2")], "1 problem: row 2: label '2' is neither 0 nor 1"),
        ([("b.wav,1", "b.wav,"), ("c.flac,1", "c.flac,?")], "2 problems: row 3.*row 4.*'?'"),
        ([(",dev", ",half")], "row 3: split 'half' is not train, val or test"),
        ([("d2.wav", "d1.wav")], "row 6: file 'd1.wav' repeats"),
        ([("bea", "../bea")], "row 3: participant '../bea' cannot begin a file name"),
        ([("d2.wav,1,dee,female,train", "d2.wav,1,dee,female,test")], "1 participants.*dee"),
        ([(f"{n}.", f"{n}{n}.") for n in ("a", "b", "c", "d1", "d2")], "5 of 5.*aa.wav.*a.wav"),
    ],
)
def test_bad_label_files(folder, changes, message):
    with pytest.raises(InputError, match=message):
        read(folder, write_labels(folder, *changes))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["p1/positive.wav", "p2/positive.wav"], "p1/positive.wav, p2/positive.wav are named"),
        (["p1/S1.wav", "p2/s01.wav"], "p1/S1.wav, p2/s01.wav are named alike"),
        (["alice_1.wav", "alice_2.wav", "bob_1.wav"], "alice_1, alice_2"),
        (["03-01-06-01-02-01-12.wav", "03-01-05-01-02-01-11.wav"], "03-01-06"),
    ],
)
def test_file_names_that_leave_open_who_is_who(tmp_path, names, message):
    root, labels = tmp_path / "in", tmp_path / "labels.csv"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    rows = [f"{name},{n % 2}" for n, name in enumerate(names)]
    labels.write_text("\n".join(["file,label", *rows]))
    with pytest.raises(InputError, match=f"who is who.*{message}.*add a column participant"):
        read(root, labels)
    rows = [f"{row},person {n}" for n, row in enumerate(rows)]
    labels.write_text("\n".join(["file,label,speaker", *rows]))
    assert len(read(root, labels)[1]) == len(names)


@pytest.mark.parametrize("names", ["anna1 anna2 bob", "bob anna_morning Anna2"])
def test_file_names_that_could_be_one_persons_are_noted(tmp_path, names):
    (root := tmp_path / "in").mkdir()
    names, labels = names.split(), tmp_path / "labels.csv"
    for name in names:
        (root / f"{name}.wav").touch()
    labels.write_text("file,label\nnone.wav,1\n" + "".join(f"{name}.wav,1\n" for name in names))
    _, sessions, findings = read(root, labels)
    assert len(sessions) == 3
    (note,) = findings.notes
    two = " and ".join(name for name in names if name != "bob")
    assert f"{labels}: no column participant: {two} are taken for two people" in note


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_unicode_form_or_case(tmp_path, forms):
    row, file = (unicodedata.normalize(form, "Zoé") for form in forms)
    root, labels = tmp_path / "in", tmp_path / "labels.csv"
    root.mkdir()
    for name in (f"{file}.wav", "Ann.wav"):
        (root / name).touch()
    labels.write_text(f"file,label,fold\n{row}.wav,1,2\nann.wav,0,1\n")
    _, sessions, findings = read(root, labels)
    (session,) = sessions.values()
    assert session.participant == unicodedata.normalize("NFC", "Zoé") and session.fold == "2"
    assert session.turns[0][0] == root / f"{file}.wav"
    (problem,) = findings.problems
    assert "ann.wav (Ann.wav differs in case: rename it)" in problem
    assert "1 without a label (in/Ann.wav)" in count_used(findings, sessions)


def test_labels_and_recordings_that_do_not_match(folder):
    _, sessions, findings = read(folder, write_labels(folder, ("a.wav", "z.wav")))
    assert len(sessions) == 4
    assert findings.problems == ["labels.csv: 1 of 5 files are not there: z.wav"]
    assert findings.notes[1:] == ["1 recordings without a label: a.wav"]


@pytest.mark.parametrize("write", ["./{}", ".//{}", "{root}/{}", "{root}/../in/{}", "{link}/{}"])
def test_files_by_their_whole_path_or_from_here(folder, tmp_path, write):
    (tmp_path / "link").symlink_to(folder)
    places = {"root": folder, "link": tmp_path / "link"}
    names = [write.replace("/in/", f"/{folder.name}/").format(name, **places) for name in SOUNDS]
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\n" + "".join(f"{name},1\n" for name in names))
    _, sessions, findings = read(folder, labels)
    assert [session.participant for session in sessions.values()] == ["a", "b", "d1", "d2", "c"]
    assert findings == Findings()


def test_files_without_a_suffix_are_matched_where_one_is_meant(folder):
    (folder / "b.mp3").touch()
    (folder / "a.txt").touch()
    changes = [(f"{name}.wav", name) for name in ("a", "b", "d1")]
    _, sessions, findings = read(folder, write_labels(folder, *changes))
    assert sorted(sessions) == ["more/c.flac", *(f"recordings/{n}.wav" for n in ("a", "d1", "d2"))]
    assert findings.problems == ["labels.csv: 1 of 5 files are not there: b"]
    with pytest.raises(InputError, match="row 5: file 'a.wav' repeats"):
        read(folder, write_labels(folder, ("a.wav", "a"), ("d1.wav", "a.wav")))


def test_links_to_nothing_are_accounted_for(folder):
    (folder / "gone.WAV").symlink_to("nowhere")
    (folder / "gone.txt").symlink_to("nowhere")
    _, sessions, findings = read(folder, write_labels(folder))
    line = count_used(findings, sessions)
    assert line.endswith("6 sound files: 5 used, 1 not: 1 a link to nothing (recordings/gone.WAV)")


def test_what_is_no_corpus(folder, tmp_path):
    table = tmp_path / "table.csv"

    def message(source, labels=None, layout=None):
        with pytest.raises(InputError) as error:
            read(source, labels, layout)
        return str(error.value)

    assert "no such folder" in message(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    text = message(tmp_path / "empty")
    assert "no layout recognised" in text and "_TRANSCRIPT.csv" in text and "no file" in text
    assert "4 .wav, 1 .flac" in message(folder)
    assert "needs --labels" in message(folder, layout="folder")
    assert "no such file" in message(folder, tmp_path / "none.csv")
    table.write_text("name,label\na.wav,1\n")
    text = message(folder, table)
    assert "expected columns file" in text and "'name', 'label'" in text
    table.write_text("")
    assert f"{table}: expected columns file and label" in message(folder, table)


def test_a_file_that_labels_could_not_name_is_refused_at_once(folder):
    (folder / "a.wav").rename(folder / "NA.wav")
    (folder / "l.csv").write_text("file,label\nNA.wav,0\nb.wav,1\n")
    with pytest.raises(InputError, match="NA is no person's name: rename the file"):
        read(folder, folder / "l.csv")
