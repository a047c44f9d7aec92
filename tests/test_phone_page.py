"""The phone page in a real browser, served below a sub-path, with a clip for a camera."""

import base64
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from app.compare import compare, load
from app.phone import serve
from app.phone.export import SAMPLE, export
from models import Frame, Segmenter, card, names, preprocess
from tests.browser import Browse, camera_file

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
RELAXED = "**/litert_wasm_internal.wasm.gz"


@dataclass
class Site:
    """A site being served: `url` is where, `folder` what."""

    url: str
    folder: Path


@contextmanager
def serving(folder: Path) -> Iterator[http.server.HTTPServer]:
    with serve(folder, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("npm"):
        pytest.skip("no page for a browser: npm is not installed (nodejs.org)")
    root = tmp_path_factory.mktemp("host")
    export(root / "demo" / "site", [tiny, *names()])
    return root


@pytest.fixture(scope="module")
def site(exported: Path) -> Iterator[Site]:
    with serving(exported) as server:
        yield Site(f"http://127.0.0.1:{server.server_port}/demo/site/", exported / "demo" / "site")


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return camera_file(SAMPLE, tmp_path_factory.mktemp("camera") / "camera.mjpeg")


@pytest.fixture(scope="module")
def context(browse: Browse, camera: Path) -> Iterator[Any]:
    with browse(camera, **PHONE) as opened:
        yield opened


@pytest.fixture(scope="module")
def opened(context: Any, site: Site) -> Any:
    """The page with the tiny model, its self-check passed. Loading it is dear, so many tests use it in turn."""
    page = context.new_page()
    ready(page, site.url)
    return page


@pytest.fixture
def page(opened: Any) -> Iterator[Any]:
    """The opened page as it was after loading; a test fails that raises in the page."""
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    yield opened
    if opened.is_visible("#do-stop"):
        opened.click("#do-stop")
    opened.check("[value=colours]", force=True)
    opened.wait_for_selector("#start:visible")
    opened.evaluate("() => { delete navigator.canShare; delete navigator.share }")
    assert not problems


def until(page: Any, expression: str, seconds: float = 30) -> None:
    """Wait for an expression to hold; Playwright's own way needs `eval`, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(30)


def ready(page: Any, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#proof:not([hidden])")


def start(page: Any) -> None:
    page.click("#start")
    page.wait_for_selector("#fps:not([hidden])")


def frames(count: int = 3) -> list[Frame]:
    clip = cv2.VideoCapture(str(SAMPLE))
    found = []
    for number in range(count):
        clip.set(cv2.CAP_PROP_POS_FRAMES, 48 * number)
        found.append(clip.read()[1])
    clip.release()
    return found


# Bytes cross the browser's protocol fast as base64, and a hundred times slower as lists of numbers
CODEC = """
    const unpack = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const pack = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
"""


def pack(content: bytes) -> str:
    return base64.b64encode(content).decode()


def unpack(text: str) -> Any:
    return np.frombuffer(base64.b64decode(text), np.uint8)


def segment_in(page: Any, model: str, pictures: list[Frame]) -> tuple[str, list[Any]]:
    """Send pictures, as lossless PNGs, the page's own way: bitmap, worker, class ids; say in which build."""
    build, maps = page.evaluate(
        """async ([name, pictures]) => {"""
        + CODEC
        + """
            const { Engine } = await import(new URL("js/engine.js", location.href).href);
            const site = await (await fetch("site.json")).json();
            const entry = site.models.find((model) => model.name === name);
            const engine = await Engine.start(entry, () => {});
            const palette = entry.classes.map(({ color }, id) => [...color, id && 255]);
            const maps = [];
            for (const picture of pictures) {
                const bitmap = await createImageBitmap(new Blob([unpack(picture)]));
                maps.push(pack((await engine.segment(bitmap, palette)).map.ids));
            }
            engine.stop();
            return [engine.build, maps];
        }""",
        [model, [pack(cv2.imencode(".png", picture)[1].tobytes()) for picture in pictures]],
    )
    return build, [unpack(ids) for ids in maps]


@pytest.fixture(scope="module")
def bare(browse: Browse) -> Iterator[Any]:
    """A browser with neither a camera nor service workers, which would hide requests from `route`."""
    switches = ["--host-resolver-rules=MAP phone.test 127.0.0.1"]  # a name that is not this machine's own
    with browse(args=switches) as opened:
        opened.add_init_script("Object.defineProperty(navigator, 'serviceWorker', { value: undefined })")
        yield opened


@pytest.mark.parametrize("build", ["relaxed SIMD", "SIMD"])
@pytest.mark.parametrize("name", ["tiny", *names()])
def test_class_maps_are_pythons_bit_for_bit(site: Site, bare: Any, tiny: Path, name: str, build: str) -> None:
    segmenter = Segmenter(tiny if name == "tiny" else name, threads=1)
    # Of the input's own size: how others are shrunk is the next test's
    pictures = [np.ascontiguousarray(segmenter.prepare(frame)[0][..., ::-1]) for frame in frames()]
    page = bare.new_page()
    if build == "SIMD":  # as in a browser that has no relaxed SIMD, or computes something else with it
        page.route(RELAXED, lambda route: route.abort())
    page.goto(site.url + "site.json")
    used, maps = segment_in(page, name, pictures)
    page.close()
    assert used == build
    for picture, ids in zip(pictures, maps, strict=True):
        expected = segmenter.infer(segmenter.prepare(picture))
        assert len(np.unique(expected)) > 1
        assert np.array_equal(ids, expected.ravel())


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (360, 640), (1080, 1920), (512, 512), (481, 640), (120, 160)])
@pytest.mark.parametrize("target", [(256, 256), (240, 256), (240, 320)])
def test_pictures_are_shrunk_as_in_python(
    site: Site, bare: Any, size: tuple[int, int], target: tuple[int, int]
) -> None:
    picture = cv2.resize(frames(1)[0], size[::-1])
    page = bare.new_page()
    page.goto(site.url + "site.json")
    shrunk = page.evaluate(
        """async ([rgba, height, width, outHeight, outWidth]) => {"""
        + CODEC
        + """
            const { shrink } = await import(new URL("js/pixels.js", location.href).href);
            return pack(shrink(unpack(rgba), width, height, outWidth, outHeight));
        }""",
        [pack(cv2.cvtColor(picture, cv2.COLOR_BGR2RGBA).tobytes()), *size, *target],
    )
    page.close()
    expected = preprocess(picture, *target).ravel().astype(int)
    difference = np.abs(unpack(shrunk) - expected)
    assert difference.max() <= 1  # some of OpenCV's whole factors round halves up
    assert size != (480, 640) or not difference.any()  # a camera's usual size: nothing differs
    assert size != (640, 480) or target == (240, 256) or difference.mean() < 0.002  # ties between sums of thirds
    assert size[0] < target[0] or difference.mean() < 0.003


