"""The web page in a real browser: live masks, uploads and clicks, several visitors, the machine's camera."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from app.web.engine import Engine
from app.web.screen import Screen
from app.web.server import Door, serving
from models import card, names
from tests.browser import Browse
from tests.test_web import LEVELS, encoded, get, stripes

PATIENCE = 240_000  # ms; a core that is shared with other work may be very slow
HELD = 8  # frames that each picture of the camera stands


@pytest.fixture(scope="module")
def screen() -> Screen:
    return Screen()


@pytest.fixture(scope="module")
def url(tiny: Path, screen: Screen) -> Iterator[str]:
    with serving(Door(port=0), Engine([tiny, *names()], threads=1), screen) as address:
        yield address


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark, grey and bright stripes, then the same from right to left, over and over."""
    path = tmp_path_factory.mktemp("camera") / "camera.mjpeg"
    frame = stripes(240, 330)
    path.write_bytes(b"".join(encoded(each) for each in [frame] * HELD + [frame[:, ::-1]] * HELD))
    return path


@pytest.fixture(scope="module")
def context(browse: Browse, camera: Path) -> Iterator[Any]:
    with browse(camera, viewport={"width": 1280, "height": 900}) as opened:
        opened.set_default_timeout(PATIENCE)
        yield opened


@pytest.fixture(scope="module")
def problems() -> list[str]:
    """What the console and the network complained about, on any page."""
    return []


def open_page(context: Any, url: str, problems: list[str], width: int = 1280) -> Any:
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900 if width > 600 else 844})
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: problems.append(asked.url) if outside(asked.url, url) else None)
    page.goto(url)
    page.wait_for_selector("edge-camera canvas")
    return page


def outside(address: str, url: str) -> bool:
    return not address.startswith((url, "data:", "blob:"))


@pytest.fixture(scope="module")
def page(context: Any, url: str, problems: list[str]) -> Any:
    """One page, which the tests use in turn: loading it is dear."""
    return open_page(context, url, problems)


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).locator("visible=true").first.click()


def start(page: Any) -> None:
    tab(page, "Live")
    if page.is_visible("edge-live [data-id=start]"):
        page.click("edge-live [data-id=start]")
    page.wait_for_selector("edge-live [data-id=dock]:not([hidden])")


def pixel(page: Any, across: float) -> list[int]:
    """Return the RGB of the live canvas half way down."""
    found = page.evaluate(
        """(across) => {
            const canvas = document.querySelector("edge-live canvas");
            const at = [Math.floor(across * canvas.width), Math.floor(canvas.height / 2)];
            return [...canvas.getContext("2d").getImageData(...at, 1, 1).data].slice(0, 3);
        }""",
        across,
    )
    return list(found)


