"""Reading clips and labels that nobody has checked, and splitting people."""

import io
import os
import struct
import time
import unicodedata
from pathlib import Path

from speech.cli import InputError
from speech.dataset import (
    check_clips,
    find_stems,
    quote_formulas,
    read_labels,
    read_shape,
    read_spectrogram,
    split_clips,
    split_folds,
)

import numpy as np
import pandas as pd
import pytest
from conftest import fuzzed, refused_or_read, write_clips
from hypothesis import given, settings
from hypothesis import strategies as st


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def with_header(header: bytes | str, data=b"", version=(1, 0), length=None):
    """A .npy file with any header at all."""
    header = header.encode() if isinstance(header, str) else header
    form = "<H" if version == (1, 0) else "<I"
    length = len(header) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack(form, length) + header + data


def shaped(shape, dtype="<f4", order=False, data=b""):
    return with_header(
        f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}}}\n", data
    )


CLIP = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
WHOLE = npy(CLIP)


# --- clips --------------------------------------------------------------------------------------


def test_a_clip_is_scaled_to_0_1_whatever_its_unit_or_layout():
    expected = (CLIP - CLIP.min()) / (CLIP.max() - CLIP.min())
    for array in (
        CLIP,
        CLIP * 80 - 80,
        np.asfortranarray(CLIP),
        CLIP.astype(">f4"),
        CLIP[::-1][::-1],
    ):
        got = read_spectrogram(npy(array))
        assert got.dtype == np.float32 and got.shape == (16, 24) and got.flags.c_contiguous
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.array_equal(read_spectrogram(npy(expected)), expected), (
        "normalised clips stay as they are"
    )


@pytest.mark.parametrize("dtype", ["<f2", "<f8", "i1", "u1", "<i4", "<u8", "<i8"])
def test_every_real_number_type_is_read(dtype):
    array = (np.arange(32).reshape(4, 8) % 29).astype(dtype)
    np.testing.assert_allclose(read_spectrogram(npy(array)), array.astype("f8") / 28, atol=1e-3)


def test_a_path_and_its_bytes_give_the_same(tmp_path):
    (tmp_path / "a.npy").write_bytes(WHOLE)
    assert np.array_equal(read_spectrogram(tmp_path / "a.npy"), read_spectrogram(WHOLE))


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=CLIP)
    return buffer.getvalue()


def changed(value):
    array = CLIP.copy()
    array[3, 5] = value
    return npy(array)


class Evil:
    def __reduce__(self):
        return (print, ("EXECUTED",))