def test_masks_are_live(page: Any, site: Site, tiny: Path) -> None:
    start(page)
    until(page, "document.querySelectorAll('#classes b')[2].textContent.endsWith('%')")
    segmenter = Segmenter(tiny)
    maps = [segmenter.infer(segmenter.prepare(frame)) for frame in frames_of_camera()]
    told = [float(text.removesuffix(" %")) for text in page.locator("#classes b").all_inner_texts()]
    for id, share in enumerate(told):
        expected = [100 * float((map == id).mean()) for map in maps]
        # The way through the camera, JPEG and YUV, changes brightness a little, and that is what this model sees
        assert min(expected) - 6 <= share <= max(expected) + 6
    assert sum(told) == pytest.approx(100, abs=0.2)
    assert float(page.inner_text("#figure-fps")) > 0
    assert page.inner_text("#figure-picture") == "640×480"
    first = page.inner_text("#figure-p50")
    until(page, f"document.getElementById('figure-p50').textContent !== '{first}'")


def frames_of_camera() -> list[Frame]:
    clip = cv2.VideoCapture(str(SAMPLE))
    found = [clip.read()[1] for _ in range(20)]
    clip.release()
    return found


def pixels(page: Any) -> Any:
    """The canvas as HxWx3 RGB."""
    size = page.evaluate("[picture.height, picture.width]")
    read = "pack(picture.getContext('2d').getImageData(0, 0, picture.width, picture.height).data)"
    return unpack(page.evaluate(f"() => {{ {CODEC} return {read} }}")).reshape(*size, 4)[..., :3]


def upload(page: Any, picture: Frame, field: str = "#file") -> None:
    content = cv2.imencode(".png", picture)[1].tobytes()
    page.set_input_files(field, {"name": "picture.png", "mimeType": "image/png", "buffer": content})


