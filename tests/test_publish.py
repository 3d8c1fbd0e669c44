"""publish.py and hf: weights against a Hub on the loopback, and the published page itself."""

import ast
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import common
import publish
from speech import hub as speech_hub
from speech.cli import InputError
from speech.metadata import unknown_metadata

import gradio_client
import pytest
from conftest import ROOT, call_main, call_script, error_line, run_script, write_weights
from fake_hub import FakeHub
from huggingface_hub import ModelCard

EXAMPLE = ROOT / "examples" / "lstm.safetensors"
SPACES = """
def GPU(function):
    open("decorated", "a").write(function.__name__)
    return function


def gradio_auto_wrap(function):  # Gradio calls it where the package is installed
    return function
"""


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def to_hub(hub, tmp_path):
    """The environment of a script that talks to it, with a cache of its own."""
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_writer", "HF_HOME": str(tmp_path / "home")}
    return variables | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextlib.contextmanager
def talking(environment):
    """huggingface_hub reads these as it is imported: within, it is imported anew."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            patch.delitem(sys.modules, name)
        yield


def call_publish(*arguments, **environment):
    with talking(environment):
        return call_script("publish.py", *arguments)


def fetch(name, environment):
    with talking(environment):
        return call_main(lambda: print(*speech_hub.fetch(name), sep="\n"), "fetch.py")


def publish_ok(*arguments, **environment):
    done = call_publish(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# --- a Space ------------------------------------------------------------------------------------


def test_space_is_published_then_left_alone_then_updated(hub, to_hub, tmp_path):
    done = run_script("publish.py", "ann/page", **to_hub)
    assert "published, revision" in done.stdout and done.stderr == ""
    space, files = hub.repositories["space", "ann/page"], hub.files("space", "ann/page")
    assert space.request["sdk"] == "gradio" and space.request["hardware"] == "zero-a10g"
    allowed = r"(speech/)?\w+\.py|speech/\w+\.(css|js)|docs/\w+\.md"
    allowed += r"|examples/[\w-]+\.(npy|wav|png|safetensors)"
    others = {".gitattributes", "LICENSE", "README.md", "requirements.txt"}
    assert others == {name for name in files if not re.fullmatch(allowed, name)}
    assert {path.name for path in ROOT.glob("*.py")} <= files.keys()  # a script imports another
    for name in files.keys() - {"README.md", "requirements.txt", "app.py", ".gitattributes"}:
        assert files[name] == (ROOT / name).read_bytes()
    assert b"\napp_file: app.py\n" in files["README.md"]
    assert b'\npython_version: "3.12.12"\n' in files["README.md"]
    assert b"\ntorch==2.11.0\n" in b"\n" + files["requirements.txt"]
    assert files["app.py"].count(b"@spaces.GPU") == 1

    assert "nothing to do" in publish_ok("ann/page", **to_hub)
    assert len(space.commits) == 2

    space.commits[-1][1]["notes.txt"] = b"the owner's own"
    weights = write_weights(tmp_path / "mine.safetensors", "lstm")
    publish_ok("ann/page", "--weights", weights, "--hardware", "cpu-basic", **to_hub)
    after = hub.files("space", "ann/page")
    assert after["weights/mine.safetensors"] == weights.read_bytes()
    assert set(files) - set(after) == {"examples/lstm.safetensors"}
    assert after["notes.txt"] and b"spaces.GPU" not in after["app.py"]
    assert after["requirements.txt"] == (ROOT / "requirements.txt").read_bytes()
    assert b"['--weights', 'weights/mine.safetensors']" in after["app.py"]


def test_any_name_of_weights_stands_in_the_app():
    app = ast.parse(publish.write_app("zero", ["weights/😀'\".safetensors"]))
    [names] = [ast.literal_eval(node) for node in ast.walk(app) if isinstance(node, ast.List)]
    assert names == ["--weights", "weights/😀'\".safetensors"]


def test_dry_run_lists_what_would_be_uploaded_and_asks_nobody(hub, to_hub):
    out = publish_ok("ann/page", "--dry-run", **to_hub).splitlines()
    sizes = {name: int(size.replace(",", "")) for size, name in map(str.split, out[:-1])}
    assert sizes["examples/lstm.safetensors"] == EXAMPLE.stat().st_size
    assert sizes["demo.py"] == (ROOT / "demo.py").stat().st_size
    assert out[-1].split() == [f"{sum(sizes.values()):,}", *f"bytes in {len(sizes)} files".split()]
    assert not hub.requests


@pytest.mark.parametrize("where", ["/commit/", "PUT /storage"])
def test_what_was_broken_off_goes_on(hub, to_hub, where):
    hub.faults[where] = (507, "the storage is full") if "PUT" in where else "close"
    message = error_line(call_publish("ann/page", **to_hub))
    assert message.startswith("publish.py: ann/page: ") and message.count("run again to go on") == 1
    assert len(hub.repositories["space", "ann/page"].commits) == 1
    arrived = len(hub.large)
    assert (arrived > 0) == ("commit" in where)
    hub.faults.clear()
    hub.requests.clear()
    assert "published" in publish_ok("ann/page", **to_hub)
    assert sum(text.startswith("PUT") for text in hub.requests) == len(hub.large) - arrived


MISTAKES = {
    "the token is wrong": {"HF_TOKEN": "hf_wrong"},
    "no token": {"HF_TOKEN": ""},
    "no right to do that": {"HF_TOKEN": "hf_reader"},
    "the Hub cannot be reached": {"HF_ENDPOINT": "http://127.0.0.1:9"},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_with_the_account_are_one_line(hub, to_hub, message):
    done = call_publish("ann/page", **to_hub | MISTAKES[message])
    assert error_line(done).startswith(f"publish.py: ann/page: {message}")
    assert not hub.repositories


def test_refused_files_and_plans_are_one_line(hub, to_hub):
    for fault, status in [("/repos/create", 402), ("/commit/", 413), ("/preupload/", 400)]:
        hub.faults = {fault: (status, "the server's reason")}
        line = error_line(call_publish("ann/new", **to_hub))
        assert "(the server's reason)" in line
        assert {413: "too large", 400: "refused a file", 402: "paid plan"}[status] in line


def test_somebody_elses_and_another_projects_names_are_refused(hub, to_hub):
    publish_ok("ann/page", **to_hub)
    done = call_publish("ann/page", **to_hub | {"HF_TOKEN": "hf_other"})
    assert "no right to do that" in error_line(done)
    other = hub.repositories["space", "ann/page"]
    other.commit({"app.py": b"another project", "README.md": b""})
    line = error_line(call_publish("ann/page", **to_hub))
    assert "the name is taken by something else (app.py)" in line
    assert other.commits[-1][1]["app.py"] == b"another project"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["page"], "expected USER/NAME, found 'page'"),
        (["a/b", "--weights", "hf:x"], "expected hf:USER/MODEL or hf:USER/MODEL@REVISION"),
        (["a/b", "--weights", "none.safetensors"], "none.safetensors: cannot be read"),
        (["a/b", "--model", "README.md"], "README.md: damaged, or no weights file"),
        (["a/b", "--model", "x", "--weights", "y"], "expected one of them"),
        (["a/b", "--weights", EXAMPLE, EXAMPLE], "two files are named lstm.safetensors"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    assert message in error_line(call_script("publish.py", *arguments, "--dry-run"))


# --- the page, started as a Space does it ---------------------------------------------------------


def write_tree(files, folder):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("hardware", ["zero", "cpu-basic"])
def test_the_published_tree_starts_and_answers(tmp_path, hardware):
    tree = write_tree(publish.collect_space([], hardware), tmp_path / "tree")
    if hardware == "zero":  # stands in for the package: what it decorates is written down
        (tree / "spaces.py").write_text(SPACES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    space = {"SYSTEM": "spaces", "SPACE_ID": "ann/page", "SPACE_HOST": "ann-page.hf.space"}
    space |= {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port)}
    space |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    command, log = [sys.executable, "app.py"], tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=tree, env=environment | space, stdout=file, stderr=file
        )
    try:
        until = time.monotonic() + 120
        while "Serving at" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        client = gradio_client.Client(f"http://127.0.0.1:{port}", verbose=False)
        clip = gradio_client.handle_file(str(ROOT / "examples" / "S014_clip_0.npy"))
        rows = client.predict([clip], "lstm", api_name="/classify")["rows"]
        assert rows[0]["clip"] == "S014_clip_0" and 0 < rows[0]["probability"] < 1
        assert (tree / "decorated").exists() == (hardware == "zero")
    finally:
        process.kill()
        process.wait()


# --- a model, and hf: -----------------------------------------------------------------------------


def test_model_card_says_what_the_weights_know(hub, to_hub, tmp_path):
    weights = write_weights(tmp_path / "lstm.safetensors", "lstm")
    metadata = common.load_weights(weights)[1]
    linear = {
        level: {"auroc": {"value": 0.61, "low": 0.5, "high": 0.7}} for level in publish.LEVELS
    }
    report = {"test": metadata["test"] | {"linear": linear}}
    weights.with_suffix(".json").write_text(json.dumps(report))
    publish_ok("ann/model", "--model", weights, **to_hub)
    files = hub.files("model", "ann/model")
    assert set(files) == {".gitattributes", "LICENSE", "README.md", "lstm.safetensors"}
    card = ModelCard(files["README.md"].decode())
    results = {(result.metric_name): result for result in card.data.eval_results}
    auroc = results["auroc of people"]
    assert auroc.metric_type == "roc_auc" and auroc.dataset_name == "a test's"
    assert (auroc.metric_value, auroc.metric_args["low"], auroc.metric_args["high"]) == (
        0.7,
        0.6,
        0.8,
    )
    for words in (
        "| 0.700 [0.60, 0.80] | 0.700 [0.60, 0.80] | 0.610 [0.50, 0.70] |",
        "not a diagnosis",
    ):
        assert words in card.text
    assert "people, linear baseline" in card.text and "screening" in card.text
    assert card.data.license == "other"


def test_what_the_weights_do_not_know_is_said(tmp_path):
    model = common.LSTMClassifier(hidden_size=2)
    path = tmp_path / "w.safetensors"
    common.save_weights(path, model, unknown_metadata("lstm", model.arguments))
    card = ModelCard(publish.collect_model("ann/model", path)["README.md"].decode())
    rows = re.findall(r"\| ([\w ,-]+) \| not known \|", card.text)
    assert {"corpus", "clips", "people", "split", "people on both sides"} <= set(rows)
    for words in ("Scores: not known", "Linear baseline: not known", "training clips: not known"):
        assert words in card.text
    assert card.data.eval_results is None


def test_what_the_weights_say_is_text_and_no_markup(tmp_path):
    path = write_weights(tmp_path / "w.safetensors", "lstm", (16, 24))
    model, metadata = common.load_weights(path)
    evil = "a|b <img src=x> [c](http://d.e)\n# HEADING"
    metadata["versions"] = {evil: evil}
    metadata["data"] |= {"corpus": evil, "split": evil, "sha256": evil}
    for name in ("clips", "participants"):
        metadata["data"][name] = {evil: 1}
    metadata["preprocessing"]["sound"] = None
    common.save_weights(path, model, metadata)
    card = ModelCard(publish.collect_model("ann/model", path)["README.md"].decode()).text
    table = card[card.index("| corpus") : card.index("## Scores")]
    assert not re.search(r"[<\[\]]|://|HEADING$", table, re.M) and table.count("HEADING") == 6
    assert all(row.count("|") == 3 for row in table.splitlines() if row)


def test_a_pipe_or_a_damaged_report_beside_the_weights_is_no_baseline(tmp_path):
    path = write_weights(tmp_path / "w.safetensors", "lstm", (16, 24))
    test = common.load_weights(path)[1]["test"]
    for linear in ({"clips": 7, "participants": {}}, {level: {"auroc": "x"} for level in test}):
        path.with_suffix(".json").write_text(json.dumps({"test": test | {"linear": linear}}))
        card = publish.collect_model("ann/model", path)["README.md"].decode()
        assert "Linear baseline: not known" in card
    path.with_suffix(".json").write_text("[" * 100_000)
    assert b"baseline: not known" in publish.collect_model("ann/model", path)["README.md"]
    path.with_suffix(".json").unlink()
    os.mkfifo(path.with_suffix(".json"))
    done = call_script("publish.py", "ann/model", "--model", path, "--dry-run")
    assert done.returncode == 0 and "w.safetensors" in done.stdout


def test_the_weights_that_were_checked_are_published(tmp_path, monkeypatch):
    path, load = write_weights(tmp_path / "w.safetensors", "lstm", (16, 24)), common.load_weights
    before = path.read_bytes()

    def load_and_replace(*given):
        path.write_bytes(before)
        try:
            return load(*given)
        finally:
            path.write_bytes(b"another file")

    monkeypatch.setattr(publish, "load_weights", load_and_replace)
    assert publish.collect_model("ann/model", path)["w.safetensors"] == before
    path.write_bytes(before)
    space = publish.collect_space([str(path)], "zero")
    assert space["weights/w.safetensors"] == before
    line = error_line(call_script("publish.py", "a/b", "--model", tmp_path / "gone.safetensors"))
    assert "gone.safetensors: cannot be read (No such file or directory)" in line


def test_weights_are_fetched_once_and_a_revision_is_kept(hub, to_hub, tmp_path):
    publish_ok("ann/model", "--model", EXAMPLE, **to_hub)
    repository = hub.repositories["model", "ann/model"]
    first = repository.commits[-1][0]
    evil = {"pytorch_model.bin": b"\0pickle", "lstm.pth": b"\0pickle"}
    repository.commit({**repository.commits[-1][1], "lstm.safetensors": b"\0newer", **evil})
    done = fetch(f"hf:ann/model@{first}", to_hub)
    assert done.returncode == 0, done.stderr
    [path] = done.stdout.split()
    assert path.endswith("lstm.safetensors") and Path(path).read_bytes() == EXAMPLE.read_bytes()
    hub.requests.clear()
    dead = to_hub | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert fetch(f"hf:ann/model@{first}", dead).stdout == done.stdout
    assert not hub.requests
    [newest] = fetch("hf:ann/model", to_hub).stdout.split()
    assert Path(newest).read_bytes() == b"\0newer"
    assert not any("pytorch_model" in text or ".pth" in text for text in hub.requests)


def test_predict_takes_weights_from_the_hub(hub, to_hub, tmp_path):
    publish_ok("ann/model", "--model", EXAMPLE, **to_hub)
    clip, answers = ROOT / "examples" / "S014_clip_0.npy", []
    for name in ("hf:ann/model", EXAMPLE):
        with talking(to_hub):
            done = call_script("predict.py", clip, "--weights", name, "--csv", tmp_path / "t.csv")
        assert done.returncode == 0, done.stderr
        answers.append((tmp_path / "t.csv").read_text())
    assert answers[0] == answers[1]


def test_what_cannot_be_fetched_is_one_line(hub, to_hub):
    hub.faults["nobody"] = (404, "Repository not found", "RepoNotFound")
    publish_ok("ann/model", "--model", EXAMPLE, **to_hub)
    repository = hub.repositories["model", "ann/model"]
    assert "no such repository" in error_line(fetch("hf:nobody/model", to_hub))
    assert "no such repository or revision" in error_line(fetch("hf:ann/model@v9", to_hub))
    repository.commit({"pytorch_model.bin": b"\0pickle"})
    assert "holds no .safetensors" in error_line(fetch("hf:ann/model", to_hub))
    dead = to_hub | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "hf:ann/other: the Hub cannot be reached" in error_line(fetch("hf:ann/other", dead))
    assert "cannot be reached" in error_line(
        fetch("hf:ann/other", to_hub | {"HF_HUB_OFFLINE": "1"})
    )


def test_names_of_weights_are_checked():
    for name in ("hf:", "hf:model", "hf:a/b/c", "hf:a/b@", "hf:../x"):
        with pytest.raises(InputError, match="expected hf:USER/MODEL"):
            publish.fetch(name)