NESTED = "[" * 900
HOSTILE = {
    "empty": b"",
    "magic only": b"\x93NUMPY",
    "magic and version": b"\x93NUMPY\x01\x00",
    "text": b"hello, I am a text file\n" * 9,
    "png": b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
    "zip": npz(),
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05print\x94.",
    "object array": npy(np.array([[Evil()]], dtype=object), allow_pickle=True),
    "truncated header": WHOLE[:60],
    "truncated data": WHOLE[:-1],
    "trailing bytes": WHOLE + b"\0",
    "version 0": with_header("{}", version=(0, 0)),
    "version 3": npy(CLIP).replace(b"\x01\x00", b"\x03\x00", 1),
    "version 9": with_header("{}", version=(9, 9)),
    "v2 header of 4 GiB": with_header("{'descr'", version=(2, 0), length=0xFFFFFFFF),
    "v1 header of 64 KiB": with_header(" " * 65535),
    "header is not a dict": with_header("[1, 2]\n"),
    "header misses a key": with_header("{'descr': '<f4', 'shape': (2, 2)}\n"),
    "header has another key": with_header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), 'x': 1}\n"
    ),
    "header is code": with_header("__import__('os').system('echo EXECUTED')\n"),
    "header is nested": with_header(NESTED),
    "header is binary": with_header(bytes(range(256))),
    "header is not closed": with_header("{'descr': '<f4', 'shape': ("),
    "order is text": with_header("{'descr': '<f4', 'fortran_order': 'no', 'shape': (2, 2)}\n"),
    "1 TB": shaped((2**20, 2**18)),
    "2^70": shaped((2**35, 2**35)),
    "2^70 in one": shaped((2**70, 1)),
    "negative": shaped((-1, 4)),
    "two negatives": shaped((-2, -2), data=b"\0" * 16),
    "zero rows": shaped((0, 4)),
    "zero columns": shaped((4, 0)),
    "bool in shape": shaped((True, 4), data=b"\0" * 16),
    "float in shape": shaped((2.0, 2), data=b"\0" * 16),
    "text in shape": shaped(("2", 2)),
    "shape is a list": shaped([2, 2], data=b"\0" * 16),
    "shape is a number": shaped(4, data=b"\0" * 16),
    "0-d": npy(np.float32(1)),
    "1-d": npy(CLIP[0]),
    "3-d": npy(CLIP[None]),
    "S0 of 10^10": shaped((10**5, 10**5), "|S0"),
    "V0 of 10^10": shaped((10**5, 10**5), "|V0"),
    "U0": shaped((4, 4), "<U0"),
    "text array": npy(np.full((4, 4), "abc")),
    "bytes array": npy(np.full((4, 4), b"abc")),
    "struct": npy(np.zeros((4, 4), dtype=[("a", "f4"), ("b", "i2")])),
    "datetime": npy(np.zeros((4, 4), dtype="datetime64[s]")),
    "timedelta": npy(np.zeros((4, 4), dtype="timedelta64[s]")),
    "complex": npy(CLIP.astype("c8")),
    "bool": npy(CLIP > 0),
    "float128": npy(CLIP.astype(np.longdouble)),
    "unknown dtype": shaped((2, 2), "<q9"),
    "dtype is a dict": with_header(
        "{'descr': {'names': ['a']}, 'fortran_order': False, 'shape': (2, 2)}\n"
    ),
    "NaN": changed(np.nan),
    "inf": changed(np.inf),
    "-inf": changed(-np.inf),
    "1e308": npy(np.array([[0, 1e308], [1, 2]])),
    "span of both ends": npy(np.array([[-3e38, 3e38], [1, 2]], dtype="f4")),
    "constant": npy(np.full((4, 4), 7.0)),
    "zeros": npy(np.zeros((128, 251), "f4")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_is_one_line(kind, capfd):
    with pytest.raises(InputError) as caught:
        read_spectrogram(HOSTILE[kind])
    assert 10 < len(str(caught.value)) < 200 and "\n" not in str(caught.value)
    assert "EXECUTED" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "data, expected",
    [
        (HOSTILE["zip"], "a ZIP archive, as np.savez writes: save one array with np.save"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
        (HOSTILE["1e308"], "values beyond float32"),
        (HOSTILE["inf"], "holds NaN or infinite values"),
        (HOSTILE["3-d"], r"found shape \(1, 16, 24\): save array.squeeze\(\)"),
        (npy(CLIP[:, :, None]), r"found shape \(16, 24, 1\): save array.squeeze\(\)"),
        (npy(np.stack([CLIP, CLIP])), r"found shape \(2, 16, 24\)$"),
    ],
)
def test_what_to_do_with_a_file_that_is_no_clip(data, expected):
    with pytest.raises(InputError, match=expected):
        read_spectrogram(data)


def test_a_lying_header_takes_no_memory():
    import tracemalloc

    tracemalloc.start()
    for data in HOSTILE.values():
        with pytest.raises(InputError):
            read_spectrogram(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


@st.composite
def mutated(draw):
    broken = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        broken[draw(st.integers(0, 160))] = draw(st.integers(0, 255))
    return bytes(broken)


@st.composite
def lying(draw):
    """A well-formed header that promises anything, before data that may not keep it."""
    kinds = ["<f4", ">f8", "<f2", "|i1", "<u8", "|b1", "|O", "<c8", "<f16", "|S0", "|V0", "<U4"]
    kind = draw(st.sampled_from([*kinds, "<M8[s]", [("a", "<f4")], ("<f4", (2, 2)), "f", "", 7]))
    sizes = st.sampled_from([1, 2, 3, 4, 0, -1, True, 2.0, None, 2**31, 2**63, 2**70])
    shape = draw(st.lists(sizes, max_size=4).map(tuple) | sizes)
    order, version = draw(st.sampled_from([False, True, 0, "C"])), draw(st.sampled_from([1, 2, 3]))
    header = repr({"descr": kind, "fortran_order": order, "shape": shape}) + "\n"
    length = draw(st.sampled_from([None, None, 0, 60, 65535]))
    return with_header(header, draw(st.binary(max_size=200)), (version, 0), length)


@st.composite
def filled(draw):
    """A whole file of any numbers at all."""
    kind = np.dtype(draw(st.sampled_from(["<f4", ">f4", "<f8", "<f2", "|i1", "<u8", "<i8"])))
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = rows * columns * kind.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    return shaped((rows, columns), kind.str, draw(st.booleans()), data)


@fuzzed
@given(mutated() | lying() | filled() | st.binary(max_size=200))
def test_fuzz_clips_are_read_or_refused(content):
    with refused_or_read():
        clip = read_spectrogram(content)
        assert clip.dtype == np.float32 and clip.ndim == 2 and np.isfinite(clip).all()
        assert clip.min() == 0 and clip.max() == 1


def test_a_header_alone_tells_the_shape(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(shaped((128, 400_000), "|i1"))  # none of its data is there
    assert read_shape(path) == (128, 400_000)
    path.write_bytes(shaped((128, 2**40), "|i1"))
    with pytest.raises(InputError, match="over the limit"):
        read_shape(path)
    with pytest.raises(InputError, match="not a regular file"):
        read_shape(tmp_path)


def test_a_folder_or_a_missing_file_is_reported(tmp_path):
    with pytest.raises(InputError, match="not a regular file"):
        read_spectrogram(tmp_path)
    with pytest.raises(InputError, match="cannot be read .No such file"):
        read_spectrogram(tmp_path / "none.npy")


# --- labels -------------------------------------------------------------------------------------


def labels(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "dataset.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("start", list("=+-@\t\r\n") + ["＝", "＋", "－", "＠"])
def test_no_cell_is_a_formula(start):
    assert quote_formulas([f"{start}1+1", "a" + start, 0.5, None, ""]) == [
        f"'{start}1+1",
        "a" + start,
        0.5,
        None,
        "",
    ]


def test_ids_stay_text_and_participants_come_from_them(tmp_path):
    frame, _ = read_labels(labels(tmp_path, "id,label\n007_clip_0,1\n007_clip_8,0\nanna,0\n"))
    assert frame["id"].tolist() == ["007_clip_0", "007_clip_8", "anna"]
    assert frame["participant"].tolist() == ["007", "007", "anna"]
    assert frame["label"].tolist() == [1, 0, 0]


def test_given_participants_win_over_ids(tmp_path):
    text = "id,label,participant,gender\na_clip_0,1,X,female\nb_clip_0,0,Y,\n"
    frame, notes = read_labels(labels(tmp_path, text))
    assert frame["participant"].tolist() == ["X", "Y"] and notes == []
    assert frame["gender"].tolist()[0] == "female" and pd.isna(frame["gender"].tolist()[1])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffid,label\n a ,1\nb,0\n",
        "id,label\r\na,1\r\nb,0\r\n",
        '"id","label"\n"a","1"\n"b","0"\n',
        "id;label\na;1\nb;0\n",
        "label,id\n1.0,a\n0.0,b\n",
        "id,label\na,True\nb,False\n",
        'id,label\na," 1"\nb,0 \n',
        "id , label\na,1\nb,0",
        "ID,Label\na,Depressed\nb,not depressed\n",
        "id\tlabel\na\tYES\nb\tno\n",
        '"id"\t"label"\n"a"\t"1"\n"b"\t"0"\n',
        "sep=;\nid;label\na;1\nb;0\n",
        "id,label,,\na,1,,\n,,,\nb,0,,\n,,,\n",
        "\ufeffid;label;\na.npy;Not_Depressed;\nb.NPY;Not-Depressed;\n".replace(
            ";Not_Depressed", ";1"
        ),
    ],
)
def test_csv_dialects(tmp_path, text):
    frame, _ = read_labels(labels(tmp_path, text))
    assert frame["id"].tolist() == ["a", "b"] and frame["label"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "expected columns id and label, found"),
        ("id,label\n", "found no row"),
        ("id,label\n,\n,\n", "found no row"),
        ("name,label\na,1\n", "expected columns id and label, found 'name', 'label'"),
        ("id,label, id\na,1,b\n", "column id is there twice"),
        ("id,label\na,2\nb,\nc,x\n", "3 problems: row 2: label '2' is neither 0 nor 1; row 3"),
        ("id,label\na,1\n\nb,7\n", "row 4: label '7' is neither"),
        ("id,label\na,1\nb,0\na,1\n", "row 4: id 'a' repeats"),
        ("id,label\na,1\na.npy,1\n", "row 3: id 'a' repeats"),
        ("id,label\ne\u0301,1\n\u00e9,1\n", "row 3: id 'é' repeats"),
        ("id,label\n../x,1\n", r"row 2: id '../x' is not a plain file name"),
        ("id,label\n,1\nb,0\n", "row 2: id '' is not"),
        ("id,label\n..,1\nc\\d,0\n", "2 problems"),
        ("id,label,split\na,1,all\n", "row 2: split 'all' is not train, val or test"),
        ("id,label,fold\na,1,\n", "row 2: fold '' is empty"),
        ("id,label,fold\na,1,1\nb,0,01\n", "folds '01' and '1' differ only in"),
        ('id,label\n"a,1\n', "row 2 has 1 cells, the header 2"),
        ("id,label\na,1,x,y\n", "row 2 has 4 cells, the header 2"),
        ("id,label\na,1\nb\n", "row 3 has 1 cells, the header 2.*save it as CSV UTF-8"),
        ("id,label,participant\na,0,Smith, John\n", "row 2 has 4 cells"),
        ("id,label,speaker,Subject_ID\na,1,x,y\n", "columns speaker and subject_id mean the same"),
        ("id,label,participant\na,1,x\nb,1,\n", "row 3: participant '' is empty"),
    ],
)
def test_mistakes_in_a_table_are_one_line(tmp_path, text, expected):
    with pytest.raises(InputError, match=expected) as caught:
        read_labels(labels(tmp_path, text))
    assert "\n" not in str(caught.value) and "dataset.csv" in str(caught.value)