def half_and_half() -> Frame:
    """Left dark, right bright, portrait: for the tiny model class 0 beside class 2."""
    picture = np.full((320, 240, 3), 20, np.uint8)
    picture[:, 120:] = 235
    return picture


def test_a_photo_is_painted_where_its_classes_are(page: Any, site: Site) -> None:
    upload(page, half_and_half())
    page.wait_for_selector("#fps:not([hidden])")
    until(page, "picture.width === 240 && picture.height === 320")
    color = json.loads((site.folder / "site.json").read_text())["models"][0]["classes"][2]["color"]
    drawn = pixels(page)
    assert np.abs(drawn[160, 30].astype(int) - 20).max() <= 2  # background stays as it is
    assert np.abs(drawn[160, 210] - (0.55 * np.array(color) + 0.45 * 235)).max() <= 3


def test_the_background_is_replaced_and_blurred(page: Any) -> None:
    picture = half_and_half()
    picture[::2, :120] = 60  # stripes that a blur levels; dark enough to stay class 0
    upload(page, picture)
    page.wait_for_selector("#fps:not([hidden])")
    page.check("[value=replace]", force=True)
    page.locator("#choose-backdrop").wait_for()
    upload(page, np.full((10, 10, 3), (200, 30, 10), np.uint8), "#backdrop")
    until(page, "picture.getContext('2d').getImageData(30, 160, 1, 1).data[2] > 150")
    drawn = pixels(page)
    assert np.abs(drawn[160, 30].astype(int) - (10, 30, 200)).max() <= 2
    assert np.abs(drawn[160, 210].astype(int) - 235).max() <= 2
    page.check("[value=blur]", force=True)
    until(page, "picture.getContext('2d').getImageData(30, 160, 1, 1).data[2] < 150")
    assert pixels(page)[100:200, 30].std() < 5 < picture[100:200, 30].std()


def test_a_tap_chooses_a_class_and_another_lets_go(page: Any) -> None:
    upload(page, half_and_half())
    page.wait_for_selector("#fps:not([hidden])")
    chosen = page.locator("#classes [aria-pressed=true]")
    page.locator("#picture").tap(position={"x": 300, "y": 200})
    assert "bright" in chosen.inner_text()
    page.locator("#picture").tap(position={"x": 300, "y": 200})
    assert chosen.count() == 0
    page.locator("#classes button").nth(2).focus()
    page.keyboard.press("Enter")
    assert "bright" in chosen.inner_text()


def test_pictures_and_recordings_can_be_saved(page: Any, tmp_path: Path) -> None:
    start(page)
    page.evaluate("() => { navigator.canShare = undefined }")
    with page.expect_download() as download:
        page.click("#do-snapshot")
    download.value.save_as(tmp_path / "picture.jpg")
    saved = cv2.imread(str(tmp_path / "picture.jpg"))
    assert saved.shape == (480, 640, 3) and saved.std() > 10
    page.click("#do-record")
    assert page.get_attribute("#do-record", "aria-pressed") == "true"
    page.wait_for_timeout(1200)
    with page.expect_download() as download:
        page.click("#do-record")
    target = tmp_path / download.value.suggested_filename
    download.value.save_as(target)
    clip = cv2.VideoCapture(str(target))
    read, frame = clip.read()
    clip.release()
    assert read and frame.shape == (480, 640, 3) and frame.std() > 10


def test_a_share_sheet_gets_the_file(page: Any) -> None:
    start(page)
    page.evaluate("() => { navigator.canShare = () => true; navigator.share = (what) => { window.shared = what } }")
    page.click("#do-snapshot")
    until(page, "window.shared?.files[0].type === 'image/jpeg'")


def test_the_camera_can_be_flipped_mirrored_and_stopped(page: Any) -> None:
    start(page)
    before = page.get_attribute("#do-mirror", "aria-pressed")
    page.click("#do-mirror")
    assert page.get_attribute("#do-mirror", "aria-pressed") != before
    asked = "navigator.mediaDevices.getUserMedia"
    page.evaluate(f"""() => {{
        const ask = {asked}.bind(navigator.mediaDevices);
        {asked} = (constraints) => ask(window.asked = constraints);
    }}""")
    page.click("#do-flip")
    until(page, "window.asked?.video.facingMode.ideal === 'environment'")
    page.wait_for_selector("#fps:not([hidden])")
    assert page.get_attribute("#do-mirror", "aria-pressed") == "false"  # what faces away is not mirrored
    page.evaluate("window.track = video.srcObject.getTracks()[0]")
    page.click("#do-stop")
    page.wait_for_selector("#start:visible")
    assert page.evaluate("window.track.readyState") == "ended"


