"""Measure the web page's live loop in a real browser on this machine: `python -m tests.web_speed [--seconds 15]`.

A fake camera plays the bundled clip at 640x480; Chromium and the server share the machine's cores. The page's own way
and Gradio's streaming (`gr.Image(streaming=True)`, every 0.02 s) are measured in turn, with the same model and drawing.
Latency is from the moment a frame is taken in the browser until its mask is on the canvas, or in the output's <img>.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

from app import device
from app.sources import SAMPLE
from app.web.engine import Engine
from app.web.live import Visitors, encode
from models import DEFAULT
from tests.browser import _browse, camera_file

ROOT = Path(__file__).parents[1]
GRADIO = """
import cv2, gradio as gr
from app.modes import View, compose
from app.web.engine import Shared
segmenter, view = Shared(), View()
def draw(picture):
    if picture is None:
        return None
    frame = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.cvtColor(compose(frame, segmenter.segment(frame), segmenter.card, view), cv2.COLOR_BGR2RGB)
with gr.Blocks(analytics_enabled=False) as blocks:
    size = {"width": {"ideal": 640}, "height": {"ideal": 480}}
    options = gr.WebcamOptions(mirror=False, constraints={"video": size})
    source = gr.Image(sources="webcam", streaming=True, webcam_options=options)
    result = gr.Image(streaming=True)
    source.stream(draw, source, result, stream_every=0.02)
_, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
print("The page:", address, flush=True)
blocks.block_thread()
"""
# Counts the frames sent. Gradio has one frame under way at a time, so the last request is what a new picture answers.
WATCH = """
window.sent = 0; window.frames = 0; window.took = [];
const real = window.fetch;
window.fetch = (url, ...rest) => {
    if (/stream[/]|queue[/]join|live[/]frame/.test(String(url.url ?? url))) {
        window.sent = performance.now();
        window.frames += 1;
    }
    return real(url, ...rest);
};
// The output's <img> gets another address for each picture, or is replaced.
new MutationObserver((changes) => {
    const pictures = changes.flatMap(({ target, addedNodes }) => [target, ...addedNodes]);
    for (const picture of pictures.filter((each) => each.tagName === "IMG" && /file=/.test(each.src))) {
        const { sent } = window;
        picture.decode().then(() => window.took.push([performance.now(), performance.now() - sent]), () => {});
    }
}).observe(document, { subtree: true, childList: true, attributeFilter: ["src"] });
"""


@contextmanager
def server(*words: str) -> Iterator[tuple[str, int]]:
    """Run a server in a process of its own; gives its address and its process id."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, **pipe) as process:  # type: ignore[call-overload]
        try:
            line = next(line for line in process.stdout if "The page:" in line)
            yield line.split("The page:")[1].split()[0], process.pid
        finally:
            process.kill()


def ours(page: Any, edges: bool) -> None:
    """Start the Live tab."""
    page.click("edge-live [data-id=start]", timeout=120_000)
    page.set_checked("edge-live [data-id=edges]", edges)


def gradios(page: Any) -> None:
    """Start Gradio's streaming."""
    page.get_by_text("Click to Access Webcam").click(timeout=120_000)
    page.locator("button[aria-label='capture photo']").first.click(timeout=60_000)


def figures(page: Any) -> dict[str, float]:
    """Read latencies where they are shown: from the Live tab's own figures, or from what Gradio's <img> took."""
    if page.query_selector("edge-live"):
        told = {"p50_ms": "median", "p95_ms": "slow", "model_ms": "model"}
        texts = {name: page.text_content(f"edge-live [data-id=figure-{figure}]") for name, figure in told.items()}
        return {name: float(text.split()[0]) for name, text in texts.items()}
    took = sorted(mark[1] for mark in page.evaluate("window.took"))
    return {"p50_ms": took[len(took) // 2], "p95_ms": took[int(0.95 * len(took))], "shown": len(took)}


def cpu_seconds(root: int) -> float:
    """Return the CPU seconds that a process and all that descend from it have used."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # one that has just ended
            words = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)], used[int(path.parent.name)] = int(words[1]), int(words[11]) + int(words[12])
    family = {root}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(used.get(process, 0) for process in family) / os.sysconf("SC_CLK_TCK")


def measure(url: str, process: int, context: Any, begin: Any, seconds: float) -> dict[str, float]:
    """Run the page for a while: frames a second, latencies, and the CPU time of each, which other work hardly moves."""
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(url)
    begin(page)
    page.wait_for_timeout(5000)
    page.evaluate("window.took = []")

    def marks() -> tuple[float, float, float, float]:
        return page.evaluate("window.frames"), time.perf_counter(), cpu_seconds(process), cpu_seconds(os.getpid())

    before = marks()
    page.wait_for_timeout(1000 * seconds)
    frames, took, served, everything = (now - then for now, then in zip(marks(), before, strict=True))
    told = figures(page)
    # Gradio's <img> may get the next picture before it has shown one
    return (
        {"fps": told.pop("shown", frames) / took}
        | told
        | {
            "server_cpu_ms": 1000 * served / frames,
            "browser_cpu_ms": 1000 * (everything - served) / frames,
        }
    )


def handler(edges: bool, frames: int = 50) -> float:
    """Return the CPU milliseconds that the server's own work on a frame takes: JPEG in, segmented, drawn, JPEG out."""
    engine = Engine([DEFAULT], threads=1)
    visitors, jpeg = Visitors(engine), encode(cv2.VideoCapture(str(SAMPLE)).read()[1])
    spent = []
    for _ in range(frames):
        start = time.process_time()
        asyncio.run(visitors.draw("", jpeg, {"smooth": "1", "edges": str(int(edges))}))
        spent.append(time.process_time() - start)
    engine.close()
    return 1000 * statistics.median(spent)


def main() -> None:
    """Measure and print."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement (default: %(default)s)")
    args = parser.parse_args()
    print(device.describe())
    print(f"the server's own work   cpu_ms {handler(False):.1f}   with sharp edges {handler(True):.1f}", flush=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        camera = camera_file(SAMPLE, Path(folder) / "camera.mjpeg", 60)
        for name, words, begin in (
            ("the page", ["run_demo.py", "web", "--port", "0"], lambda page: ours(page, edges=False)),
            ("the page, sharp edges", ["run_demo.py", "web", "--port", "0"], lambda page: ours(page, edges=True)),
            ("gr.Image streaming", ["-c", GRADIO], gradios),
        ):
            browser = _browse(driver.chromium, shutil.which("chromium") or "", camera)
            with server(*words) as (url, process), browser as context:
                found = measure(url, process, context, begin, args.seconds)
            print(f"{name:<24}" + "   ".join(f"{key} {value:.1f}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
