"""What is meant for browsers, opened in a real one: headless Chromium, its console and its requests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from chromium import headless
from server import Server, serving

WIDE, PHONE = (1100, 900), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from headless("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serving(tmp_path_factory.mktemp("browser"))


def complaints(chrome: Any) -> list[str]:
    return [entry["message"] for entry in chrome.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def hosts_asked(chrome: Any) -> set[str]:
    """Hosts of all requests since the last call, but those for data within the page."""
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).netloc for url in sent if not url.startswith(("data:", "blob:", "chrome:", "about:"))}


def shown(chrome: Any, selector: str, seconds: float = 20) -> Any:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def visible(chrome: Any) -> Any:
        found = chrome.find_element(By.CSS_SELECTOR, selector)
        return found if found.is_displayed() and found.text else False

    return WebDriverWait(chrome, seconds).until(visible)


def texts(chrome: Any, selector: str) -> list[str]:
    return [element.text for element in chrome.find_elements("css selector", selector)]


def choose(chrome: Any, file: Path) -> None:
    chrome.find_element("id", "file").send_keys(str(file))


def test_the_page_answers_with_probabilities_heat_map_and_neighbours(
    browser: Any, server: Server, tmp_path: Path
) -> None:
    picture = tmp_path / "drawn <b>.png"
    Image.fromarray(np.full((40, 60, 3), (250, 120, 10), np.uint8)).save(picture)
    hosts_asked(browser), complaints(browser)
    for width, height in (PHONE, WIDE):
        browser.set_window_size(width, height)
        browser.get(server.url)
        assert shown(browser, "#about").text.startswith("A classifier of 10 classes: 0, 1, 2")
        choose(browser, picture)
        answer = shown(browser, "#answer").text
        named, shares = texts(browser, "#probabilities th"), texts(browser, "#probabilities td.number")
        assert len(named) == 10
        assert answer == f"{named[0]}: {shares[0]}"
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        pictures = (
            "return [...document.querySelectorAll('#result img')].map(image => image.complete && image.naturalWidth)"
        )
        assert browser.execute_script(pictures) == [8] * 8  # seen, heat map, six neighbours
        alternatives = "return [...document.querySelectorAll('img')].every(image => image.alt)"
        assert browser.execute_script(alternatives)
        if (folder := os.environ.get("CONVSMITH_SCREENSHOTS")) is not None:
            browser.save_screenshot(f"{folder}/serve-{width}.png")
    assert complaints(browser) == []
    assert hosts_asked(browser) == {urlsplit(server.url).netloc}


def test_the_page_says_what_is_wrong_with_an_image(browser: Any, server: Server, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    browser.get(server.url)
    shown(browser, "#about")
    choose(browser, broken)
    assert "cannot be read" in shown(browser, "#error").text
    assert not browser.find_element("id", "result").is_displayed()
    assert all("422" in line for line in complaints(browser))  # the browser itself notes the status


def test_pasting_dropping_and_photographing_do_what_choosing_does(browser: Any, server: Server) -> None:
    give = """
        const canvas = Object.assign(document.createElement("canvas"), {width: 9, height: 9});
        canvas.getContext("2d").fillRect(2, 2, 5, 5);
        canvas.toBlob((image) => {
          const data = new DataTransfer();
          data.items.add(new File([image], "image.png", {type: "image/png"}));
          document.dispatchEvent(arguments[0] === "paste"
            ? new ClipboardEvent("paste", {clipboardData: data}) : new DragEvent("drop", {dataTransfer: data}));
        });
    """
    for way in ("paste", "drop"):
        browser.get(server.url)
        shown(browser, "#about")
        browser.execute_script(give, way)
        assert "%" in shown(browser, "#answer").text, way
    browser.get(server.url)
    shown(browser, "#camera").click()
    shown(browser, "#shoot")
    wait = "const done = arguments[0], video = document.getElementById('video');"
    browser.execute_async_script(
        f"{wait} video.videoWidth ? done() : video.addEventListener('loadeddata', () => done())"
    )
    browser.find_element("id", "shoot").click()
    assert "%" in shown(browser, "#answer").text
    assert complaints(browser) == []


def test_the_page_works_with_the_keyboard_alone(browser: Any, server: Server) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.get(server.url)
    shown(browser, "#about")
    reached = []
    for _ in range(2):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.execute_script("return document.activeElement.id"))
    assert reached == ["file", "camera"]
    assert browser.execute_script("return document.getElementById('file').labels[0].textContent") == "Choose an image"
