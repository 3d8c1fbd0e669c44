"""The page in a real Chromium; every test ends with what the page promises to every visitor."""

import contextlib
import csv
import http.client
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from speech import words

import numpy as np
import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from phone_recordings import write_recording
from playwright.sync_api import expect, sync_playwright
from test_demo import serving, write_inputs, write_sound_weights

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-fake-device-for-media-stream",  # a microphone that hears a beep
    "--use-fake-ui-for-media-stream",
]
CLIPS = ("001_clip_0.npy", "001_clip_8.npy", "002_clip_0.npy", "002_clip_8.npy")
PATIENCE = 90_000  # ms, on a busy machine
expect.set_options(timeout=PATIENCE)
PHONE, DESK, WIDE = SIZES = (390, 844), (1280, 900), (1920, 1080)
FAKES = [flag for flag in FLAGS if "fake" in flag]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM and not os.environ.get("REQUIRE_BROWSER"),
        reason="no chromium found: apt-get install chromium",
    ),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs") / "inputs")
    (folder / "broken.npy").write_bytes(b"no array")
    np.save(folder / "short.npy", np.random.default_rng(1).normal(size=(128, 100)))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    models = write_sound_weights(folder)
    with serving(folder / "tmp", "--no-share", "--weights", *models) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "REQUIRE_BROWSER is set and no chromium is found"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def contexts():
    """By size, scheme and language: with the page's scripts in its cache a visit begins at once."""
    return {}


@pytest.fixture
def visit(browser, server, contexts):
    """Opens the page -> Playwright's page; what it promises to everybody is checked at the end."""
    pages, errors, requests = [], [], []

    def visit(size=DESK, scheme="light", locale="en-US"):
        if (size, scheme, locale) not in contexts:
            contexts[size, scheme, locale] = browser.new_context(
                viewport=dict(zip(("width", "height"), size, strict=True)),
                color_scheme=scheme,
                locale=locale,
                permissions=["microphone"],
            )
            contexts[size, scheme, locale].set_default_timeout(PATIENCE)
        page = contexts[size, scheme, locale].new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(server.url)
        expect(page.locator("#classify")).to_be_visible(timeout=PATIENCE)
        pages.append(page)
        return page

    yield visit
    assert pages and not errors
    assert not [url for url in requests if not url.startswith((server.url, "data:", "blob:"))]
    for page in pages:
        assert page.evaluate("Object.keys(localStorage)") == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.close()


def re_any(*words):
    return re.compile("|".join(map(re.escape, words)))


def choose(page, *paths):
    page.locator("#files input[type=file]").set_input_files([str(path) for path in paths])
    expect(page.locator("#count")).to_contain_text(f"{len(paths)} file")  # the upload has ended


def clear(page):
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#count")).to_be_empty()  # or `choose` would find the last files' count


def classify(page, *paths):
    choose(page, *paths)
    page.click("#classify")
    expect(page.locator("#picture img")).to_be_visible(timeout=PATIENCE)


def example(page, name="Synthetic voice, label 1"):
    page.get_by_role("button", name=name).click()
    expect(page.locator("#picture img")).to_be_visible()


def word(page):
    return page.locator("#verdict h2")


def cpu_seconds(server):
    """What the server's process has used of the processor so far."""
    stat = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def assert_idle(server):
    """Within 2 s of what ended its work, the server does nothing."""
    time.sleep(2)
    before = cpu_seconds(server)
    time.sleep(1)
    assert cpu_seconds(server) - before < 0.3
    assert not [
        fork for child in list_children(server.process.pid) for fork in list_children(child)
    ]