def test_what_is_no_utf8_csv_is_named_with_how_to_save_it(tmp_path):
    for text, encoding, expected in (
        ("id,label\nMüller,1\n", "cp1252", r"not UTF-8 text \(row 2\)"),
        ("id,label\na,1\n", "utf-16", "UTF-16 text"),
        ("id,label\na,1\n", "utf-16-le", "UTF-16 text"),
        ("PK\x03\x04 and more", "latin-1", r"a spreadsheet \(.xlsx"),
    ):
        with pytest.raises(InputError, match=f"{expected}.*save it as CSV UTF-8"):
            read_labels(labels(tmp_path, text, encoding))
    with pytest.raises(InputError, match="No such file"):
        read_labels(tmp_path / "none.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="not a regular file"):
        read_labels(tmp_path / "pipe.csv")


def test_columns_go_by_other_names_and_cells_by_other_spellings(tmp_path):
    text = "ID,Label,Speaker ID,Sex,Split,Fold,age\n"
    text += "x.npy,Depressed,S1,F,DEV,1,30\ny,no,S2,m,Train,2,9\n"
    frame, notes = read_labels(labels(tmp_path, text))
    assert frame.to_dict("list") == {
        "id": ["x", "y"],
        "label": [1, 0],
        "participant": ["S1", "S2"],
        "split": ["val", "train"],
        "fold": ["1", "2"],
        "gender": ["female", "male"],
    }
    assert len(notes) == 1 and notes[0].endswith("columns that are not used: age")


@pytest.mark.parametrize(
    "column",
    ["participant", "Participant_ID", "ParticipantID", "speaker", "SUBJECT", " subject_id "]
    + ["patient_id", "participantid", "PARTICIPANT ID#", "Participant (ID):", "Patient No."]
    + ["person", "Actor", "Subject Number", "Proband", "Participant #"],
)
def test_every_name_of_the_participant_column_is_obeyed(tmp_path, column):
    frame, notes = read_labels(labels(tmp_path, f"id,label,{column}\n300_1,1,A\n300_2,1,A\n"))
    assert frame["participant"].tolist() == ["A", "A"] and not notes


@pytest.mark.parametrize(
    "column",
    ["patient", "patient_code", "Speaker Name", "subject.key", "study_participant", "person2"],
)
def test_a_column_that_may_name_people_is_not_passed_over(tmp_path, column):
    text = f"id,label,{column}\na,0,1\nb,1,2\nc,0,1\n"
    with pytest.raises(InputError, match="who is who.*call it participant, or remove it"):
        read_labels(labels(tmp_path, text))
    known = text.replace("label,", "label,participant,").replace(",0,", ",0,x,")
    _, notes = read_labels(labels(tmp_path, known.replace(",1,2", ",1,y,2")))
    assert len(notes) == 1 and "columns that are not used" in notes[0]


@pytest.mark.parametrize(
    "column",
    ["factor", "personality", "Subjective Score", "outpatient", "patient_age", "Speaker Gender"]
    + ["speaker_emotion", "participant_phq8", "num_speakers", "patient"],  # ids say who is who
)
def test_a_column_of_something_else_is_only_noted(tmp_path, column):
    text = f"id,label,{column}\na_clip_0,0,1\na_clip_8,0,2\nb_clip_0,1,1\n"
    _, notes = read_labels(labels(tmp_path, text))
    assert len(notes) == 1 and "columns that are not used" in notes[0]


def test_beside_a_participant_an_actor_is_only_noted(tmp_path):
    text = "id,label,participant,actor\na,0,P1,x\nb,1,P2,x\n"
    frame, notes = read_labels(labels(tmp_path, text))
    assert frame["participant"].tolist() == ["P1", "P2"] and "actor" in notes[0]


def test_a_name_with_an_apostrophe_is_kept(tmp_path):
    frame, _ = read_labels(labels(tmp_path, "id,label,participant\n'90s,0,'007\nb,1,2\n"))
    assert frame["id"][0] == "'90s" and frame["participant"][0] == "007"


@pytest.mark.parametrize("column", ["participant", "fold"])
@pytest.mark.parametrize(
    "cell",
    ["??", "?", "????? 2", "M\ufffdller", "2.02301E+11", "2,02301e+11", "#N/A", "#NV", "#REF!"]
    + ["####", "#\xa1REF!", "#DIV/0!", "#NAME?", "nan", "None", "NULL", "n/a", "NA", "<NA>"],
)
def test_cells_that_a_spreadsheet_or_a_script_lost_are_refused(tmp_path, column, cell):
    text = f'id,label,{column}\na,0,x\nb,1,"{cell}"\nc,0,"{cell}"\n'
    found = f"2 problems: row 3: {column} '.*' was lost.*format the column as text.*CSV UTF-8"
    with pytest.raises(InputError, match=found):
        read_labels(labels(tmp_path, text))


def test_ids_that_were_lost_name_nobody(tmp_path):
    for lost in ("???_clip_{}", "M\ufffdller_clip_{}"):
        text = f"id,label\n{lost.format(0)},0\n{lost.format(8)},0\nb_clip_0,1\n"
        with pytest.raises(InputError, match="row 2: id '.*' was lost before it was saved"):
            read_labels(labels(tmp_path, text))
    read_labels(labels(tmp_path, "id,label\nnan_clip_0,0\nwhat?_clip_0,1\n"))  # files' names
    read_labels(labels(tmp_path, "id,label,participant\n??_clip_0,0,a\n#1,1,b\n"))


@pytest.mark.parametrize("name", ["#1", "#0", "M?ller", "Nana", "E+11", "3E11", "No. 1", "0"])
def test_names_that_only_resemble_lost_ones_are_read(tmp_path, name):
    text = f"id,label,participant\na,0,{name}\nb,1,other\n"
    assert read_labels(labels(tmp_path, text))[0]["participant"].tolist() == [name, "other"]


@pytest.mark.parametrize("cell", ['"=""007"""', '="007"', "'007", "007"])
def test_what_keeps_a_cell_text_in_a_spreadsheet_is_not_part_of_it(tmp_path, cell):
    text = f"id,label,participant\n{cell},0,{cell}\n't Hart,1,'t Hart\n"
    frame, _ = read_labels(labels(tmp_path, text))
    assert frame["id"].tolist() == frame["participant"].tolist() == ["007", "'t Hart"]


@pytest.mark.parametrize("names", [("A", "A"), ("A_clip_0", "A_clip_8")])
def test_a_participant_has_one_gender(tmp_path, names):
    header = "id,label,gender" + ",participant" * (names[0] == "A")
    ids = names if names[0] != "A" else ("x", "y")
    who = ["", ""] if names[0] != "A" else [",A", ",A"]
    text = header + "".join(f"\n{name},0,{{}}{end}" for name, end in zip(ids, who, strict=True))
    with pytest.raises(InputError, match="1 problem: participant 'A' is both female and male"):
        read_labels(labels(tmp_path, text.format("f", "m")))
    for genders in (("f", "woman"), ("f", ""), ("f", "unknown")):
        read_labels(labels(tmp_path, text.format(*genders)))


# --- who is who ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        ["300_3", "300_4", "301_1"],
        ["S01-03", "S01-04"],
        ["300_P_clip3", "300_P_clip4"],
        ["03-01-06-01-02-01-12", "03-01-06-01-02-01-13"],
        ["1001_DFA_ANG_XX", "1001_IEO_HAP_HI"],
        ["303_s39_AUDIO", "303_s40_AUDIO"],
        ["300.3", "300.4"],
        ["p01c03", "p01c04"],
        ["anna_1", "anna_2"],
        ["300 3", "300 4"],
        ["a_clip_0", "a_clip_8", "300_3", "300_4"],
        ["300_1_clip_0", "300_2_clip_0"],
        ["300_1_clip_0", "300_1_clip_8", "300_2_clip_0", "300_2_clip_8"],
    ],
)
def test_ids_that_hide_who_is_who_stop_the_run(tmp_path, ids):
    path = labels(tmp_path, "id,label\n" + "".join(f"{name},1\n" for name in ids))
    with pytest.raises(InputError, match="add a column participant, or .*--split clip"):
        read_labels(path)
    frame, _ = read_labels(path, ask_who=False)
    assert len(frame) == len(ids)
    who = "".join(f"{name},1,p{i}\n" for i, name in enumerate(ids))
    read_labels(labels(tmp_path, "id,label,participant\n" + who))  # a column says it


