"""demo.py: its work, and the server as a stranger meets it over HTTP."""

import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import common
import demo
import predict
from speech import server as page_server
from speech import turns
from speech.audio import SETTINGS
from speech.verdict import Row

import gradio_client
import httpx
import numpy as np
import pytest
import safehttpx
import soundfile
from conftest import ROOT, call_script, error_line, run_script, write_weights

# --- a server to talk to ------------------------------------------------------------------------


def write_sound_weights(folder):
    """cnn.safetensors and lstm.safetensors that know how sound becomes a spectrogram."""
    arguments = {"cnn": {}, "lstm": {"steps": "time", "pool": "mean"}}
    for seed, (name, more) in enumerate(arguments.items()):
        path = write_weights(folder / f"{name}.safetensors", name, seed=seed, **more)
        model, metadata = common.load_weights(path)
        metadata["preprocessing"]["sound"] = SETTINGS
        metadata["data"]["synthetic"] = True
        common.save_weights(path, model, metadata)
    return [folder / "cnn.safetensors", folder / "lstm.safetensors"]


def write_inputs(folder):
    """Four clips of two people and a recording of 20 s: noise, shaped a little."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("001_clip_0", "001_clip_8", "002_clip_0", "002_clip_8"):
        slope = np.linspace(rng.uniform(0, 4), 0, 128)[:, np.newaxis]
        np.save(folder / f"{name}.npy", (rng.normal(size=(128, 251)) + slope).astype(np.float32))
    sound = rng.normal(size=20 * 16_000) * np.hanning(20 * 16_000) / 9
    soundfile.write(folder / "003.wav", sound, 16_000)
    return folder


@contextlib.contextmanager
def serving(folder, *flags, limits="true", **environment):
    """demo.py on a free port of the loopback -> url, process, temp (its temporary folder).

    Args:
        limits: what bash does before.
    """
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = sys.executable, ROOT / "demo.py", "--port", port, *flags
    with open(folder / "stderr", "w") as errors:
        process = subprocess.Popen(
            ["bash", "-c", f'{limits}; exec "$0" "$@"', *map(str, command)],
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving at http://127.0.0.1:"), (folder / "stderr").read_text()
        [temp] = folder.glob("speech-*")
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", process=process, temp=temp, line=line)
    finally:
        process.kill()
        process.wait()


def refuse(*flags):
    """What demo.py, which does not begin to serve, says in its one line."""
    before = signal.getsignal(signal.SIGTERM)
    line = error_line(call_script("demo.py", "--no-share", *flags))
    signal.signal(signal.SIGTERM, before)
    return line


def stop(server, number):
    """Sends the signal -> the exit status."""
    server.process.send_signal(number)
    return server.process.wait(30)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_sound_weights(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("server") / "tmp"
    with serving(folder, "--no-share", "--weights", *models) as server:
        yield server


def upload(url, paths):
    parts = [("files", (Path(path).name, Path(path).read_bytes())) for path in paths]
    return httpx.post(f"{url}/gradio_api/upload", files=parts, timeout=60, verify=False).json()


def file_data(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def call(url, name, *data):
    """One call over plain HTTP -> (the event, its data)."""
    base = f"{url}/gradio_api/call/{name}"
    answer = httpx.post(base, json={"data": data}, timeout=60, verify=False)
    if answer.status_code != 200:
        return str(answer.status_code), answer.json()
    where = f"{base}/{answer.json()['event_id']}"
    events = httpx.get(where, timeout=120, verify=False).text  # loads no certificates: 60 ms
    event, data = re.findall(r"event: (\w+)\ndata: (.*)", events)[-1]
    return event, json.loads(data)


def classify(url, paths, model="Both"):
    event, data = call(url, "classify", [file_data(path) for path in upload(url, paths)], model)
    assert event == "complete", data
    return data[0]


def expected(models, paths):
    models = predict.load_models(models)
    clips = [predict.read_input(path, models[0][1])[0][0] for path in paths]
    return predict.predict_probabilities(models, clips)


# --- the work -------------------------------------------------------------------------------------


def row(name, p, note=""):
    word = "error" if p is None else predict.verdict(p)
    return Row(name, name.split("_clip_")[0], p, word, note)


def person(name, p, word=None, note="mean of 2"):
    return Row("", name, p, word or predict.verdict(p), note)


@pytest.fixture(scope="module")
def loaded(models):
    return predict.load_models(models)


def test_the_csv_says_what_it_is_and_its_cells_are_no_formulas():
    rows = [row("=1+1", 0.25, "@x"), row("-bad", None, "why"), person("=1+1", 0.25)]
    table = demo.tabulate(rows, [(0, 0.0), (0, 8.0)], "Both", "no diagnosis")
    path = demo.write_csv(table, [Path("/tmp/my interview.wav"), Path("b.npy")])
    assert Path(path).name == "my_interview_and_1_more_predictions.csv"
    with open(path, newline="") as file:
        first, second, mean = csv.DictReader(file)
    assert first["clip"] == "'=1+1" and first["note"] == "'@x"
    assert float(first["probability"]) == 0.25 and second["seconds"] == "8"
    assert second["clip"] == "'-bad" and second["probability"] == "" and mean["seconds"] == ""
    assert first["model"] == "Both" and first["threshold"] == "0.5"
    assert first["notice"] == "no diagnosis" and first["date"].startswith("20")


def test_a_window_is_read_alone_and_is_the_one_that_was_classified(loaded, files):
    metadata = loaded[0][1]
    clips, starts, _ = predict.read_input(files / "003.wav", metadata)
    for clip, start in zip(clips, starts, strict=True):
        alone = demo.read_window(files / "003.wav", float(start), metadata)
        assert np.abs(alone - clip).max() < 1e-4
    [clip], _, _ = predict.read_input(files / "001_clip_0.npy", metadata)
    assert np.array_equal(demo.read_window(files / "001_clip_0.npy", 0.0, metadata), clip)


def test_each_clip_knows_its_file_and_start(loaded, files, tmp_path):
    """Also where a clip's name could be a window's of another file."""
    twin = tmp_path / "003_clip_8.npy"
    twin.write_bytes((files / "001_clip_0.npy").read_bytes())
    paths = [files / "003.wav", twin]
    rows, places = demo.classify(loaded, paths, demo.plan_work(paths, loaded[0][1]))
    assert places == [(0, 0.0), (0, 8.0), (0, 12.0), (1, 0.0)]
    assert [row.clip for row in rows[:4]] == [
        "003_clip_0",
        "003_clip_8",
        "003_clip_12",
        "003_clip_8",
    ]


def test_a_clip_after_silence_knows_its_start_whatever_its_name(loaded, tmp_path):
    samples = np.random.default_rng(0).normal(size=16 * 8000) / 10
    samples[:68_000] = 0
    soundfile.write(path := tmp_path / "S1_clip_0.wav", samples, 8000)
    rows, places = demo.classify(loaded, [path], demo.plan_work([path], loaded[0][1]))
    assert rows[0].clip == "S1_clip_0" and places == [(0, 8.0)]
    [clip], _, _ = predict.read_input(path, loaded[0][1])
    assert np.abs(demo.read_window(path, 8.0, loaded[0][1]) - clip).max() < 1e-4


def test_few_long_recordings_are_in_memory_at_once(loaded, files, monkeypatch):
    def classify(path):
        return demo.classify(loaded, [path], demo.plan_work([path], loaded[0][1]))[0]

    place, all_but_one = threading.BoundedSemaphore(1), threading.BoundedSemaphore(2)
    monkeypatch.setattr(turns, "PLACES", {1: all_but_one, 15: place})
    assert len(classify(files / "003.wav")) == 4 and place.acquire(blocking=False)
    with pytest.raises(predict.InputError, match="busy with other long recordings"):
        classify(files / "003.wav")
    assert len(classify(files / "001_clip_0.npy")) == 2  # a short one
    place.release()
    assert len(classify(files / "003.wav")) == 4 and place.acquire(blocking=False)
    assert all_but_one.acquire(blocking=False) and all_but_one.acquire(blocking=False)
    with pytest.raises(predict.InputError, match="busy with other long recordings"):
        classify(files / "001_clip_0.npy")  # so there is a place for what is shorter still


def test_an_answer_that_nobody_waits_for_is_an_error(loaded, files, monkeypatch):
    monkeypatch.setattr(turns, "watch_caller", lambda: lambda: True)
    with pytest.raises(demo.gr.Error, match="fetch it within 30 s of the call"):
        demo.answer({"Both": loaded}, [str(files / "003.wav")], "Both")


def test_work_that_nobody_waits_for_stops(loaded, files):
    work = demo.plan_work([files / "003.wav"], loaded[0][1])
    assert work.clips == 3 and work.seconds == 8
    work.stopped.set()
    with pytest.raises(demo.Stopped):
        demo.classify(loaded, [files / "003.wav"], work)


def test_the_page_stops_work_that_nobody_waits_for_too(loaded, files, monkeypatch, capsys):
    """Four that never ask for the answer would take all places for long recordings."""
    monkeypatch.setattr(turns, "watch_caller", lambda: lambda: True)
    *_, last = demo.run_work({"Both": loaded}, [str(files / "003.wav")], None, "Both")
    assert tuple(last[:2]) == tuple(demo.STOPPED) and not capsys.readouterr().err


def test_closing_the_generator_stops_the_work(loaded, files, monkeypatch):
    seen = []
    monkeypatch.setattr(demo, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(
        demo, "classify", lambda models, paths, work: seen.append(work) or time.sleep(0.3)
    )
    steps = demo.run_work({"Both": loaded}, [str(files / "003.wav")], None, "Both")
    assert "Reading 0.4 minutes" in next(steps)[1]
    steps.close()
    assert seen[0].stopped.is_set()


def test_whatever_fails_has_words(loaded, monkeypatch, capsys, tmp_path):
    def last(source):
        return list(demo.run_work({"Both": loaded}, source, None, "Both"))[-1][1]

    assert "Choose a file" in last(None)
    assert "x.wav: deleted after 30 minutes" in last([str(tmp_path / "x.wav")])
    (tmp_path / "x.wav").touch()
    monkeypatch.setattr(demo, "MAX_UPLOAD_BYTES", -1)
    assert "FLAC or MP3" in last([str(tmp_path / "x.wav")])
    monkeypatch.setattr(demo, "MAX_UPLOAD_BYTES", 2**20)
    monkeypatch.setattr(demo, "classify", lambda *_: 1 / 0)
    assert "failed on the server" in last([str(tmp_path / "x.wav")])
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_labels_score_the_files(loaded, files, tmp_path):
    rows = list(predict.predict(loaded, sorted(files.glob("*.npy"))))
    labels = tmp_path / "dataset.csv"
    names = ("001_clip_0", "001_clip_8", "002_clip_0", "002_clip_8")
    labels.write_text("id,label\n" + "".join(f"{name},{name[2] == '1':d}\n" for name in names))
    text = demo.score_labels(rows, str(labels), loaded)
    assert "accuracy" in text and "AUROC" in text and str(tmp_path) not in text
    labels.write_text("what,ever\n1,2\n")
    assert str(tmp_path) not in (text := demo.score_labels(rows, str(labels), loaded))
    assert "dataset.csv" in text
    assert demo.score_labels(rows, None, loaded) == ""


def test_labels_are_bounded_and_what_is_read_is_read_in_turn(loaded, files, tmp_path, monkeypatch):
    def last(labels):
        steps = demo.run_work({"Both": loaded}, [str(files / "001_clip_0.npy")], labels, "Both")
        return list(steps)[-1]

    large = tmp_path / "dataset.csv"
    large.write_text("id,label\n" + "_" * 2**20)
    assert "dataset.csv: over 1 MB, expected" in last(str(large))[1]
    assert "none.csv: deleted after" in last(str(tmp_path / "none.csv"))[1]
    large.write_text("id,label\n" + "_" * 131_000 + "a_,0\n001_clip_0,1\n")  # took minutes
    assert "is too long" in last(str(large))[4]["value"]
    busy = []
    monkeypatch.setattr(demo, "score_labels", lambda *_: busy.append(turns.TURNS.busy) or "")
    session = last(str(large))[9]
    read = demo.read_window  # of a long .npy a window takes as much memory as the whole
    monkeypatch.setattr(
        demo, "read_window", lambda *where: busy.append(turns.TURNS.busy) or read(*where)
    )
    assert "data:image/png" in demo.show_clip({"Both": loaded}, session, 0, False)
    assert busy == [1, 1]


@pytest.mark.parametrize("index", ["x" * 900_000, [0], {"a": 1}, None, -1, 2, 1.0, True, 10**99])
def test_a_bar_is_a_clips_number_or_none(index):
    session = SimpleNamespace(clips=["a", "b"])
    assert demo.choose_bar(session, SimpleNamespace(index=index)) is None
    assert demo.choose_bar(None, SimpleNamespace(index=0)) is None
    assert demo.choose_bar(session, SimpleNamespace(index=1)) == 1


def test_a_clip_of_other_bins_takes_no_memory(loaded, tmp_path):
    """64 MB of int8 are 8 s by their frames, and would be 790 MB."""
    header = {"descr": "|i1", "fortran_order": False, "shape": (262_144, 250)}
    with open(path := tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 262_144 * 250)
    tracemalloc.start()
    rows, _ = demo.classify(loaded, [path], demo.plan_work([path], loaded[0][1]))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert rows[0].verdict == "error" and "found (262144, 251)" in rows[0].note


def test_a_result_that_is_no_longer_kept_is_not_said_to_be_deleted(loaded):
    """Of too many visitors; the files may still be there."""
    choices = {"Both": loaded}
    for said in (demo.show_clip(choices, None, None, False), demo.show_download(None)[1]):
        assert "no longer kept: classify again" in said and "deleted" not in said.lower()


def test_new_work_ends_the_drawing_of_the_last(loaded):
    """Or it would come after the new result; one event draws, so pictures come in their order."""
    config = demo.build_page({"Both": loaded}, False).config
    parts = {part["id"]: part["props"] for part in config["components"]}
    names = [name for name, files in demo.EXAMPLE_INPUTS.items()]
    pressed = [i for i, p in parts.items() if p.get("value") in ("Classify", *names)]
    events = config["dependencies"]
    [picture] = [i for i, p in parts.items() if p.get("elem_id") == "picture"]
    [drawing] = [event for event in events if event["outputs"] == [picture]]
    assert drawing["trigger_mode"] == "always_last"
    ends = {i for event in events if drawing["id"] in event["cancels"] for i, _ in event["targets"]}
    assert len(pressed) == 5 and ends == {*pressed}


def test_files_are_counted():
    assert demo.count_files([]) == ""
    assert (
        demo.count_files(["/x/a_clip_0.npy", "/x/a_clip_8.npy", "/x/b.wav"]) == "3 files, 2 people"
    )
    assert demo.count_files(["/x/a.wav"]) == "1 file, 1 person"


def test_a_recording_with_a_clips_name_keeps_it(loaded):
    """The examples, or a corpus cut into clips of sound: no S014_clip_0_clip_0."""
    for [name, *_] in demo.EXAMPLE_INPUTS.values():
        [clip, _], _ = demo.classify(loaded, [demo.EXAMPLES / name], demo.Work(1, 8))
        assert clip.clip == Path(name).stem


def test_every_weights_file_is_a_choice_by_its_name():
    def choices(*names):
        paths = [Path(name) for name in names]
        return demo.name_choices(paths, [(name, {}) for name in names])

    old, new, cnn = "w/lstm-old.safetensors", "w/lstm.safetensors", "w/cnn.safetensors"
    assert choices(new) == {"lstm": [(new, {})]}
    both = choices(old, new)
    assert list(both) == ["Both", "lstm-old", "lstm"]
    assert both["Both"] == [(old, {}), (new, {})] and both["lstm-old"] == [(old, {})]
    assert list(choices(cnn, old, new)) == ["All 3", "cnn", "lstm-old", "lstm"]
    assert list(choices(cnn, new, "v/lstm.safetensors")) == [
        "All 3",
        "cnn",
        new,
        "v/lstm.safetensors",
    ]
    assert list(choices(new, "w/Both.safetensors")) == ["Both", "lstm", "w/Both.safetensors"]


# --- hardening, piece by piece ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("public", "share", "words"),
    [
        (None, True, "(no public link: Gradio could not be reached)"),
        (None, False, "(no public link: none was asked for)"),
        ("https://x.gradio.live", True, "at https://x.gradio.live"),
    ],
)
def test_one_plain_line_says_where(public, share, words, monkeypatch, capsys):
    monkeypatch.setattr(safehttpx, "async_validate_url", None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.delenv("DEMO_PASSWORD", raising=False)
    asked = {}

    def launch(**settings):
        asked.update(settings)
        print("nine lines of advice\n" * 9)
        return None, "http://127.0.0.1:7860/", public

    page = SimpleNamespace(queue=lambda **_: None, launch=launch)
    line = page_server.start(page, demo.UPLOADS, share=share)
    assert line.startswith("Serving at http://127.0.0.1:7860/") and words in line
    assert "\n" not in line and not capsys.readouterr().out
    assert asked["share"] is share and asked["auth"] is None and asked["run_history"] is False


# --- the server ---------------------------------------------------------------------------------


def test_the_page_is_served_with_nothing_from_elsewhere(server):
    page = httpx.get(server.url)
    assert page.status_code == 200 and demo.TITLE in page.text
    assert "none was asked for" in server.line
    assert "256 files and 90 MB at once, 2 hours of sound" in page.text
    fetched = re.findall(r"(?:src|href)=\"(https?:)?//([^/\"]+)", page.text)
    assert {host for _, host in fetched} <= {server.url.split("//")[1]}


def test_clips_get_predict_pys_answer_over_plain_http(server, files, models):
    paths = sorted(files.glob("*.npy"))
    answer = classify(server.url, paths)
    rows = [row._asdict() for row in predict.predict(predict.load_models(models), paths)]
    assert [row["clip"] for row in rows] == [*(path.stem for path in paths), "", ""]
    columns = ("seconds", "model", "date", "threshold", "notice")  # as in the CSV
    for found, right in zip(answer["rows"], rows, strict=True):
        facts = {name: found.pop(name) for name in columns}
        assert found == right | {"probability": pytest.approx(right["probability"], abs=1e-6)}
        assert facts["seconds"] == (0 if found["clip"] else None) and facts["model"] == "Both"
        assert facts["notice"] == answer["notice"]
    assert predict.NOTICE in answer["notice"] and predict.SYNTHETIC_NOTICE in answer["notice"]


@pytest.mark.parametrize("number, name", [(0, "cnn"), (1, "lstm")])
def test_one_model_alone(server, files, models, number, name):
    path = files / "001_clip_0.npy"
    clip, _ = classify(server.url, [path], name)["rows"]
    assert clip["probability"] == pytest.approx(expected([models[number]], [path])[0], abs=1e-6)


def test_the_readmes_client_gets_predict_pys_answer_to_a_recording(server, files, models):
    client = gradio_client.Client(server.url, verbose=False)
    recording = gradio_client.handle_file(files / "003.wav")
    answer = client.predict(recording, "lstm", api_name="/listen")
    rows = list(predict.predict(predict.load_models(models[1:]), [files / "003.wav"]))
    assert [row["clip"] for row in answer["rows"]] == [row.clip for row in rows]
    assert len(rows) == 4  # 0 to 8, 8 to 16, 12 to 20 s, and the mean
    found = [row["probability"] for row in answer["rows"]]
    assert found == pytest.approx([row.probability for row in rows], abs=1e-6)
    clips = [gradio_client.handle_file(path) for path in sorted(files.glob("001*.npy"))]
    answer = client.predict(clips, "Both", api_name="/classify")
    assert answer["rows"][-1]["note"] == "mean of 2"
    assert {"/classify", "/listen"} == set(client.view_api(return_format="dict")["named_endpoints"])


def test_a_bad_file_gets_its_own_note_and_fails_no_other(server, files, tmp_path):
    good = files / "001_clip_0.npy"
    bad = {
        "object.npy": np.array([{"a": 1}], dtype=object),
        "flat.npy": np.zeros(9),
        "nan.npy": np.full((128, 251), np.nan),
        "constant.npy": np.ones((128, 251)),
        "bins.npy": np.random.default_rng(0).normal(size=(64, 251)),
        "complex.npy": np.zeros((128, 251), complex),
    }
    for name, array in bad.items():
        np.save(tmp_path / name, array, allow_pickle=True)
    (tmp_path / "empty.npy").touch()
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    huge = b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100
    (tmp_path / "header.npy").write_bytes(huge)  # numpy would take 4 GiB for it
    (tmp_path / "cut.npy").write_bytes(good.read_bytes()[:-5])
    paths = [good, *sorted(tmp_path.iterdir())]
    clips = [row for row in classify(server.url, paths)["rows"] if row["clip"]]
    assert [clip["clip"] for clip in clips] == [path.stem for path in paths]
    assert clips[0]["probability"] is not None and clips[0]["note"] == ""
    for clip in clips[1:]:
        assert clip["verdict"] == "error" and clip["probability"] is None
        assert clip["note"] and "\n" not in clip["note"] and "Traceback" not in clip["note"]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../../etc/passwd", str(ROOT / "demo.py"), "http://127.0.0.1:1/x.npy"],
)
def test_no_other_file_and_no_address_is_read(server, path):
    event, data = call(server.url, "classify", [file_data(path)], "Both")
    assert event == "error" and "root:" not in json.dumps(data)
    assert httpx.get(f"{server.url}/gradio_api/file={path}").status_code in (403, 404)


@pytest.mark.parametrize("data", [[], [None, "Both"], [[], "Both"], ["x"], [None, "Other"]])
def test_senseless_calls_get_an_error_without_a_traceback(server, data):
    event, data = call(server.url, "classify", *data)
    assert event == "error" and "Traceback" not in json.dumps(data) and "File " not in str(data)


def test_a_thousand_files_are_refused(server, files):
    [path] = upload(server.url, [files / "001_clip_0.npy"])
    data = {"data": [[file_data(path)] * 1000, "Both"]}
    answer = httpx.post(f"{server.url}/gradio_api/call/classify", json=data)
    assert answer.status_code == 422
    assert answer.json()["detail"] == "1000 files, expected at most 256 at once."
    before = len([*server.temp.rglob("*")])
    copies = [files / "001_clip_0.npy", files / "001_clip_8.npy", files / "002_clip_0.npy"]
    assert classify(server.url, upload(server.url, copies))["rows"]
    assert len([*server.temp.rglob("*")]) <= before + 2 * len(copies)  # a folder each, no more


def stored(server):
    return {path for path in server.temp.rglob("*") if path.is_file()}


def test_a_hundred_megabytes_are_refused_announced_or_not(server):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.npy"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    before, address = stored(server), f"{server.url}/gradio_api/upload"

    def body():
        yield head
        for _ in range(100):
            yield bytes(10**6)

    whole = httpx.post(address, content=body(), headers=kind, timeout=60)
    assert whole.status_code == 413 and "maximum allowed size" in whole.text
    with socket.create_connection(("127.0.0.1", int(server.url.split(":")[-1]))) as plain:
        plain.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + head
        )
        assert b" 413 " in plain.recv(1000).splitlines()[0]  # before it was sent
    assert stored(server) == before
    long = httpx.post(f"{server.url}/gradio_api/call/classify", content=b"[" * 2 * 2**20)
    assert long.status_code in (400, 413)


def test_the_queue_cannot_be_passed_by(server):
    answer = httpx.post(f"{server.url}/gradio_api/run/classify", json={"data": [None, "Both"]})
    assert answer.status_code == 404 and "queue" in answer.text
    summary = httpx.get(f"{server.url}/monitoring/summary")
    assert summary.status_code in (401, 403, 404)


def test_32_at_once_get_the_right_answer_or_a_clean_busy(server, files, models):
    paths = sorted(files.glob("*.npy"))
    right = expected(models[1:], paths)

    def visit(number):
        path = paths[number % len(paths)]
        event, data = call(
            server.url, "classify", [file_data(upload(server.url, [path])[0])], "lstm"
        )
        return event, data, right[number % len(paths)]

    with ThreadPoolExecutor(32) as visitors:
        answers = list(visitors.map(visit, range(32)))
    done = [(data[0], p) for event, data, p in answers if event == "complete"]
    assert len(done) >= 16
    for answer, p in done:
        assert answer["rows"][0]["probability"] == pytest.approx(p, abs=1e-6)
    assert all(event == "503" for event, _, _ in answers if event != "complete")


def test_64_clips_with_both_models(server, files):
    clip = (files / "001_clip_0.npy").read_bytes()
    parts = [("files", (f"{n:03}_clip_0.npy", clip)) for n in range(64)]
    stored = httpx.post(f"{server.url}/gradio_api/upload", files=parts, timeout=60).json()
    started = time.monotonic()
    event, data = call(server.url, "classify", [file_data(path) for path in stored], "Both")
    assert event == "complete" and len(data[0]["rows"]) == 128
    assert time.monotonic() - started < 30  # 2.5 s on a quiet machine


def test_ctrl_c_leaves_nothing_even_with_visitors_there(server, files):
    """The last test of this server: stops it."""
    upload(server.url, [files / "001_clip_0.npy"])
    assert stored(server)
    with httpx.stream("GET", f"{server.url}/gradio_api/heartbeat/abc") as heartbeat:
        next(heartbeat.iter_raw())
        status = stop(server, signal.SIGINT)
    assert status == 130 and not server.temp.exists()


# --- closed, and on a Space ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(tmp_path_factory, models):
    """As a Space starts it: its environment, a secret, and weights/ in the folder."""
    folder = tmp_path_factory.mktemp("space") / "tmp"
    space = {"SYSTEM": "spaces", "SPACE_ID": "me/voices", "DEMO_PASSWORD": "open sesame"}
    with serving(folder, "--weights", models[1], **space) as server:
        yield server


def test_a_space_shares_no_link(closed):
    assert "none was asked for" in closed.line


def test_a_closed_page_opens_to_its_password_alone(closed, files):
    assert httpx.get(f"{closed.url}/config").status_code == 401
    assert httpx.get(f"{closed.url}/gradio_api/info").status_code == 401
    assert upload(closed.url, [files / "001_clip_0.npy"])["detail"]["error"] == "Not authenticated"
    with httpx.Client(base_url=closed.url) as visitor:
        started = time.monotonic()
        wrong = visitor.post("/login", data={"username": "me", "password": "open"})
        assert wrong.status_code == 400 and time.monotonic() - started >= 1
        right = visitor.post("/login", data={"username": "me", "password": "open sesame"})
        assert right.status_code == 200
        assert visitor.get("/config").status_code == 200


def test_sigterm_leaves_nothing(closed):
    """The last test of this server: stops it."""
    status = stop(closed, signal.SIGTERM)
    assert status == 130 and not closed.temp.exists()


NOBODY = """
import tempfile
real = tempfile.TemporaryFile
def refuse(*args, **options):  # numba asks so whether it may write beside its sources
    if "site-packages" in str(options.get("dir")):
        raise PermissionError(13, "Permission denied")
    return real(*args, **options)