def test_a_hidden_page_pauses_and_goes_on(page: Any) -> None:
    start(page)
    hide = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true }); "
    hide += "document.dispatchEvent(new Event('visibilitychange')) }"
    page.evaluate(hide, True)
    assert page.evaluate("video.paused && !video.srcObject.getTracks()[0].enabled")
    page.evaluate(hide, False)
    until(page, "!video.paused && video.srcObject.getTracks()[0].enabled")
    page.wait_for_selector("#fps:not([hidden])")


def test_the_benchmark_tells_the_trend_and_gives_json(page: Any, site: Site, tmp_path: Path) -> None:
    page.evaluate("() => { navigator.canShare = undefined }")
    page.evaluate("document.getElementById('benchmark').dataset.seconds = 1")
    page.click("#benchmark-run")
    page.wait_for_selector("#benchmark-save:visible")
    assert "Median" in page.inner_text("#benchmark-result")
    assert page.is_visible("#trend") and len(page.get_attribute("#trend polyline", "points").split()) > 1
    with page.expect_download() as download:
        page.click("#benchmark-save")
    download.value.save_as(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    row, sustained = report["rows"][0], report["sustained"]
    assert row["model"] == "tiny" and row["threads"] == 1 and len(row["times_ms"]) > 1
    assert row["min_ms"] <= row["p5_ms"] <= row["median_ms"] <= row["p95_ms"]
    assert row["median_ms"] == pytest.approx(float(np.median(row["times_ms"])), abs=2e-3)
    assert row["wasm_heap_mb"] > 1 and row["pixels_equal"] == 1 and "Chrom" in report["device"]
    assert sum(point["fps"] for point in sustained["points"]) / 20 == pytest.approx(len(row["times_ms"]), rel=1e-3)
    assert [change.verdict for change in compare(load(tmp_path / "report.json"), report)] == ["same"]


def test_a_benchmark_can_be_stopped(page: Any) -> None:
    page.click("#benchmark-run")
    until(page, "document.getElementById('benchmark-progress').value > 0")
    page.click("#benchmark-run")
    until(page, "document.getElementById('benchmark-result').textContent.startsWith('Stopped')")


def test_every_control_has_a_name_and_the_page_asks_only_its_own_site(context: Any, site: Site) -> None:
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    ready(page, site.url)
    start(page)
    tree = context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    page.close()
    controls = [node for node in tree if node.get("role", {}).get("value") in ("button", "radio", "combobox", "image")]
    assert len(controls) > 8 and all(node["name"]["value"] for node in controls if not node["ignored"])
    assert asked and all(url.startswith((site.url, "blob:", "data:")) for url in asked)


@pytest.mark.skipif(not names(), reason="no model is shipped yet")
def test_the_model_can_be_chosen_on_the_page_and_in_the_address(context: Any, site: Site) -> None:
    page = context.new_page()
    ready(page, site.url + f"?model={names()[0]}")
    told = card(names()[0])
    assert page.locator("#classes button").all_inner_texts() == [info.name for info in told.classes]
    assert page.inner_text("#terms") == told.details.get("terms", "")
    page.select_option("#model", "tiny")
    until(page, "document.querySelector('#classes').textContent.includes('grey')")
    page.close()


def test_offline_the_page_opens_and_runs(browse: Browse, exported: Path, camera: Path) -> None:
    with browse(camera) as context:
        with serving(exported) as server:
            url = f"http://127.0.0.1:{server.server_port}/demo/site/"
            page = context.new_page()
            ready(page, url)
            assert "without a network" in page.inner_text("#offline")
        page.reload()  # there is no server any more
        ready(page, url)
        start(page)


def test_a_new_export_reaches_a_visitor_who_comes_again(
    browse: Browse, exported: Path, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "host")
    folder = tmp_path / "host" / "demo" / "site"
    with serving(tmp_path / "host") as server, browse() as context:
        url = f"http://127.0.0.1:{server.server_port}/demo/site/"
        page = context.new_page()
        ready(page, url)
        export(folder, [renamed(tiny, tmp_path)])
        page.reload()  # the old page still, while the new one is fetched
        until(page, "caches.match('site.json', { ignoreSearch: true }).then((r) => r.json())"
                               ".then(({ models }) => models[0].name === 'later')")  # fmt: skip
        page.reload()
        until(page, "document.querySelector('#classes').textContent.includes('dusk')")


def renamed(tiny: Path, folder: Path) -> Path:
    """The tiny model under another name and with other words for its classes."""
    card = json.loads(tiny.with_suffix(".json").read_text()) | {"name": "later"}
    for info, name in zip(card["classes"], ("night", "dusk", "day"), strict=True):
        info["name"] = name
    (folder / "later.json").write_text(json.dumps(card))
    return Path(shutil.copy(tiny, folder / "later.tflite"))


def test_a_model_that_computes_nonsense_is_caught(bare: Any, site: Site) -> None:
    whole = (site.folder / "models" / "tiny.tflite").read_bytes()
    broken = whole.replace((170).to_bytes(4, "little"), (100).to_bytes(4, "little"))  # the threshold of "bright"
    assert broken != whole
    page = bare.new_page()
    page.route("**/tiny.tflite", lambda route: route.fulfill(body=broken))
    ready(page, site.url)
    assert page.inner_text("#proof") == "Self-check failed"
    assert "Do not trust" in page.inner_text("#message")
    assert not page.is_visible("#start") and page.is_visible("#anyway")
    page.close()


def test_a_model_that_does_not_come_is_told(bare: Any, site: Site) -> None:
    page = bare.new_page()
    page.route("**/tiny.tflite", lambda route: route.fulfill(status=404))
    page.goto(site.url)
    page.wait_for_selector("#message:visible")
    assert "could not be fetched (404)" in page.inner_text("#message") and not page.is_visible("#start")
    page.close()


def test_a_refused_camera_gets_its_message(browse: Browse, camera: Path, site: Site) -> None:
    with browse(camera, allowed=False) as context:
        page = context.new_page()
        ready(page, site.url)
        refused = {"permission": {"name": "camera"}, "setting": "denied"}
        context.new_cdp_session(page).send("Browser.setPermission", refused)
        page.click("#start")
        page.wait_for_selector("#message:visible")
        assert "refused" in page.inner_text("#message") and page.is_visible("#start")


def test_a_missing_camera_gets_its_message(bare: Any, site: Site) -> None:
    page = bare.new_page()
    page.goto(site.url)
    page.click("#start")
    page.wait_for_selector("#message:visible")
    assert "No camera was found" in page.inner_text("#message")
    page.close()


def test_an_insecure_page_says_how_to_open_it(bare: Any, site: Site) -> None:
    page = bare.new_page()
    page.goto(site.url.replace("127.0.0.1", "phone.test"))
    page.click("#start")
    page.wait_for_selector("#message:visible")
    assert "https://" in page.inner_text("#message")
    page.close()


@pytest.mark.parametrize("size", [(320, 640), (390, 844), (844, 390), (1280, 800)])
def test_screens_of_all_sizes_hold_the_page(page: Any, size: tuple[int, int]) -> None:
    before = page.viewport_size
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    page.evaluate("document.querySelectorAll('#figures dd').forEach((figure) => { figure.textContent = '1234.5 ms' })")
    inside = """[...document.querySelectorAll("main *")].filter((element) => !element.closest("svg, #video"))
        .every((element) => element.getBoundingClientRect().right <= innerWidth + 0.5)"""
    assert page.evaluate(inside) and page.evaluate("document.documentElement.scrollWidth") <= size[0]
    picture = page.locator("#picture").bounding_box()
    assert picture["width"] / picture["height"] == pytest.approx(4 / 3, rel=0.01)
    page.set_viewport_size(before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_by_day_and_by_night(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    style = "getComputedStyle(document.documentElement)"
    ink, paper, faint = page.evaluate(f"[{style}.color, {style}.backgroundColor, {style}.getPropertyValue('--faint')]")
    assert contrast(ink, paper) > 7
    assert contrast("rgb({}, {}, {})".format(*bytes.fromhex(faint.strip("# "))), paper) > 4.5


def contrast(*colors: str) -> float:
    """WCAG 2.2's contrast ratio of two CSS rgb() colours."""
    levels = []
    for color in colors:
        parts = np.array([int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(",")]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ (0.2126, 0.7152, 0.0722)) + 0.05)
    return max(levels) / min(levels)