@pytest.mark.parametrize(
    "ids",
    [
        ["300_clip_0", "300_clip_8", "301_clip_0"],
        ["300_clip_0", "301_clip_0", "302_clip_0"],
        ["anna", "bob", "300"],
        ["S001_clip_0", "S002_clip_0"],
        ["sub_01_clip_0", "sub_01_clip_8", "sub_02_clip_0", "sub_02_clip_8"],
        ["101", "102", "103"],
        [f"{who}_clip_{n}" for who in ("HC_01", "HC_02", "PT_01", "PT_02") for n in (0, 8)],
        ["ab12cd_clip_0", "ab12cd_clip_8", "ab98ef_clip_0", "cd12ab_clip_0"],
        ["P01_clip_0", "P01_clip_8", "P02_clip_0", "C01_clip_0", "anna_clip_0", "bert_clip_0"],
    ],
)
def test_ids_that_tell_who_is_who_are_read(tmp_path, ids):
    text = "id,label\n" + "".join(f"{name},1\n" for name in ids)
    frame, notes = read_labels(labels(tmp_path, text))
    alone = frame["participant"].is_unique
    assert bool(notes) == alone, "that each is taken for another person is not silent"


@pytest.mark.parametrize(
    "first, second, others",
    [
        ("anna_morning", "anna_evening", ["bert_morning"]),
        ("anna_morning", "anna_evening", ["bert_morning", "bert_evening"]),
        ("Anna1", "anna2", ["bert"]),
        ("anna", "anna2", ["bert"]),
        ("anna 1", "anna 2", ["bert1", "bert2", "cleo1", "cleo2"]),
    ],
)
def test_names_that_begin_with_the_same_word_are_noted(tmp_path, first, second, others):
    ids = [f"{who}_clip_{n}" for who in (first, second, *others) for n in (0, 8)]
    path = labels(tmp_path, "id,label\n" + "".join(f"{name},1\n" for name in ids))
    _, notes = read_labels(path)
    expected = f"no column participant: {first} and {second} are taken for two people"
    assert len(notes) == 1 and expected in notes[0]


