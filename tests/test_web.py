"""The web page without a browser: turns, uploads, the addresses it answers, login, certificate, Space."""

import asyncio
import base64
import contextlib
import http.client
import http.cookiejar
import io
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import run_demo
from app import https
from app.web.engine import Engine, Overtaken
from app.web.live import SILENCE, Visitors, read_view
from app.web.pictures import open_clip, open_data_url, open_frame, open_picture
from app.web.screen import Screen
from app.web.server import Door, join, serving
from app.web.space import export
from app.web.tasks import Look, report_html
from models import Frame, Segmenter, UserError, card, names

ROOT = Path(__file__).parents[1]
LEVELS = (20, 128, 235)  # what the tiny model calls dark, grey and bright


def stripes(height: int = 120, width: int = 180) -> Frame:
    """Draw dark, grey and bright side by side."""
    return np.repeat(np.repeat(np.array(LEVELS, np.uint8), width // 3)[None, :, None], 3, axis=2).repeat(height, axis=0)


def encoded(picture: Any, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    opened = Engine([tiny, *names()], threads=1)
    yield opened
    opened.close()


# Turns


class Gate:
    """Work that waits: both workers stand before it until it opens."""

    def __init__(self, engine: Engine) -> None:
        self.done: list[str] = []
        self._open, self._standing = threading.Event(), threading.Semaphore(0)
        self._first = [engine.submit(f"gate{number}", self._stand) for number in range(2)]
        for _ in self._first:
            self._standing.acquire(timeout=10)

    def _stand(self) -> None:
        self._standing.release()
        self._open.wait(10)

    def work(self, name: str) -> Callable[[], str]:
        def run() -> str:
            self.done.append(name)
            return name

        return run

    def open(self) -> None:
        self._open.set()
        for future in self._first:
            future.result(10)


def test_newer_work_overtakes_older_and_visitors_take_turns(engine: Engine) -> None:
    gate = Gate(engine)
    old = engine.submit("ada", gate.work("ada 1"))
    other = engine.submit("bob", gate.work("bob 1"))
    new = engine.submit("ada", gate.work("ada 2"))
    with pytest.raises(Overtaken):
        old.result(10)
    gate.open()
    assert (new.result(10), other.result(10)) == ("ada 2", "bob 1")
    assert sorted(gate.done) == ["ada 2", "bob 1"]  # and "ada 1" was never begun


def test_what_goes_wrong_reaches_who_asked(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        engine.submit("ada", lambda: 1 // 0).result(10)
    assert engine.submit("ada", lambda: 1).result(10) == 1


def test_a_closed_engine_answers_at_once(tiny: Path) -> None:
    closed = Engine([tiny])
    closed.close()
    with pytest.raises(Overtaken):
        closed.submit("ada", lambda: 1).result(10)


def test_only_models_on_offer_are_opened(engine: Engine, tiny: Path) -> None:
    assert engine.segmenter("").card.name == "tiny"
    for name in (str(tiny), "../tests/data/tiny", "nothing"):
        with pytest.raises(UserError, match="choose from tiny"):
            engine.segmenter(name)
    with pytest.raises(UserError, match="offer each name once"):
        Engine([tiny, tiny])


def test_silent_visitors_are_forgotten_and_too_many_are_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr("app.web.live.MAX_VISITORS", 2)
    visitors = Visitors(engine)
    ada = visitors.enter("ada")
    visitors.enter("bob")
    with pytest.raises(UserError, match="try again"):
        visitors.enter("eve")
    assert visitors.enter("ada") is ada
    now += SILENCE + 1
    visitors.enter("eve")
    assert visitors.enter("ada") is not ada
    visitors.leave("ada")
    visitors.leave("ada")


# Uploads


def bomb(width: int, height: int) -> bytes:
    """Write the head of a PNG that claims a size."""
    head = io.BytesIO()
    Image.new("1", (8, 8)).save(head, "PNG")
    content = bytearray(head.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    crc = zlib.crc32(content[12:29])
    content[29:33] = crc.to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bomb(30_000, 30_000), "at most 50 megapixels"),  # beyond what Pillow itself allows
        (bomb(9_000, 6_000), "at most 50 megapixels"),  # just above ours
        (b"#!/bin/sh\necho hello\n", "not a picture"),  # a text
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (encoded(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))[:2000], "damaged or cut off"),
        (b"", "not a picture"),
    ],
    ids=["bomb", "too large", "text", "svg", "truncated", "empty"],
)
def test_bad_pictures_are_refused_in_a_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(content)
    for source in (content, file):
        with pytest.raises(UserError, match=said) as error:
            open_picture(source)
        assert str(tmp_path) not in str(error.value)


def test_pictures_are_turned_scaled_and_made_opaque() -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    Image.new("RGB", (60, 40), (250, 0, 0)).save(turned, "JPEG", exif=exif)
    frame = open_picture(turned.getvalue())
    assert frame.shape == (60, 40, 3) and frame[0, 0, 2] > 240  # BGR
    assert open_picture(encoded(np.zeros((300, 4000, 3), np.uint8))).shape == (154, 2048, 3)
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (open_picture(encoded(clear, ".png")) == 255).all()
    url = "data:image/png;base64," + base64.b64encode(encoded(stripes(), ".png")).decode()
    assert np.array_equal(open_data_url(url), stripes())
    with pytest.raises(UserError, match="not base64"):
        open_data_url("data:image/png;base64,§")


def test_live_frames_are_small_jpegs() -> None:
    assert open_frame(encoded(stripes())).shape == (120, 180, 3)
    for content, said in (
        (b"hello", "not a JPEG"),
        (encoded(stripes(), ".png"), "not a JPEG"),
        (encoded(np.zeros((8, 1300, 3), np.uint8)), "too large"),
    ):
        with pytest.raises(UserError, match=said):
            open_frame(content)


def clip_of(path: Path, fps: float, frames: int, size: tuple[int, int] = (32, 32)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), 2 * number % 256, np.uint8))
    writer.release()
    return path


