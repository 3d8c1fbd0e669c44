"""The page in a real Chromium; every test ends with what the page promises to every visitor."""

import csv
import os
import re
import shutil

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright
from test_demo import serving, write_inputs, write_sound_weights

import demo

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
PATIENCE = 90_000  # ms, on a busy machine
expect.set_options(timeout=PATIENCE)
PHONE, DESK = (390, 844), (1280, 900)

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
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    models = write_sound_weights(folder)
    with serving(folder / "tmp", "--no-share", "--weights", *models) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "REQUIRE_BROWSER is set and no chromium is found"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page -> Playwright's page; what it promises to everybody is checked at the end."""
    pages, errors, requests = [], [], []

    def visit(size=DESK, scheme="light"):
        context = browser.new_context(
            viewport=dict(zip(("width", "height"), size, strict=True)),
            color_scheme=scheme,
            permissions=["microphone"],
        )
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        expect(page.locator("#classify")).to_be_visible(timeout=PATIENCE)
        pages.append(page)
        return page

    yield visit
    assert pages and not errors
    assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    for page in pages:
        assert page.evaluate("Object.keys(localStorage)") == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.context.close()


def re_any(*words):
    return re.compile("|".join(map(re.escape, words)))


def choose(page, *paths):
    page.locator("#files input[type=file]").set_input_files([str(path) for path in paths])
    expect(page.locator("#files a[download]")).to_have_count(len(paths))  # the upload has ended


def classify(page, *paths):
    choose(page, *paths)
    page.click("#classify")
    expect(page.locator("#picture img")).to_be_visible(timeout=PATIENCE)


def classify_recording(page, path):
    page.get_by_role("tab", name="Sound").click()
    page.locator("#recording input[type=file]").set_input_files(str(path))
    expect(page.locator("#recording audio.standard-player")).to_be_visible()
    page.click("#listen")
    expect(page.locator("#picture img")).to_be_visible(timeout=PATIENCE)


def test_a_clip_gets_a_verdict_both_probabilities_and_a_picture(visit, files):
    page = visit()
    expect(page.locator("#notice")).to_contain_text("This is not a diagnosis")
    expect(page.locator("#notice")).to_contain_text("synthetic voices")
    expect(page.locator("#notice a")).to_have_attribute("href", "https://findahelpline.com")
    classify(page, files / "001_clip_0.npy")
    expect(page.locator("#verdict h2")).to_have_text(
        re_any("Depressed", "Not Depressed", "Uncertain")
    )
    for name in ("Depressed", "Not Depressed"):
        expect(page.locator("#probabilities")).to_contain_text(name)
    expect(page.locator("#picture img")).to_have_attribute("alt", re_any("Mel spectrogram of"))
    expect(page.locator("#picture .y")).to_contain_text("4000 Hz")
    expect(page.locator("#picture .x")).to_contain_text("6 s")
    expect(page.locator("#timeline svg")).to_have_count(0)


def test_a_recording_gets_a_timeline_and_an_explanation(visit, files):
    page = visit()
    classify_recording(page, files / "003.wav")
    expect(page.locator("#timeline svg")).to_have_attribute("aria-label", re_any("in 3 windows"))
    before = page.locator("#picture img").get_attribute("src")
    page.get_by_label("Show what moved the verdict").check()
    expect(page.locator("#picture img")).to_have_attribute("alt", re_any("Orange moved"))
    assert page.locator("#picture img").get_attribute("src") != before
    page.get_by_label("Clip shown").click()
    page.get_by_role("option").nth(2).click()
    expect(page.locator("#picture img")).to_have_attribute("alt", re_any("003_clip_12;"))


def test_a_recording_by_microphone(visit):
    page = visit()
    page.get_by_role("tab", name="Sound").click()
    page.get_by_label(re_any("Record audio", "microphone")).first.click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#recording audio.standard-player")).to_be_visible()
    page.click("#listen")
    expect(page.locator("#table")).to_contain_text("padded with silence")


@pytest.mark.skipif(not list(demo.EXAMPLES.glob("*.npy")), reason="no examples/*.npy yet")
def test_an_example_by_keyboard_alone(visit):
    page = visit()
    name = sorted(demo.EXAMPLES.glob("*.npy"))[0].name
    page.get_by_role("button", name=name).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#files a[download]")).to_have_count(1)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "classify":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#verdict h2")).not_to_contain_text("appears here")
    expect(page.locator("#picture img")).to_be_visible()


def test_a_bad_file_among_good_ones_and_the_csv(visit, files, tmp_path):
    page = visit()
    names = ("001_clip_0", "broken", "002_clip_8", "short")
    classify(page, *(files / f"{name}.npy" for name in names))
    expect(page.locator("#verdict h2")).to_contain_text("3 people")
    expect(page.get_by_role("row", name=re.compile("^broken error"))).to_be_visible()
    expect(page.locator("#table")).to_contain_text("padded with silence")
    expect(page.locator("#table thead th:visible")).to_have_count(3)
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "predictions.csv")
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["clip"] for row in rows] == [*names, "", "", ""]
    assert [row["verdict"] == "error" for row in rows[:4]] == [False, True, False, False]


def test_nothing_but_bad_files_is_reported(visit, files):
    page = visit()
    choose(page, files / "broken.npy")
    page.click("#classify")
    expect(page.locator("#verdict h2")).to_have_text("No verdict")
    expect(page.get_by_role("row", name=re.compile("^broken error"))).to_be_visible()


def test_each_model_has_its_own_answer(visit, files):
    page, answers = visit(), set()
    choose(page, files / "001_clip_0.npy", files / "001_clip_8.npy")
    for name in ("cnn", "lstm", "Both"):
        page.get_by_label(name, exact=True).check()
        page.click("#classify")
        expect(page.locator("#timeline svg")).to_be_visible()
        page.wait_for_timeout(500)
        answers.add(page.locator("#timeline").inner_html())
    assert len(answers) == 3


def test_nothing_chosen_is_reported(visit):
    page = visit()
    page.click("#classify")
    expect(page.get_by_text("Choose a file first")).to_be_visible()


@pytest.mark.parametrize(
    ("size", "scheme"), [(DESK, "light"), (DESK, "dark"), (PHONE, "light"), (PHONE, "dark")]
)
def test_everybody_can_use_it(visit, files, size, scheme):
    """axe-core finds nothing serious, at any width, light or dark."""
    page = visit(size, scheme)
    problems = []

    def examine():
        page.wait_for_timeout(700)  # while parts fade in their contrast is low
        for found in Axe().run(page).response["violations"]:
            if found["impact"] in ("serious", "critical"):
                problems.append((found["id"], [node["html"] for node in found["nodes"]]))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    examine()
    classify(page, files / "001_clip_0.npy", files / "002_clip_0.npy", files / "broken.npy")
    page.get_by_role("button", name="About this model").click()
    expect(page.locator("#about table").first).to_contain_text("majority")
    examine()
    classify_recording(page, files / "003.wav")
    page.get_by_label("Show what moved the verdict").check()
    expect(page.locator("#picture img")).to_have_attribute("alt", re_any("Orange moved"))
    examine()
    assert not problems