@pytest.mark.parametrize(
    "one, other",
    [
        ("7", "007"),
        ("S1", "s1"),
        ("300.0", "300"),
        ("S01", "S1"),
        ("Anna Maria", "AnnaMaria"),
        ("Anna  M", "Anna M"),
        ("e\u0301va", "\u00e9va"),
        ("\uff21", "A"),
        ("p1", "p1\u200b"),
        ("S-01", "S_01"),
        ("S-01", "S\u201301"),
        ("S-01", "S01"),
        ("S 01", "S01."),
        ("1-11", "1_11"),
        ("1-11", "1 \u2013 11"),
        ("O'Brien", "O\u2019Brien"),
        ("O'Brien", "O\xb4Brien"),
        ("\uff13\uff10\uff0e\uff10", "30"),
    ],
)
def test_participants_that_differ_only_in_spelling_are_refused(tmp_path, one, other):
    text = f"id,label,participant\na,1,{one}\nb,0,{other}\n"
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        frame, _ = read_labels(labels(tmp_path, text))
        assert frame["participant"].nunique() == 1
        return
    with pytest.raises(InputError, match="differ only in case, leading zeros.*spell them alike"):
        read_labels(labels(tmp_path, text))
    by_id = f"id,label\n{one}_clip_0,1\n{other}_clip_0,0\n"
    with pytest.raises(InputError, match="spell them alike"):
        read_labels(labels(tmp_path, by_id))