def test_bad_clips_are_refused_in_a_sentence(tmp_path: Path) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_bytes(b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n\0")
    cut = tmp_path / "cut.avi"
    cut.write_bytes(clip_of(tmp_path / "good.avi", 10, 10).read_bytes()[:1500])
    for path, said in (
        (playlist, "not a video"),
        (cut, "damaged or cut off"),
        (clip_of(tmp_path / "long.avi", 1, 130), "at most 120 s"),
        (clip_of(tmp_path / "wide.avi", 10, 2, (2000, 16)), "at most 1920 pixels"),
    ):
        with pytest.raises(UserError, match=said) as error:
            open_clip(path)
        assert str(tmp_path) not in str(error.value)
    source, count = open_clip(tmp_path / "good.avi")
    assert count == 10 and source.read() is not None
    source.close()


@pytest.mark.parametrize(
    "wish", [{"mode": "nonsense"}, {"opacity": "much"}, {"classes": "fox"}, {"background": "#12"}], ids=str
)
def test_wishes_that_make_no_sense_are_refused(wish: dict[str, str]) -> None:
    with pytest.raises(UserError):
        read_view(wish)


def test_a_look_names_its_classes_and_may_recolour_them(tiny: Path) -> None:
    told = card(tiny)
    name = told.classes[1].name
    view, drawn = Look("blur", [name], colour="rgba(1, 2, 3, 1)", background="#0a0b0c").on(told)
    assert (view.mode, view.chosen, view.backdrop) == ("blur", {1}, (12, 11, 10))
    assert drawn.classes[1].color == (1, 2, 3) and drawn.classes[2] == told.classes[2]
    with pytest.raises(UserError, match=f"choose from {told.classes[0].name}"):
        Look(classes=["unicorn"]).on(told)


def test_the_benchmarks_report_becomes_plots() -> None:
    row = {"model": "fox", "variant": "int8", "threads": 2, "median_ms": 8.0, "fps": 125.0, "times_ms": [7.9, 8.0],
           "rss_mb": 90.0, "before_mb": 60.0}  # fmt: skip
    drawn = report_html({"rows": [row], "noise": {"noisy": True}, "device": "a board", "runtime": "litert"})
    assert drawn.count("<svg") == 2 and "8.0 ms · 125 FPS" in drawn and "busy" in drawn and "a board" in drawn


# The served page


def get(url: str, data: bytes | None = None, opener: Any = None) -> tuple[int, bytes, dict[str, Any]]:
    """Answer with status, body and what the header X-Result tells."""
    try:
        with (opener or urllib.request.build_opener()).open(urllib.request.Request(url, data), timeout=60) as answer:
            return answer.status, answer.read(), json.loads(answer.headers.get("X-Result") or "{}")
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {}


@pytest.fixture(scope="module")
def url(tiny: Path) -> Iterator[str]:
    with serving(Door(port=0), Engine([tiny, *names()], threads=1)) as address:
        yield address


def test_one_request_gives_the_drawn_frame_and_its_figures(url: str, tiny: Path) -> None:
    status, jpeg, told = get(url + "live/frame?visitor=ada&mode=mask", encoded(stripes()))
    assert status == 200
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    expected = Segmenter(tiny).segment(open_frame(encoded(stripes())))
    assert picture is not None and picture.shape == (120, 180, 3)
    colours = [info.color[::-1] for info in card(tiny).classes]
    for x in (30, 90, 150):
        want = colours[expected[60, x]] if expected[60, x] else (0, 0, 0)
        assert np.allclose(picture[60, x], want, atol=12)
        found = get(url + f"live/class?visitor=ada&x={x}&y=60")
        assert json.loads(found[1]) == expected[60, x]
    assert np.allclose(told["shares"], np.bincount(expected.ravel()) / expected.size, atol=0.01)
    assert told["visitors"] == 1 and told["memory_mb"] > 0 and told["model_ms"] > 0
    assert get(url + "live/leave?visitor=ada", b"")[0] == 204
    assert get(url + "live/frame?visitor=bob", encoded(stripes()))[2]["visitors"] == 1
    get(url + "live/leave?visitor=bob", b"")


@pytest.mark.parametrize(
    ("query", "body", "said"),
    [
        ("", b"hello", "not a JPEG"),
        ("?mode=nonsense", encoded(stripes()), "choose from overlay"),
        ("?model=..%2Fperson", encoded(stripes()), "choose from tiny"),
        ("", bytes(2_100_000), "smaller picture"),
    ],
)
def test_bad_frames_are_answered_in_a_sentence(url: str, query: str, body: bytes, said: str) -> None:
    status, answer, _ = get(url + "live/frame" + query, body)
    assert status == 400 and said in json.loads(answer)["error"]
    assert get(url + "live/leave", b"")[0] == 204


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd", f"gradio_api/file={ROOT / 'run_demo.py'}", f"gradio_api/file={ROOT}/LICENSE",
        "page/..%2F..%2Frun_demo.py", "page/server.py", "gradio_api/file=../../../../etc/passwd", "live.py",
        "static/../../../../etc/passwd", "assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    ],
)  # fmt: skip
def test_no_file_of_the_server_is_given_out(url: str, path: str) -> None:
    status, answer, _ = get(url + path)
    assert status in (403, 404) and b"root:" not in answer and b"import" not in answer
    assert get(url)[0] == 200


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return pytest.importorskip("gradio_client").Client(url, verbose=False)


