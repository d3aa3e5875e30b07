"""report.html opened from disk in a real browser: console, requests, cells of the matrix by mouse and by keyboard."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import convsmith
from chromium import headless

KEPT = Path(__file__).parent / "first_edition"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a short training: with few epochs there are mistakes to look at."""
    folder = tmp_path_factory.mktemp("report")
    line = "train --name seen --epochs 1 --train.threads 1 --track.wandb off --data.limit 300"
    command = [sys.executable, "-m", "convsmith.cli", *line.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs/seen/report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Reduced motion: a page that still scrolls smoothly moves away under the click.
    yield from headless("force-prefers-reduced-motion")


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    return browser


def requests(browser: Any) -> set[str]:
    """What was asked for since the last call, but for the data within the page."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {url for url in sent if not url.startswith(("data:", "chrome:", "about:"))}


def images_in_dialog(browser: Any) -> list[int]:
    """The natural widths of the images that the dialog shows."""
    script = """
        const done = arguments[0], images = [...document.querySelectorAll('#images-shots img')];
        Promise.all(images.map(image => image.decode())).then(() => done(images.map(image => image.naturalWidth)));
    """
    widths: list[int] = browser.execute_async_script(script)
    return widths


def is_open(browser: Any) -> bool:
    return bool(browser.execute_script("return document.getElementById('images').open"))


def focused(browser: Any) -> str:
    return str(browser.execute_script("return document.activeElement.dataset.cell || document.activeElement.id"))


def test_it_opens_from_disk_without_a_complaint_and_asks_for_nothing(opened: Any, page: Path) -> None:
    assert "seen" in opened.title
    assert requests(opened) == {page.as_uri()}
    assert [entry for entry in opened.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")] == []


def test_a_cell_opens_its_images_and_escape_leads_back_to_it(opened: Any) -> None:
    button = opened.find_element("css selector", "#matrix button.miss")
    count = int(button.find_element("css selector", ".count").text)
    key = button.get_attribute("data-cell")
    button.click()
    assert is_open(opened)
    widths = images_in_dialog(opened)
    assert len(widths) == min(count, 6)
    assert all(width > 0 for width in widths), "the policy lets the images in"
    assert opened.find_element("id", "images-title").text.endswith("%)")
    opened.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert not is_open(opened)
    assert focused(opened) == key
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_matrix_works_by_keyboard_alone(opened: Any) -> None:
    stops = opened.execute_script(
        "return [...document.querySelectorAll('#matrix button')].filter(b => !b.tabIndex).length"
    )
    assert stops == 1, "Tab stops once"
    opened.execute_script("document.getElementById('as-counts').focus()")
    opened.switch_to.active_element.send_keys("\ue004")  # Tab
    first = focused(opened)
    assert "-" in first
    opened.switch_to.active_element.send_keys("\ue010")  # End
    last = focused(opened)
    opened.switch_to.active_element.send_keys("\ue015")  # arrow down
    assert focused(opened).split("-")[0] != first.split("-")[0] or focused(opened) == last
    opened.switch_to.active_element.send_keys("\ue007")  # Enter
    assert is_open(opened)
    assert focused(opened) == "images-title"
    opened.find_element("id", "images-close").click()
    assert not is_open(opened)


def test_counts_and_shares_change_places(opened: Any) -> None:
    cell = opened.find_element("css selector", "#matrix button")
    count = cell.text
    opened.find_element("id", "as-shares").click()
    assert cell.text != count
    assert opened.execute_script("return getComputedStyle(document.querySelector('.share')).display") == "inline"
    opened.find_element("id", "as-counts").click()
    assert cell.text == count


def test_on_a_phone_and_in_the_dark_nothing_is_cut_off_or_unreadable(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    wide = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], "the page scrolls sideways"
    colours = set()
    for scheme in ("light", "dark"):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        for selector in ("body", ".dim", "a", "#matrix .hit", "#matrix .miss"):
            ratio = opened.execute_script(CONTRAST, selector)
            assert ratio >= 4.5, f"{selector} in {scheme}: contrast {ratio:.2f}"
        colours.add(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


#: The lowest contrast (WCAG 2.2: relative luminance of the lighter + 0.05 over that of the darker) of what matches.
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const luminance = (colours) => {
  for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
  const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
return Math.min(...[...document.querySelectorAll(arguments[0])].map(element => {
  const behind = [];
  for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
  const pair = [luminance(behind), luminance([...behind, getComputedStyle(element).color])].sort((a, b) => b - a);
  return (pair[0] + 0.05) / (pair[1] + 0.05);
}));
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pages of an ablation, of a tuning and of a comparison, all of kept runs."""
    folder = tmp_path_factory.mktemp("kept")
    for name in ("ablation", "tuning", "finished"):
        shutil.copytree(KEPT / name, folder / name)
    shutil.copytree(KEPT / "finished", folder / "other")
    pages = [convsmith.report(folder / name, show=False) for name in ("ablation", "tuning")]
    return [*pages, convsmith.compare([folder / "finished", folder / "other"]).path]


@pytest.mark.parametrize("number", [0, 1, 2], ids=["ablation", "tuning", "compare"])
def test_pages_of_studies_and_comparisons_are_no_wider_than_any_screen(
    browser: Any, kept: list[Path], number: int
) -> None:
    browser.get_log("browser"), browser.get_log("performance")
    for width in (400, 800, 1280):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE | {"width": width, "mobile": width < 800})
        browser.get(kept[number].as_uri())
        wide = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1], f"the page scrolls sideways at {width}"
    for scheme in ("light", "dark"):
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
        for selector in ("body", ".cards td", ".cards small"):
            if browser.find_elements("css selector", selector):
                ratio = browser.execute_script(CONTRAST, selector)
                assert ratio >= 4.5, f"{selector} in {scheme}: contrast {ratio:.2f}"
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert requests(browser) == {kept[number].as_uri()}
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")] == []