def test_a_decimal_comma_is_a_spelling(tmp_path):
    with pytest.raises(InputError, match="participants '300' and '300,0' differ only in"):
        read_labels(labels(tmp_path, "id;label;participant\na;1;300,0\nb;0;300\n"))


@pytest.mark.parametrize(
    "one, other",
    [("1-11", "11-1"), ("1-11", "111"), ("30-0", "300"), ("\U0001f436", "\U0001f431")]
    + [("\u0915\u093f", "\u0915\u0940"), ("?a", "?b"), ("+", "-"), ("3.10", "3.1")]
    + [("Ann_Alee", "Anna_Lee"), ("\U0001f469\U0001f3fd", "\U0001f469\U0001f3ff"), ("A+", "A-")],
)
def test_other_people_are_not_taken_for_another_spelling(tmp_path, one, other):
    frame, _ = read_labels(labels(tmp_path, f"id,label,participant\na,1,{one}\nb,0,{other}\n"))
    assert frame["participant"].tolist() == [one, other]


@pytest.mark.parametrize(
    "column, letters", [("id", 256), ("participant", 300), ("fold", 131_000), ("label", 131_000)]
)
def test_what_is_longer_than_a_name_can_be_is_refused_at_once(tmp_path, column, letters):
    cells = {"id": "a_1", "label": "1", "participant": "a", "fold": "1"}
    cells[column] = "_" * (letters - 2) + "a_"
    path = labels(tmp_path, f"{','.join(cells)}\n{','.join(cells.values())}\nb,0,b,2\n")
    started = time.process_time()
    with pytest.raises(InputError, match=f"1 problem: row 2: {column} '___.* is too long$"):
        read_labels(path)
    assert time.process_time() - started < 1


def test_columns_are_bounded(tmp_path):
    path = labels(tmp_path, "id,label" + "," * 10_001 + "\na,1" + "," * 10_001 + "\n")
    with pytest.raises(InputError, match="10003 columns, expected at most 10000"):
        read_labels(path)


def test_the_parts_of_a_name_are_found_in_linear_time():
    assert find_stems("300_a_3") == {"300", "300_a"}
    assert find_stems("03-01--06_") == {"03", "03-01--06"}
    assert find_stems("_a") == set() and find_stems("ab12cd") == {"ab12"}
    started = time.process_time()
    for evil in ("_" * 20_000 + "a_", "_a" * 20_000, "0" * 20_000 + "_", "a" * 20_000):
        find_stems(evil)
    assert time.process_time() - started < 1


def test_all_problems_are_counted_and_ten_named(tmp_path):
    rows = "".join(f"a{i},7\n" for i in range(25))
    with pytest.raises(InputError, match="25 problems.*and 15 more") as caught:
        read_labels(labels(tmp_path, "id,label\n" + rows))
    assert str(caught.value).count("row ") == 10