tempfile.TemporaryFile = refuse
"""


def test_a_user_who_may_write_nowhere_gets_a_verdict(tmp_path, models, files):
    """docker -u, OpenShift: neither home nor site-packages are the user's."""
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "sitecustomize.py").write_text(NOBODY)
    nowhere = {"HOME": "/proc/nowhere", "PYTHONPATH": str(tmp_path / "nobody")}
    with serving(tmp_path / "tmp", "--no-share", "--weights", models[1], **nowhere) as server:
        [path] = upload(server.url, [files / "003.wav"])
        event, data = call(server.url, "listen", file_data(path), "lstm")
        assert event == "complete" and len(data[0]["rows"]) == 4, data
        stop(server, signal.SIGHUP)  # its terminal was closed
        assert not server.temp.exists()
    assert "Traceback" not in (tmp_path / "tmp" / "stderr").read_text()


def test_a_proxy_in_the_way_is_one_line():
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    assert "cannot be served" in error_line(run_script("demo.py", "--no-share", **proxy))


@pytest.mark.parametrize(
    ("flags", "environment", "words"),
    [
        (("--host", "no.such.host"), {}, "no.such.host"),
        ((), {"GRADIO_SERVER_NAME": "no.such.host"}, "no.such.host"),
        ((), {"GRADIO_SERVER_PORT": "abc"}, "GRADIO_SERVER_PORT: expected an integer"),
        (("--host", "192.0.2.1"), {}, "192.0.2.1"),
    ],
)
def test_an_address_that_cannot_be_served_is_one_line(flags, environment, words, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert words in refuse(*flags)


@pytest.mark.parametrize("name", ["GRADIO_SERVER_PORT", "GRADIO_NUM_PORTS"])
def test_a_variable_that_is_no_number_is_one_line_in_a_new_process(name):
    line = error_line(run_script("demo.py", "--no-share", **{name: "abc"}))
    assert f"{name}: expected an integer" in line


HAS_IPV6 = socket.has_ipv6 and Path("/proc/net/if_inet6").exists()


@pytest.mark.skipif(not HAS_IPV6, reason="there is no IPv6 here")
@pytest.mark.parametrize(("host", "variable"), [("[::1]", ""), ("", "::")])
def test_an_ipv6_address_serves(host, variable, models, tmp_path):
    flags = ("--host", host) if host else ()
    environment = {"GRADIO_SERVER_NAME": variable, "GRADIO_SERVER_PORT": "", "GRADIO_NUM_PORTS": ""}
    command = [sys.executable, ROOT / "demo.py", "--no-share", "--weights", models[1], *flags]
    with subprocess.Popen(
        [str(part) for part in command],
        env=os.environ | {"TMPDIR": str(tmp_path)} | environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stdout.readline()
        process.kill()
    assert line.startswith("Serving at http://[::")


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = refuse("--port", taken.getsockname()[1])
    assert "cannot be served at 127.0.0.1" in line and "choose another --port" in line


def test_missing_weights_are_one_line():
    line = refuse("--weights", "none.safetensors")
    assert line.startswith("demo.py: none.safetensors: cannot be read")