def until(page: Any, condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(30)


def close_to(colour: list[int], wanted: tuple[int, int, int]) -> bool:
    return bool(np.allclose(colour, wanted, atol=30))


def figure(page: Any, name: str) -> str:
    return str(page.text_content(f"edge-live [data-id=figure-{name}]"))


def test_live_masks_are_right_and_keep_changing(page: Any, tiny: Path) -> None:
    _, middle, bright = (info.color for info in card(tiny).classes)
    start(page)
    page.check("edge-live [value=mask]", force=True)
    page.uncheck("edge-live [data-id=smooth]")
    for _ in range(2):
        until(page, lambda: close_to(pixel(page, 0.1), (0, 0, 0)) and close_to(pixel(page, 0.9), bright))
        assert close_to(pixel(page, 0.5), middle)
        until(page, lambda: close_to(pixel(page, 0.1), bright) and close_to(pixel(page, 0.9), (0, 0, 0)))
    until(page, lambda: re.fullmatch(r"\d+ ms", figure(page, "median")))
    assert float(figure(page, "fps")) > 0 and figure(page, "memory").endswith(" MB") and figure(page, "visitors") == "1"


def test_a_tap_on_a_class_chooses_it_where_it_is_in_the_mirror(page: Any, tiny: Path) -> None:
    names = [info.name for info in card(tiny).classes]
    assert page.get_attribute("edge-live [data-id=mirror]", "aria-pressed") in ("true", "false")
    box = page.locator("edge-live canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # grey in each picture
    chosen = page.locator("edge-live .classes button[aria-pressed=true]")
    chosen.wait_for()
    assert names[1] in chosen.text_content() and chosen.count() == 1
    until(page, lambda: close_to(pixel(page, 0.1), (0, 0, 0)) and close_to(pixel(page, 0.9), (0, 0, 0)))
    page.click(f"edge-live .classes button:has-text('{names[0]}')")  # the background stands for all
    chosen.wait_for(state="detached")


def test_the_background_picture_outlives_the_camera(page: Any, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((60, 80, 3), (200, 0, 0), np.uint8))
    start(page)
    page.check("edge-live [value=replace]", force=True)
    page.set_input_files("edge-live [data-id=backdrop]", str(tmp_path / "blue.png"))
    until(page, lambda: replaced(page))
    for button in ("flip", "stop"):
        page.click(f"edge-live [data-id={button}]")
        start(page)
        until(page, lambda: replaced(page))


def replaced(page: Any) -> bool:
    """Tell whether the dark stripe, on the one side or the other, is blue now."""
    return any(close_to(pixel(page, across), (0, 0, 200)) for across in (0.1, 0.9))


def test_a_second_visitor_works_and_leaves_nothing(context: Any, page: Any, url: str, problems: list[str]) -> None:
    start(page)
    second = open_page(context, url, problems, 390)  # as wide as a phone
    try:
        start(second)
        assert second.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out
        until(second, lambda: figure(second, "visitors") == "2")
        assert figure(second, "median") != "–"
    finally:
        second.close()
    page.bring_to_front()
    until(page, lambda: figure(page, "visitors") == "1")
    page.click("edge-live [data-id=stop]")
    until(page, lambda: get(url + "live/frame?visitor=test", encoded(stripes()))[2]["visitors"] == 1)
    get(url + "live/leave?visitor=test", b"")


def test_an_upload_is_segmented_and_a_click_chooses_a_class(page: Any, tiny: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "stripes.png"), stripes(240, 330))
    tab(page, "Picture")
    page.set_input_files("#picture-in input[type=file]", str(tmp_path / "stripes.png"))
    page.wait_for_selector("#picture-out img")
    before = page.get_attribute("#picture-out img", "src")
    box = page.locator("#picture-out img").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    until(page, lambda: page.get_attribute("#picture-out img", "src") != before)
    assert page.locator(".token", has_text=card(tiny).classes[2].name).locator("visible=true").count() == 1


def test_a_text_named_like_a_picture_is_told_on_the_page(page: Any, problems: list[str], tmp_path: Path) -> None:
    (tmp_path / "letter.png").write_text("Dear server, ...")
    page.click("#picture-in button[aria-label='Clear'], #picture-in button[aria-label='Remove Image']")
    page.set_input_files("#picture-in input[type=file]", str(tmp_path / "letter.png"))
    page.get_by_text("not a picture that can be read").first.wait_for()


def test_the_calls_name_the_address_by_which_the_page_was_reached(page: Any, url: str) -> None:
    tab(page, "API")
    page.get_by_text(f'Client("{url}")').wait_for()
    assert f"{url}live/frame?" in page.text_content("body")


def test_the_machines_camera_is_shown_and_steered(page: Any, url: str, screen: Screen) -> None:
    tab(page, "Watch")
    stopped = threading.Event()

    def film() -> None:
        for number in range(10_000):
            screen.show(np.full((120, 160, 3), LEVELS[number % 2], np.uint8))
            if stopped.wait(0.05):
                break

    filming = threading.Thread(target=film)
    filming.start()
    try:
        page.get_by_text("1 watching").wait_for()
        for key in ("q", "v", "p", "t", "%20"):  # quitting, recording, saving, threads and pausing are the owner's
            assert get(url + f"camera/press?key={key}", b"")[0] == 204 and screen.events()[0] == ""
        page.click("edge-camera [data-key=m]")
        until(page, lambda: screen.events()[0] == "m")
        page.mouse.click(*[page.locator("edge-camera canvas").bounding_box()[side] + 40 for side in ("x", "y")])
        until(page, lambda: screen.events()[1] != [])
    finally:
        stopped.set()
        filming.join()


def test_nothing_was_wrong_or_came_from_elsewhere(page: Any, problems: list[str]) -> None:
    assert [told for told in problems if "letter.png" not in told] == []