@st.composite
def tables(draw):
    """A CSV of cells that are nearly right, in some dialect and encoding."""
    names = ["id", "label", "participant", "split", "gender", " id ", "ID", '"label"', "x", ""]
    header = draw(st.just(["id", "label"]) | st.lists(st.sampled_from(names), max_size=5))
    cells = ["0", "1", " 1", "1.0", "True", "false", "train", "7", "", " ", "NA", "nan", "007"]
    cells += ["a_clip_0", "a", "b", "..", "a/b", "a\\b", '"', "'", '"q"', '"a,b"', '"a\nb"', "=1"]
    cells = st.sampled_from([*cells, "é", "\0", "\ufeff", "\x85", "\u2028", "1\0", "x" * 999])
    rows = draw(st.lists(st.lists(cells | st.text(max_size=3), max_size=5), max_size=6))
    separator, end = draw(st.sampled_from(",,;\t|")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join(separator.join(row) for row in [header, *rows])
    encodings = ["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"]
    return text.encode(draw(st.sampled_from(encodings)), "replace")


@fuzzed
@given(tables() | st.binary(max_size=200).map(b"id,label\n".__add__))
def test_fuzz_labels_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.unlink(missing_ok=True)  # to overwrite it would wait for the disk
    path.write_bytes(content)
    with refused_or_read():
        frame, _ = read_labels(path)
        assert len(frame) and frame["id"].is_unique and set(frame["label"]) <= {0, 1}
        assert all(name == Path(name).name and "\0" not in name for name in frame["id"])
        assert all(frame["participant"].str.len() > 0)


def test_300_000_rows_take_seconds(tmp_path):
    rows = "".join(f"{i // 9:06}_clip_{i % 9},{i % 2}\n" for i in range(300_000))
    path = labels(tmp_path, "id,label\n" + rows)
    started = time.process_time()
    frame, _ = read_labels(path)
    assert len(frame) == 300_000 and frame["participant"].nunique() == -(-300_000 // 9)
    assert time.process_time() - started < 8  # 2 alone on a quiet machine


def test_clip_problems_are_reported_together(tmp_path):
    folder = write_clips(tmp_path / "d", 6, 2) / "Spectrograms"
    frame, _ = read_labels(tmp_path / "d" / "dataset.csv")
    assert check_clips(frame, folder).shape == (16, 24)
    (folder / "000_clip_0.npy").unlink()
    (folder / "000_clip_8.npy").write_bytes(b"junk")
    np.save(folder / "001_clip_0.npy", np.ones((16, 24)))
    np.save(folder / "001_clip_8.npy", np.eye(16, 23))
    np.save(folder / "002_clip_0.npy", np.full((16, 24), np.nan))
    with pytest.raises(InputError) as caught:
        check_clips(frame, folder)
    message = str(caught.value)
    for part in (
        "5 problems",
        "000_clip_0.npy is not there",
        "000_clip_8.npy not a .npy file",
        "001_clip_0.npy constant",
        "002_clip_0.npy holds NaN",
        "001_clip_8.npy has shape (16, 23), most have (16, 24)",
    ):
        assert part in message


def log_mel_clips(n=12):
    """Clips with a spectrum of their own, in dB: (N, M, T)."""
    rng = np.random.default_rng(0)
    spectrum = np.linspace(0, -50, 16)[:, None] + 4 * np.sin(np.arange(16))[:, None]
    return spectrum - 50 * rng.random((n, 1, 24)) + rng.normal(0, 4, (n, 16, 24))


def checked(folder, clips, labels_of=lambda i: i % 2, people_of=lambda i: f"p{i}"):
    (folder / "Spectrograms").mkdir(exist_ok=True)
    for i, clip in enumerate(clips):
        np.save(folder / "Spectrograms" / f"c{i}.npy", clip)
    rows = [(f"c{i}", labels_of(i), people_of(i)) for i in range(len(clips))]
    frame = pd.DataFrame(rows, columns=["id", "label", "participant"])
    return check_clips(frame, folder / "Spectrograms")


def test_power_and_amplitude_are_refused_and_db_is_not(tmp_path):
    decibels = log_mel_clips()
    assert checked(tmp_path, decibels).notes == []
    assert checked(tmp_path, (decibels + 80) / 80).notes == []
    for linear in (10 ** (decibels / 10), 10 ** (decibels / 20)):
        with pytest.raises(InputError, match=r"12 of 12 clips are almost all.*power_to_db"):
            checked(tmp_path, linear)
    mixed = [10 ** (clip / 10) if i == 3 else clip for i, clip in enumerate(decibels)]
    assert checked(tmp_path, mixed).notes == ["clips almost all next to 0 after scaling: c3"]


def test_transposed_clips_are_refused(tmp_path):
    clips = log_mel_clips()
    with pytest.raises(InputError, match=r"\(24, 16\) looks transposed.*save each clip's .T"):
        checked(tmp_path, clips.transpose(0, 2, 1))
    square = clips[:, :, :16]
    assert checked(tmp_path, square).shape == (16, 16)
    with pytest.raises(InputError, match="looks transposed"):
        checked(tmp_path, square.transpose(0, 2, 1))


def test_the_same_clip_twice_is_noted_or_refused(tmp_path):
    clips = log_mel_clips(6)
    clips[4], clips[5] = clips[1], 2 * clips[1]  # another unit is the same clip
    one = checked(tmp_path, clips, lambda i: 1, lambda i: "one")
    assert one.notes == ["the same clip more than once: c1 and c4 and c5"]
    for labels_of, people_of in ((lambda i: i % 2, lambda i: "a"), (lambda i: 1, str)):
        with pytest.raises(InputError, match="c1 and c4 and c5 are the same clip, of different"):
            checked(tmp_path, clips, labels_of, people_of)


def test_a_hash_tells_other_clips_labels_and_people(tmp_path):
    clips = log_mel_clips(4)
    first = checked(tmp_path, clips).content
    assert checked(tmp_path, clips).content == first
    assert checked(tmp_path, clips, lambda i: 0).content != first
    assert checked(tmp_path, clips, people_of=lambda i: f"q{i}").content != first
    assert checked(tmp_path, -clips).content != first


def test_names_in_another_unicode_form_or_case(tmp_path):
    np.save(tmp_path / "e\u0301.npy", CLIP)  # as macOS writes é
    frame = pd.DataFrame({"id": ["\u00e9"], "label": [1], "participant": ["a"]})
    clips = check_clips(frame, tmp_path)
    assert Path(clips.frame["path"][0]).exists() and clips.shape == (16, 24)
    np.save(tmp_path / "Anna.npy", CLIP)
    frame["id"] = ["anna"]
    with pytest.raises(InputError, match="anna.npy is not there; Anna.npy differs in case"):
        check_clips(frame, tmp_path)


# --- splits -------------------------------------------------------------------------------------


def frame_of(clips_per_person, labels_of=lambda person: person % 2):
    rows = [
        (f"{p:03}_clip_{8 * c}", labels_of(p), f"{p:03}")
        for p, clips in enumerate(clips_per_person)
        for c in range(clips)
    ]
    return pd.DataFrame(rows, columns=["id", "label", "participant"])


people = st.lists(st.integers(1, 12), min_size=8, max_size=40)


@settings(max_examples=150, deadline=None)
@given(people, st.integers(0, 1000), st.booleans())
def test_nobody_is_on_two_sides(clips_per_person, seed, validate):
    frame = frame_of(clips_per_person)
    split = split_clips(frame, "participant", seed, validate=validate)
    sides = [set(frame["participant"].iloc[positions]) for positions in split.values()]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert sorted(np.concatenate(list(split.values()))) == list(range(len(frame)))
    again = split_clips(frame, "participant", seed, validate=validate)
    assert all(np.array_equal(split[side], again[side]) for side in split)
    assert bool(len(split["val"])) == validate and len(split["test"])


@settings(max_examples=50, deadline=None)
@given(people, st.integers(2, 8), st.integers(0, 1000))
def test_every_clip_is_in_one_fold(clips_per_person, folds, seed):
    frame = frame_of(clips_per_person)
    tests = [held for _, held in split_folds(frame, folds, "participant", seed)]
    assert sorted(np.concatenate(tests)) == list(range(len(frame)))
    owners = [set(frame["participant"].iloc[held]) for held in tests]
    assert sum(map(len, owners)) == len(clips_per_person)


def test_the_sizes_of_the_default_split():
    frame = frame_of([10] * 60)
    split = split_clips(frame, "participant", 42)
    assert {side: len(positions) for side, positions in split.items()} == {
        "train": 420,
        "val": 60,
        "test": 120,
    }
    for positions in split.values():
        assert frame["label"].iloc[positions].mean() == 0.5


def test_the_notebooks_split_sizes():
    frame = frame_of([67, 67, 66, 66, 66, 66, 66])
    split = split_clips(frame, "clip", 42, validate=False)
    assert (len(split["train"]), len(split["test"])) == (371, 93)
    assert set(frame["participant"].iloc[split["train"]]) == set(frame["participant"])


def test_an_official_split_is_obeyed():
    frame = frame_of([4] * 30)
    frame["split"] = ["train"] * 80 + ["val"] * 20 + ["test"] * 20
    for by in ("participant", "clip"):
        split = split_clips(frame, by, 42)
        assert [len(split[side]) for side in ("train", "val", "test")] == [80, 20, 20]
    frame["split"] = ["train"] * 80 + ["val"] * 40
    split = split_clips(frame, "participant", 42)  # no test labels: the development people test
    assert list(split["test"]) == list(range(80, 120)) and len(split["val"]) in range(8, 17)


def test_given_folds_are_the_folds():
    frame = frame_of([3] * 6).assign(fold=["10", "2", "1"] * 6)
    folds = split_folds(frame, "given", "participant", 42)
    assert [sorted(set(frame["fold"].iloc[held])) for _, held in folds] == [["1"], ["2"], ["10"]]
    assert all(len(rest) + len(held) == len(frame) for rest, held in folds)


def test_too_few_people_are_reported():
    with pytest.raises(InputError, match=r"2 participants \(1 with label 1\) are too few"):
        split_clips(frame_of([5, 5]), "participant", 42)
    with pytest.raises(InputError, match="training: add people$"):  # no flag makes two of one
        split_clips(frame_of([5, 5]), "participant", 42)
    with pytest.raises(InputError, match="add people, or try --patience 0 or --folds people$"):
        split_clips(frame_of([1, 1, 1, 1]), "participant", 42)
    with pytest.raises(InputError, match="too few"):
        split_clips(frame_of([5]), "participant", 42)