def list_children(pid):
    """The decoders' server has a fork for each file that is being decoded."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # one that ends just now
            if stat.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(stat.parent.name)
    return found


# --- to a verdict -------------------------------------------------------------------------------


def test_an_example_is_one_click_to_a_verdict_with_its_scale(visit):
    page = visit()
    expect(word(page)).to_have_text("Your result appears here")
    expect(page.locator("#notice")).to_contain_text("This is not a diagnosis")
    expect(page.locator("#notice a")).to_have_attribute("href", "https://findahelpline.com")
    expect(page.locator("#results")).to_have_count(0)
    example(page)
    expect(word(page)).to_have_text(re_any("Depressed", "Uncertain"))
    expect(page.locator("#facts")).to_contain_text("synthetic voices")
    expect(page.locator("#facts .scale")).to_have_attribute("aria-label", re_any("Score"))
    expect(page.locator("#facts")).to_contain_text("In its test")
    expect(page.locator("#picture .y")).to_contain_text("4000 Hz")
    assert not re.search(r"\b(0|100)%", page.locator("#card").inner_text())


def test_a_file_is_two_clicks_to_a_verdict(visit, files):
    page = visit()
    expect(page.locator("#classify")).to_be_disabled()
    choose(page, files / "001_clip_0.npy")
    expect(word(page)).to_have_text("Ready")
    expect(page.locator("#classify")).to_be_enabled()
    page.click("#classify")
    expect(page.locator("#picture img")).to_have_attribute("alt", re_any("Mel spectrogram of"))
    expect(page.locator("#timeline button")).to_have_count(0)


def test_clips_and_recordings_in_one_go(visit, files, tmp_path):
    """.npy, what phones write, a misnamed and a broken file, with the CSV."""
    for name, codec in (("m4a", "aac"), ("webm", "libopus"), ("3gp", "aac")):
        write_recording(tmp_path / f"{name}.{name}", codec, seconds=9)
    (tmp_path / "m4a.m4a").rename(tmp_path / "phone.wav")
    (tmp_path / "letter.m4a").write_bytes(b"%PDF-1.7")
    sounds = [tmp_path / name for name in ("phone.wav", "webm.webm", "3gp.3gp", "letter.m4a")]
    page = visit()
    choose(page, files / "001_clip_0.npy", *sounds)
    expect(page.locator("#count")).to_have_text("5 files, 5 people")
    page.click("#classify")
    expect(page.locator("#picture img")).to_be_visible()
    expect(word(page)).to_contain_text("4 people")
    expect(page.locator("#facts")).to_contain_text("1 of 5 files could not be read")
    expect(page.locator("#facts")).to_contain_text("letter.m4a: not readable as sound (a PDF)")
    expect(page.locator(".people tbody tr")).to_have_count(4)
    expect(page.locator("#table thead th:visible")).to_have_count(3)
    with page.expect_download() as download:
        page.click("#csv")
    assert download.value.suggested_filename == "001_clip_0_and_4_more_predictions.csv"
    download.value.save_as(tmp_path / "predictions.csv")
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows if row["verdict"] == "error"] == ["letter"]
    assert len(rows) == 1 + 3 * 2 + 1 + 4


def test_a_recording_by_microphone(visit):
    page = visit()
    page.get_by_role("tab", name="Microphone").click()
    expect(page.locator("#listen")).to_be_disabled()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(4800)
    expect(page.locator("#listen")).to_be_disabled()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#listen")).to_be_enabled()
    page.click("#listen")
    expect(word(page)).to_have_text(re_any("Depressed", "Uncertain", "No verdict"))


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "dataset.csv"
    lines = [f"{Path(name).stem},{int(name.startswith('001'))}" for name in CLIPS]
    path.write_text("\n".join(["id,label", *lines]) + "\n")
    return path


def add_labels(page, labels):
    page.get_by_role("button", name="I have labels").click()
    with page.expect_response("**/run/predict*"):  # it would end work that begins before
        page.locator("#labels input[type=file]").set_input_files(str(labels))
    expect(page.locator("#labels tr.file")).to_be_visible()


def resize(page):
    """Yields while the page has each of the sizes; at none is anything wider than the window."""
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        yield height
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")


def test_labels_score_the_files(visit, files, labels):
    page = visit()
    add_labels(page, labels)
    classify(page, *(files / name for name in CLIPS))
    for score in ("balanced accuracy", "AUROC", "95% interval"):
        expect(page.locator("#scores")).to_contain_text(score)
    expect(page.locator("#scores img")).to_have_count(4)
    for _ in resize(page):
        shown = (
            "[...document.querySelectorAll('#scores img')].every(i => i.naturalWidth && i.width)"
        )
        assert page.evaluate(shown)


def test_without_a_microphone_a_sentence_says_so(browser, server):
    flags = [flag for flag in FLAGS if flag not in FAKES]
    other = browser.browser_type.launch(executable_path=CHROMIUM, args=flags)
    page = other.new_page()
    page.goto(server.url)
    page.get_by_role("tab", name="Microphone").click()
    expect(page.get_by_text("No microphone is found")).to_be_visible()
    other.close()


def test_a_microphone_that_is_denied_is_a_sentence(browser, server):
    page = browser.new_page()
    page.add_init_script("window.leave = {state: 'granted'}")
    page.add_init_script("navigator.permissions.query = async () => leave")
    page.goto(server.url)
    page.get_by_role("tab", name="Microphone").click()
    expect(page.locator("#recording")).to_be_visible()
    expect(page.get_by_text("your browser keeps it from this page")).to_be_hidden()
    page.wait_for_function("leave.onchange")
    page.evaluate("leave.state = 'denied'; leave.onchange()")
    expect(page.get_by_text("your browser keeps it from this page")).to_be_visible()
    page.close()


@pytest.mark.parametrize("endpoint", ["classify", "listen"])
def test_the_snippets_of_the_api_page_work(browser, server, tmp_path, endpoint):
    page = browser.new_page()  # not by visit: Gradio asks for parts that are not served
    page.goto(server.url)
    page.get_by_role("button", name="Use via API").click()
    expect(page.get_by_text("put your own file where it says interview.wav").first).to_be_visible()
    shutil.copy(ROOT / "examples" / "S014_clip_0.wav", tmp_path / "interview.wav")
    snippets = [code.inner_text() for code in page.locator("pre").all()]
    [code] = [text for text in snippets if "import Client" in text and f"/{endpoint}" in text][:1]
    page.get_by_text("cURL", exact=True).click()
    expect(page.locator("pre").filter(has_text="FILE_PATH").first).to_be_visible()
    snippets = [code.inner_text() for code in page.locator("pre").all()]
    [shell] = [text for text in snippets if "FILE_PATH" in text and f"v2/{endpoint} " in text]
    shell = shell.replace("/path/to/your/file", "interview.wav")
    for command in ([sys.executable, "-c", code], ["bash", "-c", f"shopt -s lastpipe\n{shell}"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert "probability" in done.stdout and "interview_clip_0" in done.stdout, done
    page.close()


def test_the_box_offers_what_is_read_and_says_what_is_too_much(visit, tmp_path):
    page = visit()
    box = page.locator("#files input[type=file]")
    expect(box).to_have_attribute("accept", re.compile("npy"))  # a script sets it
    accepted = box.get_attribute("accept").split(",")
    assert {"audio/*", ".npy", ".m4a", ".wav", ".webm", ".amr"} <= set(accepted)
    with open(tmp_path / "long.wav", "wb") as file:
        file.truncate(91 * 2**20)
    page.locator("#files input[type=file]").set_input_files(str(tmp_path / "long.wav"))
    expect(page.locator("#facts")).to_contain_text("91 MB; at most 256 files and 90 MB at once")
    expect(page.locator("#facts")).to_contain_text("FLAC or MP3")
    anew = "document.querySelector('#files input[type=file]').outerHTML = '<input type=file>'"
    page.evaluate(anew)  # as Gradio makes it now and then
    expect(box).to_have_attribute("accept", ",".join(accepted))


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ("de-DE", words.GERMAN),
        ("it-CH", words.ITALIAN),
        ("es-MX", words.SPANISH),
        ("fr-CA", words.FRENCH),
        ("zh-HK", words.CHINESE),
        ("ja", words.ENGLISH),
    ],
)
def test_the_visitors_language(visit, locale, language):
    page, (*verdicts, notice, _) = visit(locale=locale), language
    example(page, "Synthetic voice, label 0")
    expect(word(page)).to_have_text(re.compile(f"^({'|'.join(verdicts)})$"))
    expect(page.locator("#notice")).to_contain_text(notice)
    expect(page.locator("#notice a")).to_have_attribute("href", "https://findahelpline.com")
    ends = ["0 " + verdicts[1], verdicts[2], verdicts[0] + " 1"]
    assert page.locator(".ends > span").all_inner_texts() == [
        end if locale != "ja" else end.replace("Uncertain", "uncertain") for end in ends
    ]
    example(page, "Synthetic voice, label 1")  # Gradio changes what stands there in its place
    expect(page.locator("#facts")).to_contain_text("(S017")
    expect(page.locator("#picture img")).to_have_attribute("alt", re_any("S017"))
    expect(word(page)).to_have_text(re.compile(f"^({'|'.join(verdicts)})$"))
    example(page, "Four voices (.npy)")
    expect(word(page)).to_have_text(re_any("4 people"))
    expect(page.locator(".people .word")).to_have_count(4)
    cells = {cell.lower() for cell in page.locator(".people .word").all_inner_texts()}
    assert cells and cells <= {verdict.lower() for verdict in verdicts}
    assert any(verdict.lower() in word(page).inner_text().lower() for verdict in verdicts)


class Proxy(BaseHTTPRequestHandler):
    """Forwards /depression/… to a port of the loopback, as nginx would."""

    there = None

    def do_GET(self):
        path = self.path.removeprefix("/depression")
        if path == self.path:  # what is asked for beside the sub-path is not ours
            return self.send_error(404)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection("127.0.0.1", self.there)
        connection.request(self.command, path or "/", body, dict(self.headers))
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # a tab that is closed
            while part := answer.read1():
                self.wfile.write(part)

    do_POST = do_HEAD = do_GET


def test_behind_a_proxy_at_a_sub_path(browser, files, tmp_path):
    flags = "--no-share", "--weights", write_sound_weights(tmp_path)[1]
    with (
        serving(tmp_path / "tmp", *flags, GRADIO_ROOT_PATH="/depression") as server,
        ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy,
    ):
        Proxy.there = int(server.url.rpartition(":")[2])
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        url, asked = f"http://127.0.0.1:{proxy.server_port}/depression/", []
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        classify(page, files / "003.wav")
        expect(page.locator("#timeline button")).to_have_count(3)
        page.wait_for_function("document.querySelector('#timeline audio').readyState > 0")
        assert all(address.startswith((url, "data:", "blob:")) for address in asked)
        page.close()
        proxy.shutdown()


# --- states -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "interview.wav"
    rng, seconds = np.random.default_rng(0), 20 * 60
    loud = 1 + np.sin(np.arange(seconds * 16_000, dtype=np.float32) / 30_000)
    soundfile.write(path, rng.standard_normal(len(loud), np.float32) * loud / 20, 16_000)
    return path


@pytest.fixture(scope="module")
def two_hours(tmp_path_factory):
    """Of quiet noise: 20 s of work and more."""
    path = tmp_path_factory.mktemp("hours") / "two hours.flac"
    noise = np.random.default_rng(0).integers(-1, 2, 60 * 8000).astype(np.float32) / 128
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_S8") as file:
        for _ in range(119):
            file.write(noise)
    return path


def test_stop_and_a_closed_tab_end_the_servers_work(visit, server, two_hours):
    page = visit()
    choose(page, two_hours)
    page.click("#classify")
    expect(page.locator("#facts [role=progressbar]")).to_be_visible()
    expect(page.locator("#facts")).to_contain_text("119.1 minutes")  # far from its end
    for _ in resize(page):
        page.locator("#verdict").scroll_into_view_if_needed()
        expect(page.locator("#stop")).to_be_in_viewport()
    page.click("#stop")
    expect(word(page)).to_have_text("Stopped")
    assert_idle(server)
    assert word(page).inner_text() == "Stopped"  # and it stays so
    tab = page.context.new_page()
    tab.goto(server.url)
    choose(tab, two_hours)
    tab.click("#classify")
    expect(tab.locator("#facts [role=progressbar]")).to_be_visible()
    tab.close()
    assert_idle(server)


def test_progress_that_comes_after_stop_does_not_stay(visit, server, two_hours):
    page = visit()
    late = []
    page.route("**/cancel", lambda route: late.append(route))
    choose(page, two_hours)
    page.click("#classify")
    expect(page.locator("#facts [role=progressbar]")).to_be_visible()
    page.click("#stop")
    while not late:
        page.wait_for_timeout(50)
    page.wait_for_timeout(1000)  # of progress
    late[0].continue_()
    page.wait_for_timeout(1000)
    assert_idle(server)
    assert word(page).inner_text() == "Stopped"


def test_a_change_while_it_works_ends_the_work(visit, server, two_hours):
    page = visit()
    choose(page, two_hours)
    page.click("#classify")
    expect(page.locator("#facts [role=progressbar]")).to_be_visible()
    page.get_by_label("cnn", exact=True).check()
    expect(word(page)).to_have_text("Ready")
    assert_idle(server)
    assert word(page).inner_text() == "Ready"


def test_an_example_while_it_works_ends_the_work(visit, server, two_hours):
    page = visit()
    choose(page, two_hours)
    page.click("#classify")
    expect(page.locator("#facts [role=progressbar]")).to_be_visible()
    example(page)
    verdict = word(page).inner_text()
    assert_idle(server)
    assert word(page).inner_text() == verdict != "Working"


def test_files_are_added_to_those_chosen_up_to_the_limit(visit, files, tmp_path):
    page = visit(PHONE)
    expect(page.locator("#more")).to_be_hidden()
    choose(page, files / "001_clip_0.npy")
    for count, path in enumerate((files / "002_clip_0.npy", files / "003.wav"), 2):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Add files").click()
        chooser.value.set_files(str(path))
        expect(page.locator("#files tr.file", has_text=path.stem)).to_be_visible()
        expect(page.locator("#count")).to_have_text(f"{count} files, {count} people")
    paths = [tmp_path / f"{n:03}_clip_0.npy" for n in range(254)]
    for path in paths:
        path.touch()
    page.locator("#files input[type=file]").set_input_files([str(path) for path in paths])
    expect(page.locator("#facts")).to_contain_text("257 files, 0 MB; at most 256 files")
    expect(page.locator("#count")).to_have_text("3 files, 3 people")


def test_of_two_changes_at_once_the_last_is_counted(visit, files):
    """Also if it comes before the server has answered the first."""
    page, late = visit(), []
    choose(page, files / "001_clip_0.npy", files / "002_clip_0.npy", files / "003.wav")
    page.route("**/run/predict*", lambda route: late.append(route), times=2)
    for left in (2, 1):
        page.locator("#files tr.file").first.get_by_label("Remove this file").click()
        expect(page.locator("#files tr.file")).to_have_count(left)
    while len(late) < 2:  # what is chosen, and what it means
        page.wait_for_timeout(50)
    for route in late:
        route.continue_()
    expect(page.locator("#count")).to_have_text("1 file, 1 person")


@pytest.mark.parametrize("address", ["**/queue/join*", "**/run/predict*"])
def test_what_gradio_refuses_is_an_error_in_the_card(browser, server, address):
    page = browser.new_page()  # not by visit: the console says so too
    page.goto(server.url)
    expect(page.get_by_role("button", name="Synthetic voice, label 1")).to_be_visible()
    refused = {"status": 503, "body": '{"detail": "no"}'}
    page.route(address, lambda route: route.fulfill(**refused), times=1)
    page.get_by_role("button", name="Synthetic voice, label 1").click()
    expect(word(page)).to_have_text("That did not work")
    expect(page.locator("#facts")).to_contain_text("try again in a minute")
    page.close()


def test_a_long_recording_plays_from_a_window_and_draws_it_alone(visit, long_recording):
    page = visit()
    classify(page, long_recording)
    expect(page.locator("#timeline button")).to_have_count(150)
    picture = page.locator("#picture img")
    started, before = time.monotonic(), picture.get_attribute("src")
    page.locator("#timeline button").nth(100).click()
    expect(picture).not_to_have_attribute("src", before)
    assert time.monotonic() - started < 3  # 0.5 s on a quiet machine
    place = page.evaluate("document.querySelector('#timeline audio').currentTime")
    assert 800 <= place < 800 + time.monotonic() - started
    expect(page.locator("#timeline button[aria-pressed=true]")).to_have_attribute("data-n", "100")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(picture).to_have_attribute("alt", re_any("interview_clip_808;"))
    page.wait_for_function("document.querySelector('#timeline audio').currentTime >= 808")
    page.get_by_label("Show what moved the verdict").check()
    expect(picture).to_have_attribute("alt", re_any("Orange moved"))


def test_the_picture_is_of_the_window_asked_for_last(visit, files):
    """Also of one asked for while another is on its way to the page."""
    page, late = visit(), []
    classify(page, files / "003.wav")
    picture, bars = page.locator("#picture img"), page.locator("#timeline button")
    for ask in (bars.nth(1).click, page.get_by_label("Show what moved the verdict").check):
        page.route("**/queue/join*", lambda route: late.append(route), times=1)
        ask()
        while not late:
            page.wait_for_timeout(50)
        answer = late[0].fetch()  # it is drawn, and the page does not know
        bars.nth(2).click()
        expect(bars.nth(2)).to_have_attribute("aria-pressed", "true")
        page.get_by_label("Show what moved the verdict").uncheck()
        page.wait_for_timeout(500)
        late.pop().fulfill(response=answer)
        expect(picture).to_have_attribute("alt", re.compile("003_clip_12;((?!Orange).)*$"))


def test_the_same_once_more_begins_at_the_first_window(visit, files):
    page = visit()
    classify(page, files / "003.wav")
    pressed = page.locator("#timeline button[aria-pressed=true]")
    picture = page.locator("#picture img")
    page.locator("#timeline button").nth(2).click()
    expect(picture).to_have_attribute("alt", re_any("003_clip_12;"))
    page.click("#classify")
    expect(picture).to_have_attribute("alt", re_any("003_clip_0;"))
    expect(pressed).to_have_attribute("data-n", "0")
    assert page.evaluate("document.querySelector('#timeline audio').paused")


def test_a_change_hides_the_result_and_the_model_has_its_own(visit, files):
    page, answers = visit(), set()
    choose(page, files / "001_clip_0.npy", files / "001_clip_8.npy")
    for name in ("cnn", "lstm", "Both"):
        if not page.get_by_label(name, exact=True).is_checked():
            with page.expect_response("**/run/predict*"):  # it would end work that begins before
                page.get_by_label(name, exact=True).check()
        page.click("#classify")
        expect(page.locator("#timeline button")).to_have_count(2)
        answers.add(page.locator("#timeline .bars").inner_html())
        page.get_by_label("cnn" if name != "cnn" else "lstm", exact=True).check()
        expect(word(page)).to_have_text("Classify again")
        expect(page.locator("#results")).to_have_count(0)
    assert len(answers) == 3


def test_a_swept_upload_is_an_error_in_the_card(visit, server, files):
    page = visit()
    choose(page, files / "001_clip_8.npy")
    for path in server.temp.rglob("001_clip_8.npy"):
        path.unlink()
    page.click("#classify")
    expect(page.locator("#facts")).to_contain_text("deleted after 30 minutes: choose it again")


def test_a_result_that_was_swept_says_so(browser, server, files):
    page = browser.new_page()  # not by visit: what is gone is an error of the console
    page.goto(server.url)
    classify(page, files / "003.wav")
    page.wait_for_function("document.querySelector('#timeline audio').readyState > 0")
    for path in server.temp.rglob("*003*"):
        if path.is_file():
            path.unlink()
    page.locator("#timeline button").nth(1).click()
    expect(page.locator("#picture")).to_contain_text("deleted after 30 minutes: choose it again")
    page.evaluate("document.querySelector('#timeline audio').src += '?'")  # past the cache
    expect(page.locator("#timeline .gone")).to_be_visible()
    expect(page.locator("#timeline .unplayable")).to_be_hidden()
    page.click("#csv")
    expect(page.locator("#facts")).to_contain_text("Deleted after 30 minutes: choose it again")
    page.close()


def test_a_change_without_anything_to_classify_says_what_can_be_done(visit, files):
    page = visit()
    example(page)
    page.get_by_label("cnn", exact=True).check()
    expect(page.locator("#facts")).to_contain_text("Try an example")
    classify(page, files / "001_clip_0.npy")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#facts")).to_contain_text("Try an example")
    expect(page.locator("#classify")).to_be_disabled()


def test_names_below_the_timeline_stay_with_their_bars(visit, tmp_path):
    rng = np.random.default_rng(0)
    paths = [
        tmp_path / f"a very long name of an interview {n // 2}_clip_{n}.npy" for n in range(24)
    ]
    for path in paths:
        np.save(path, rng.normal(size=(128, 251)).astype(np.float32))
    page = visit()
    classify(page, *paths)
    for _ in resize(page):
        shown = page.locator("#timeline .ticks span:visible")
        ticks = [tick.bounding_box() for tick in shown.all()]
        assert len(ticks) == (4 if page.viewport_size["width"] < 640 else 8)
        for tick, after in zip(ticks, ticks[1:], strict=False):
            assert tick["x"] + tick["width"] <= after["x"] + 1
        step = 24 // len(ticks)
        for number, tick in enumerate(ticks):
            bar = page.locator("#timeline button").nth(number * step).bounding_box()
            assert tick["x"] == pytest.approx(bar["x"], abs=1.5)


def test_nothing_but_bad_files_is_reported(visit, files):
    page = visit()
    choose(page, files / "broken.npy")
    page.click("#classify")
    expect(word(page)).to_have_text("No verdict")
    expect(page.locator("#facts")).to_contain_text("broken.npy:")


def test_an_example_by_keyboard_alone(visit):
    page = visit(PHONE)
    page.keyboard.press("Tab")
    for _ in range(5):
        if "label 1" in page.evaluate("document.activeElement.innerText"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#picture img")).to_be_visible()
    expect(word(page)).to_be_in_viewport()  # the page has scrolled to what it did


def test_with_200_files_the_button_stays_in_the_first_screen(visit, tmp_path):
    page = visit()
    content = np.zeros((2, 2), np.float32).tobytes()
    choose(
        page,
        *(
            path
            for n in range(200)
            if (path := tmp_path / f"{n % 12:03}_clip_{n}.npy").write_bytes(content)
        ),
    )
    expect(page.locator("#count")).to_have_text("200 files, 12 people")
    for height in resize(page):
        box = page.locator("#classify").bounding_box()
        assert box["y"] + box["height"] <= height


FADED = """() => document.getAnimations().every(
    one => one.playState != "running" || one.effect.getTiming().iterations == Infinity)"""


def examine(page, state):
    """At every size, light and dark, axe-core finds nothing serious; nothing is too wide."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(
            "dark => document.body.classList.contains('dark') == dark", arg=scheme == "dark"
        )
        page.wait_for_function(FADED)  # while parts fade in their contrast is low
        for size in resize(page):
            for found in Axe().run(page).response["violations"]:
                nodes = [node["html"] for node in found["nodes"]]
                view = state, scheme, size, found["id"], nodes
                assert found["impact"] not in ("serious", "critical"), view