def picture_file(tmp_path: Path) -> str:
    (tmp_path / "photo.png").write_bytes(encoded(stripes(), ".png"))
    return str(tmp_path / "photo.png")


def test_the_api_segments_a_picture(client: Any, tiny: Path, tmp_path: Path) -> None:
    from gradio_client import handle_file

    name = card(tiny).classes[2].name
    drawn, shares, files = client.predict(
        handle_file(picture_file(tmp_path)), mode="cutout", classes=[name], edges=False, api_name="/segment"
    )
    mask = read_back(next(file for file in files if file.endswith("mask.png")))
    assert np.array_equal(mask, Segmenter(tiny).segment(stripes()))
    told = {entry["label"]: entry["confidence"] for entry in shares["confidences"]}
    assert told[name] == pytest.approx(float((mask == 2).mean()), abs=1e-3)
    cut = read_back(next(file for file in files if file.endswith("cutout.png")))
    assert cut.shape == (120, 180, 4) and (cut[:, :, 3][mask == 2].mean() > 240) and (cut[:, :50, 3] == 0).all()
    assert cv2.imread(drawn) is not None


def read_back(path: str) -> Any:
    return cv2.imread(path, cv2.IMREAD_UNCHANGED)


def test_the_api_says_what_is_wrong_and_lives_on(client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    text = tmp_path / "letter.jpg"
    text.write_text("Dear server, ...")
    with pytest.raises(Exception, match="not a picture that can be read"):
        client.predict(handle_file(str(text)), api_name="/segment")
    with pytest.raises(Exception, match="choose from"):
        client.predict(handle_file(picture_file(tmp_path)), classes=["unicorn"], api_name="/segment")
    for colour in ("#12", "rgba(1e999, 0, 0, 1)"):
        with pytest.raises(Exception, match="is no colour: give one like #28a060"):
            client.predict(handle_file(picture_file(tmp_path)), colour=colour, api_name="/segment")
    client.predict(handle_file(picture_file(tmp_path)), api_name="/segment")


@pytest.mark.parametrize("endpoint", ["segment", "segment_clip", "segment_many"])
@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "LICENSE"), "../../../../etc/passwd"])
def test_no_file_of_the_server_is_segmented(url: str, endpoint: str, path: str) -> None:
    stolen = {"path": path, "orig_name": "photo.png", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [[stolen] if endpoint.endswith("many") else stolen, "tiny", "mask", [], 50, False, True, "", ""]}
    request = urllib.request.Request(
        url + f"gradio_api/call/{endpoint}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    stream = get(url + f"gradio_api/call/{endpoint}/{event}")[1]
    assert b"event: error" in stream and b"root:" not in stream and b"Apache" not in stream


def test_the_api_segments_several_pictures(client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    (tmp_path / "letter.jpg").write_text("Dear server, ...")
    brought = [handle_file(picture_file(tmp_path)), handle_file(str(tmp_path / "letter.jpg"))]
    gallery, archive = client.predict(brought, api_name="/segment_many")
    assert len(gallery) == 1
    with zipfile.ZipFile(archive) as found:
        assert sorted(found.namelist()) == ["000-photo-mask.png", "000-photo.jpg", "shares.csv"]
        assert "not a picture" in found.read("shares.csv").decode()


def test_the_api_segments_a_clip(client: Any, clip: Path) -> None:
    from gradio_client import handle_file

    video, table, words = client.predict(handle_file(str(clip)), api_name="/segment_clip")
    path = video["video"] if isinstance(video, dict) else video
    reader = cv2.VideoCapture(path)
    frames = [frame for read, frame in iter(reader.read, (False, None)) if read]
    reader.release()
    assert len(frames) == 12 and frames[0].shape == (120, 160, 3)
    assert Path(table).read_text().count("\n") == 13 and words.startswith("12 frames at")


def test_curl_can_call_the_api(url: str) -> None:
    picture = "data:image/png;base64," + base64.b64encode(encoded(stripes(), ".png")).decode()
    body = json.dumps({"picture": {"url": picture}, "mode": "mask"}).encode()
    request = urllib.request.Request(url + "gradio_api/call/v2/segment", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    status, stream, _ = get(url + f"gradio_api/call/segment/{event}")
    assert status == 200 and b"event: complete" in stream and b"confidences" in stream


def test_a_request_larger_than_any_upload_is_refused_unread(url: str) -> None:
    host, port = urllib.parse.urlsplit(url).netloc.split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=60)) as connection:
        connection.putrequest("POST", "/gradio_api/call/segment")
        connection.putheader("Content-Length", "900000000")
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413 and "bring smaller files" in json.load(answer)["error"]
    assert get(url)[0] == 200


def test_the_way_in_for_phones() -> None:
    assert "--https" in join("http://127.0.0.1:7860/")
    assert "<svg" in join("http://192.0.2.7:7860/") and "no camera" in join("http://192.0.2.7:7860/")
    assert "Android" in join("https://192.0.2.7:7860/")
    assert "Android" not in join("https://fox.gradio.live")  # the tunnel's certificate is vouched for


# Login, certificate, tunnel


def test_a_login_comes_before_any_picture_model_or_figure(tiny: Path) -> None:
    with serving(Door(port=0, login=("ada", "lovelace")), Engine([tiny])) as address:
        for path, body in (("live/frame", b"{}"), ("gradio_api/call/segment", b"{}"), ("config", None)):
            assert get(address + path, body)[0] == 401
        jar = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        login = urllib.parse.urlencode({"username": "ada", "password": "lovelace"}).encode()
        assert get(address + "login", login, jar)[0] == 200
        assert get(address + "live/frame", encoded(stripes()), jar)[0] == 200


def test_https_serves_with_a_certificate_for_this_machine(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serving(Door("127.0.0.1", 0, secure=True), Engine([tiny])) as address:
        assert address.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(https.certificate().cert))
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trusting))
        assert b"edge-live" in get(address + "config", opener=opener)[1]


