"""The corpora with their traps: whose turns are read, labels, splits, and what is reported.

Every corpus is made up here; what a session holds is read and must be free of the tone.
"""

import re
from itertools import chain

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from recordings import RATE, hears_tone, make_rows, write_daic_session, write_recording

from speech.audio import cut_clips, log_mel, read_sound
from speech.cli import InputError
from speech.corpora import NOT_SPEECH, Findings, merge, read_corpus, subtract


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
    (root / "fold-lists.csv").write_text("Reading,,Interview\n'01_CF56_1',,'01_CF56_1'\n")
    _, sessions, findings = read(tmp_path)
    people = {"01_CF56_1": ("01_C", 0, "female"), "01_PM33_2": ("01_P", 1, "male")}
    people["12_PF40_X"] = ("12_P", 1, "female")
    assert facts_of(sessions, "participant", "label", "gender", "split") == {
        f"{who} {task}": (*facts, None)
        for who, facts in people.items()
        for task in ("interview", "reading")
    }
    assert "folds" in findings.notes[0] and not findings.problems
    # An interview of 15.4 s and a reading of 9 s, each one clip.
    assert set(map(count_clips, sessions.values())) == {1}
    names = [path.stem for path, _, _ in sessions["01_CF56_1 interview"].turns]
    assert names == [f"01_CF56_1_{number}" for number in range(1, 12)]  # 10 after 9


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
    assert name == "recordings" and findings == Findings()


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


def test_labels_and_recordings_that_do_not_match(folder):
    _, sessions, findings = read(folder, write_labels(folder, ("a.wav", "z.wav")))
    assert len(sessions) == 4
    assert findings.problems == ["labels.csv: 1 of 5 files are not there: z.wav"]
    assert findings.notes == ["1 recordings without a label: a.wav"]


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