def test_everybody_can_use_it_and_wait(visit, two_hours, long_recording):
    page = visit()
    examine(page, "empty")
    example(page)
    examine(page, "one person")
    choose(page, two_hours)
    expect(word(page)).to_have_text("Classify again")
    examine(page, "stale")
    page.click("#classify")
    expect(page.locator("#stop")).to_be_visible()
    examine(page, "working")
    page.click("#stop")
    expect(word(page)).to_have_text("Stopped")
    examine(page, "stopped")
    clear(page)
    classify(page, long_recording)
    examine(page, "a long recording")


def test_everybody_can_use_it_with_many_files(visit, files, labels):
    page = visit()
    add_labels(page, labels)
    choose(page, *(files / name for name in [*CLIPS, "broken.npy", "003.wav"]))
    expect(word(page)).to_have_text("Ready")
    examine(page, "ready")
    page.click("#classify")
    expect(page.locator("#timeline audio")).to_be_visible()
    page.get_by_role("button", name="About this model").click()
    expect(page.locator("#about table").first).to_contain_text("majority")
    page.get_by_label("Show what moved the verdict").check()
    expect(page.locator("#picture img")).to_have_attribute("alt", re_any("Orange moved"))
    examine(page, "several people, labels, about, explained")


def test_everybody_can_use_it_when_something_fails(visit, server, files):
    page = visit()
    choose(page, files / "broken.npy")
    page.click("#classify")
    expect(word(page)).to_have_text("No verdict")
    examine(page, "unreadable")
    for path in server.temp.rglob("broken.npy"):
        path.unlink()
    page.click("#classify")
    expect(word(page)).to_have_text("That did not work")
    examine(page, "swept")
    page.get_by_role("tab", name="Microphone").click()
    examine(page, "microphone")
    page.get_by_role("button", name="Record", exact=True).click()
    expect(word(page)).to_have_text("Recording")
    examine(page, "recording")