def test_without_a_network_share_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> str:
        raise ValueError("no network")

    monkeypatch.setattr("gradio.networking.setup_tunnel", unreachable)
    with pytest.raises(UserError, match="No public link"), serving(Door(port=0, share=True), Engine([tiny])):
        pass


def test_a_taken_port_is_told_in_a_sentence(tiny: Path, url: str) -> None:
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match="choose another --port"), serving(Door(port=port), Engine([tiny])):
        pass


@pytest.mark.parametrize(
    ("words", "said"), [(["--auth", "ada"], "--auth ada:lovelace"), (["--port", "70000"], "no port 70000")]
)
def test_wrong_options_are_told_in_a_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo.main(["web", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# The machine's own camera


def test_the_screen_gives_the_newest_picture() -> None:
    screen = Screen()
    assert not screen.watched
    for level in (10, 200):
        screen.show(np.full((8, 8, 3), level, np.uint8))
    number, jpeg = asyncio.run(screen.newer(0, "ada")) or (0, b"")
    assert number == 2 and cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).mean() > 190
    screen.show(np.full((8, 8, 3), 200, np.uint8))
    again = asyncio.run(screen.newer(1, "bob"))
    assert again == (2, jpeg) and screen.watched  # the same picture is no newer one, and encoded once


def test_live_shows_the_machines_camera_to_every_viewer_and_ends_with_a_signal(tiny: Path) -> None:
    command = ["run_demo.py", "live", "--show", "web", "--port", "0", "--source", "synthetic", "--model", str(tiny)]
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
            first, second = (get(address + f"camera/frame?after=0&viewer={name}") for name in ("ada", "bob"))
            assert first[0] == second[0] == 200 and second[2]["viewers"] == 2
            later = get(address + f"camera/frame?after={second[2]['number']}&viewer=ada")
            assert later[2]["number"] > second[2]["number"] and later[1] != second[1]
            for key in ("q", "v", "p", "%20"):  # quitting, recording, saving and pausing are the owner's
                assert get(address + f"camera/press?key={key}", b"")[0] == 204
            assert get(address + "camera/press?key=i", b"")[0] == 204
            assert get(address + f"camera/frame?after={later[2]['number']}&viewer=ada")[0] == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_a_space_runs_as_it_is_exported(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "space"
    export(folder, [tiny])
    (folder / ".git").mkdir()
    export(folder, [tiny])  # again, over the first
    head = (folder / "README.md").read_text().split("---")[1]
    told = dict(line.split(": ", 1) for line in head.strip().splitlines())
    assert told["sdk"] == "gradio" and (folder / told["app_file"]).is_file() and (folder / ".git").is_dir()
    assert re.fullmatch(r"\d+\.\d+\.\d+", told["sdk_version"])
    assert all("==" in line for line in (folder / "requirements.txt").read_text().splitlines())
    command = [sys.executable, told["app_file"]]
    environment = {**os.environ, "GRADIO_SERVER_PORT": "0", "PYTHONPATH": ""}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
            port = urllib.parse.urlsplit(address).port
            assert get(f"http://127.0.0.1:{port}/live/frame", encoded(stripes()))[0] == 200
        finally:
            process.kill()


def test_an_export_leaves_a_folder_of_other_things_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="empty folder"):
        export(tmp_path, [tiny])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
