# SPDX-License-Identifier: Apache-2.0
"""The pages of real runs in a real browser: quiet, alone, every chart filled, the slider moving."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import _browser
import pytest
from _browser import Page
from _run_folders import make

from prune_engine.cli import main
from prune_engine.recipes.report import page as pages

DATA = os.environ.get("PE_DATA")  # the folder of the real data sets, where there is one
SHORT = ["--epochs", "3", "--compare"]
QUICK = [*SHORT, "--seeds", "2"]
RUNS = {
    "fashion": ["--data", "fashion_mnist", "--policy", "infobatch", "--limit", "3000", *QUICK],
    "text": [
        "--data",
        "tinyshakespeare",
        "--model",
        "bytes",
        "--limit",
        "96",
        "--seed",
        "0",
        *SHORT,
    ],
    "digits": ["--data", "digits", "--limit", "600", *QUICK],
    "bpas": ["--data", "digits", "--policy", "bpas", "--target-savings", "0.3", *QUICK],
}
# Every chart has a line of some extent or a dot within its axes; every small line is drawn.
EMPTY = """
[...document.querySelectorAll("svg[data-chart]")].filter((chart) => {
  const marks = [...chart.querySelectorAll(".marks > *")];
  const ticks = chart.querySelectorAll(".axes text");
  const filled = marks.some((mark) => {
    const box = mark.getBBox();
    return box.width > 5 || mark.tagName === "circle";
  });
  return !filled || ticks.length < 4 || chart.getBoundingClientRect().width < 250;
}).map((chart) => chart.dataset.chart)
"""
BROKEN = "[...document.images].filter((i) => !i.complete || !i.naturalWidth).length"
CUT = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with _browser.page() as found:
        yield found


def check(browser: Page, path: Path, width: int) -> None:
    browser.open(path, width)
    assert browser.complaints() == []
    assert browser.requests() == [path.resolve().as_uri()], "it asks for itself and nothing else"
    assert browser.value(EMPTY) == []
    assert browser.value(BROKEN) == 0
    assert browser.value(CUT) <= 0, "nothing is beside the screen"


def check_slider(browser: Page) -> None:
    drawn = "[...document.querySelectorAll('.spread .marks path')].map((p) => p.getAttribute('d'))"
    told = "document.querySelector('output').textContent"
    browser.value("document.querySelector('.spread input').focus()")
    browser.press("Home", 36)
    first, epoch = browser.value(drawn), browser.value(told)
    browser.press("End", 35)
    assert browser.value(told) != epoch
    last = browser.value(drawn)
    assert all(before != after for before, after in zip(first, last, strict=True))
    browser.press("Home", 36)
    assert browser.value(drawn) == first


def check_theme(browser: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    before = browser.value(ground)
    browser.value("document.getElementById('theme').focus()")
    browser.press("Enter", 13)
    browser.value("document.activeElement.click()")
    assert browser.value(ground) != before
    assert browser.value("document.getElementById('theme').ariaPressed") in ("true", "false")


@pytest.mark.filterwarnings("ignore:a sample that weighs")  # the demo's own settings, as they are
@pytest.mark.full("trains, and starts a browser")
@pytest.mark.extra("sklearn")
@pytest.mark.parametrize("name", RUNS)
def test_the_page_of_a_real_run(tmp_path: Path, browser: Page, name: str) -> None:
    arguments = ["train", *RUNS[name], "--threads", "1", "--out", str(tmp_path)]
    if name in ("fashion", "text"):
        if DATA is None:
            pytest.skip("PE_DATA names no folder with the real data sets")
        arguments += ["--data-root", DATA]
    assert main(arguments) == 0
    path = tmp_path / "report.html"
    assert path.stat().st_size <= pages.LIMIT
    for width in (1280, 390):
        check(browser, path, width)
    charts = browser.value("[...document.querySelectorAll('svg[data-chart]')].length")
    assert charts >= 3
    assert browser.value("document.querySelectorAll('.cards li').length") > 10
    check_theme(browser)
    if name != "bpas":
        check_slider(browser)


@pytest.mark.full("starts a browser")
@pytest.mark.extra("sklearn")
def test_a_page_that_is_wrong_is_seen(tmp_path: Path, browser: Page) -> None:
    """The control: each fault that the checks are for is found by them."""
    path = pages.write_page([(tmp_path, make(tmp_path))], tmp_path / "report.html")
    check(browser, path, 1280)
    right = path.read_text()
    faults = {
        "a console error": right.replace('"use strict";', '"use strict";console.error(1);'),
        "a thrown error": right.replace('"use strict";', '"use strict";setTimeout(() => x.y);'),
        "a request": right.replace("<h1>", '<img src="http://localhost:9/x.png"><h1>'),
        "an empty chart": right.replace('class="line slot3" d="M', 'class="line slot3" x="M'),
        "a wide element": right.replace("<main", '<p style="width:3000px">x</p><main'),
    }
    for fault, text in faults.items():
        assert text != right, fault
        path.write_text(text)
        with pytest.raises(AssertionError):
            check(browser, path, 1280)
    path.write_text(right.replace("slider.addEventListener", "void "))
    browser.open(path, 1280)
    with pytest.raises(AssertionError):
        check_slider(browser)


@pytest.mark.full("starts a browser")
@pytest.mark.extra("sklearn")
def test_a_dark_screen_prints_on_white(tmp_path: Path, browser: Page) -> None:
    path = pages.write_page([(tmp_path, make(tmp_path))], tmp_path / "report.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    found: list[str] = []
    try:
        for media in ("screen", "print"):
            browser.open(path, 1280)
            browser.call("Emulation.setEmulatedMedia", media=media, features=dark)
            found.append(browser.value(ground))
            shown = browser.value("getComputedStyle(document.querySelector('nav')).display")
            assert (shown == "none") == (media == "print")
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=[])
    assert found[0] != found[1] == "rgb(255, 255, 255)"


@pytest.mark.full("starts a browser")
@pytest.mark.extra("sklearn")
def test_a_name_that_is_a_script_does_not_run(tmp_path: Path, browser: Page) -> None:
    names = ["<script>document.title='owned'</script>", *(f"klass {k}" for k in range(9))]
    run = make(tmp_path)
    path = pages.write_page([(tmp_path, run)], tmp_path / "report.html", names=names)
    check(browser, path, 1280)
    assert browser.value("document.title").startswith("digits")
    assert names[0] in browser.value("document.body.innerText")
