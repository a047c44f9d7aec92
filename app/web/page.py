"""The page itself: what a visitor sees, in Gradio, and what its API offers under the same names."""

import functools
import itertools
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from app.modes import MODES
from app.outputs import VIDEOS
from app.sources import SAMPLE, open_source
from app.web.engine import Engine
from app.web.pictures import CLIP_SECONDS, open_data_url, open_picture
from app.web.tasks import Look, Tasks
from models import Card, Frame, UserError

TITLE = "Edge Segmenter"
WORDS = {"overlay": "Colours", "blur": "Blur rest", "hide": "Blur it", "replace": "Replace", "cutout": "Isolate",
         "side": "Both", "mask": "Mask"}  # fmt: skip
CAMERA_KEYS = {"m": "Next mode", "n": "Next model", "c": "Outlines", "s": "Steady", "e": "Sharp edges", "i": "Figures",
               "-": "Fainter", "+": "Stronger", "0": "All classes"}  # fmt: skip
# Gradio checks that an upload is one of this server's, and hands it on as it is: it would decode or convert it unseen.
RAW: dict[str, Any] = {"preprocess": False}
Upload = dict[str, Any]  # Gradio's `FileData`: path, url, orig_name ...
EXAMPLES = (10, 48, 120)  # frames of the bundled clip


def _open_picture(brought: Upload) -> Frame:
    """Open an upload, or a picture sent as a `data:` address."""
    url = str(brought.get("url") or "")
    return open_data_url(url) if url.startswith("data:") else open_picture(Path(brought["path"]))


class _told:
    """Show a `UserError` on the page and to callers of the API as it is; a bug stays a bug."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UserError):
            raise gr.Error(str(error), duration=12, print_exception=False) from None


class Page:
    """Builds the page: `Page(engine, folder, ...).build()` gives the `gr.Blocks` to launch.

    Args:
        engine: the models on offer.
        folder: for files that are handed out, and for the examples.
        camera: whether the live session's own camera is shown.
    """

    def __init__(self, engine: Engine, folder: Path, camera: bool = False) -> None:
        self._engine, self._camera = engine, camera
        self._first = next(iter(engine.cards.values()))
        for name in ("made", "examples"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._tasks, self._examples = Tasks(engine, folder / "made"), folder / "examples"

    def build(self) -> gr.Blocks:
        """Lay the page out and wire it."""
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            with gr.Row(elem_id="top"):
                _html(MASTHEAD, min_width=280)
                offered = list(self._engine.cards)
                self._model = gr.Dropdown(offered, value=offered[0], label="Model", min_width=200, elem_id="model")
            with gr.Accordion("About this model", open=False):
                card = _html(card_html(self._first))
            with gr.Tabs():
                if self._camera:
                    with gr.Tab("Watch", id="camera"):
                        _html(f"<edge-camera data-keys='{escape(json.dumps(CAMERA_KEYS))}'></edge-camera>")
                with gr.Tab("Live", id="live"):
                    _html(f"<edge-live data-setup='{escape(json.dumps(self._setup()))}'></edge-live>")
                with gr.Tab("Picture", id="picture"):
                    self._picture_tab()
                with gr.Tab("Video", id="video"):
                    self._video_tab()
                with gr.Tab("Benchmark", id="benchmark"):
                    self._benchmark_tab()
                with gr.Tab("Phone", id="phone"):
                    _html("<edge-join></edge-join>")
                with gr.Tab("API", id="api"):
                    calls = gr.Markdown()
            told = functools.partial(gr.on, [self._model.change], queue=False, api_visibility="private")
            told(lambda name: card_html(self._engine.cards[name]), self._model, card, show_progress="hidden")
            told(None, self._model, js="(name) => { window.edgeModel = name; }")
            # Behind a tunnel only the browser knows the address by which the page is reached.
            here = f"() => {json.dumps(API)}.replaceAll('ADDRESS', location.origin + location.pathname)"
            blocks.load(None, None, calls, js=here, queue=False, api_visibility="private")
        return blocks

    def _picture_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                brought = gr.Image(label="Picture", sources=["upload", "clipboard"], elem_id="picture-in", height=330)
                gr.Examples(self._stills(), brought, label="Examples")
            with gr.Column(scale=1, min_width=300):
                drawn = gr.Image(
                    label="Click a class to choose it", interactive=False, format="jpeg", elem_id="picture-out",
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
                look = self._look()
                shares = gr.Label(label="Shares of the picture", num_top_classes=6, show_heading=False)
                files = gr.File(label="To take home", file_count="multiple", height=130, elem_classes="slim")
        mask = gr.State(None)  # the class ids as PNG, for clicks
        inputs, outputs = [brought, self._model, *look], [drawn, shares, files, mask]
        settings = {**RAW, "trigger_mode": "always_last", "show_progress": "minimal", "show_progress_on": drawn}
        changes = [brought.change, *(each.change for each in look)]
        gr.on(changes, self._segment, inputs, outputs, api_name="segment", concurrency_limit=4, **settings)
        self._renew(look[1]).then(self._segment, inputs, outputs, api_visibility="private", **settings)
        drawn.select(
            self._click, [mask, self._model, look[1]], look[1], show_progress="hidden", api_visibility="private"
        )
        with gr.Accordion("Several pictures at once", open=False):
            several = gr.File(label="Pictures", file_count="multiple", file_types=["image"], height=140)
            go = gr.Button("Segment them all", variant="primary")
            gallery = gr.Gallery(label="Segmented", columns=3, object_fit="contain", format="jpeg", interactive=False)
            archive = gr.File(label="Pictures, masks and shares as ZIP")
            go.click(
                self._segment_many, [several, self._model, *look], [gallery, archive], api_name="segment_many",
                concurrency_limit=2, **RAW,
            )  # fmt: skip

    def _video_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                brought = gr.Video(label=f"Clip, at most {CLIP_SECONDS} s", sources=["upload"], height=330)
                gr.Examples([[str(self._sample())]], brought, label="Examples")
                look = self._look()
            with gr.Column(scale=1, min_width=300):
                with gr.Row():
                    go = gr.Button("Segment the clip", variant="primary")
                    stop = gr.Button("Stop")
                drawn = gr.Video(label="Segmented", interactive=False, autoplay=True, elem_id="video-out", height=400)
                words = gr.Markdown(elem_id="video-words")
                table = gr.File(label="Shares of each frame as CSV", height=110, elem_classes="slim")
        inputs, outputs = [brought, self._model, *look], [drawn, table, words]
        run = go.click(
            self._segment_clip,
            inputs,
            outputs,
            api_name="segment_clip",
            concurrency_limit=1,
            show_progress_on=drawn,
            **RAW,
        )
        stop.click(None, cancels=[run])
        self._renew(look[1])

    def _benchmark_tab(self) -> None:
        gr.Markdown(
            "How fast the chosen model is **on the machine that serves this page**, in processes of its own: the "
            "network alone, on one thread and on more. It takes about 20 seconds; stop your camera before."
        )
        go = gr.Button("Measure", variant="primary")
        result = _html(elem_id="benchmark-out")
        go.click(self._benchmark, self._model, result, api_name="benchmark", concurrency_limit=1)

    def _look(self) -> list[Any]:
        """Lay out the controls of a picture's look; their order is that of `Look`'s fields."""
        modes = [(WORDS.get(mode, mode), mode) for mode in MODES]
        mode = gr.Radio(modes, value="overlay", label="Show")
        classes = gr.Dropdown(
            self._names(self._first.name), value=[], multiselect=True, allow_custom_value=True, label="Classes",
            info="None: all but the background",
        )  # fmt: skip
        with gr.Accordion("More", open=False):
            opacity = gr.Slider(0, 100, 50, step=5, label="Opacity of the colours")
            with gr.Row():
                contour = gr.Checkbox(False, label="Outlines", min_width=120)
                edges = gr.Checkbox(True, label="Sharp edges", min_width=120)
            with gr.Row():
                background = gr.ColorPicker("#28a060", label="Replaced background", min_width=140)
                colour = gr.ColorPicker("", label="Colour of the chosen classes", min_width=140)
        return [mode, classes, opacity, contour, edges, background, colour]

    def _renew(self, classes: gr.Dropdown) -> Any:
        """Offer the classes of the model that is chosen from now on."""
        return self._model.change(
            lambda name: gr.Dropdown(choices=self._names(name), value=[]), self._model, classes,
            queue=False, show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    def _segment(
        self, picture: Upload | None, model: str, mode: str, classes: list[str], opacity: float, contour: bool,
        edges: bool, background: str, colour: str,
    ) -> Any:  # fmt: skip
        """Segment a picture: the drawn picture, each class's share, and files (picture and PNG mask of class ids)."""
        if picture is None:
            return None, None, None, None
        with _told():
            look, frame = Look(mode, classes, opacity, contour, edges, background, colour), _open_picture(picture)
            done = self._tasks.picture(frame, model, look)
            files = self._tasks.files(frame, done, look, model)
        mask = cv2.imencode(".png", done.classes)[1].tobytes()
        return done.drawn[..., ::-1], done.shares, files, mask

    def _click(self, mask: bytes | None, model: str, chosen: list[str], event: gr.SelectData) -> list[str]:
        """Add the class under the pointer to those chosen, or take it away; the background stands for all."""
        if mask is None:
            return chosen
        classes = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_UNCHANGED)
        assert classes is not None
        x, y = (round(value) for value in event.index)
        label = int(classes[min(y, classes.shape[0] - 1), x % classes.shape[1]])
        name = self._engine.cards[model].classes[label].name
        return [] if label == 0 else [*(set(chosen) ^ {name})]

    def _segment_many(
        self, pictures: list[Upload] | None, model: str, mode: str, classes: list[str], opacity: float, contour: bool,
        edges: bool, background: str, colour: str, progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:  # fmt: skip
        """Segment several pictures: a gallery, and a ZIP of pictures, masks and a table of shares."""
        with _told():
            if not pictures:
                raise UserError("Bring some pictures first.")
            look = Look(mode, classes, opacity, contour, edges, background, colour)
            frames = [(Path(each["path"]).name, functools.partial(_open_picture, each)) for each in pictures]
            return self._tasks.pictures(frames, model, look, lambda part, text: progress(part, desc=text))

    def _segment_clip(
        self, clip: Upload | None, model: str, mode: str, classes: list[str], opacity: float, contour: bool,
        edges: bool, background: str, colour: str, progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Any]:  # fmt: skip
        """Segment a clip: the drawn video (WebM), a CSV of shares frame by frame, and a sentence on its speed."""
        with _told():
            if clip is None:
                raise UserError("Bring a clip, or take the example.")
            look = Look(mode, classes, opacity, contour, edges, background, colour)
            for video, table, words in self._tasks.clip(
                Path(clip["path"]), model, look, lambda part, text: progress(part, desc=text)
            ):
                yield video or None, table or None, words

    def _benchmark(self, model: str, progress: gr.Progress = gr.Progress(track_tqdm=True)) -> str:  # noqa: B008
        """Measure a model's latency and memory on the server; a table and plots as HTML."""
        with _told():
            return self._tasks.benchmark(model)

    def _names(self, model: str) -> list[str]:
        return [info.name for info in self._engine.cards[model].classes]

    def _setup(self) -> dict[str, Any]:
        models = {
            name: [{"name": info.name, "color": f"rgb{info.color}"} for info in card.classes]
            for name, card in self._engine.cards.items()
        }
        return {"modes": {mode: WORDS.get(mode, mode) for mode in MODES}, "models": models}

    def _stills(self) -> list[list[str]]:
        """Take the example pictures from the bundled clip."""
        stills = []
        for number, frame in enumerate(_frames(SAMPLE)):
            if number in EXAMPLES:
                cv2.imwrite(str(still := self._examples / f"example-{number}.jpg"), frame)
                stills.append([str(still)])
        return stills

    def _sample(self) -> Path:
        """Make the example clip: the bundled one in a form that browsers play, small."""
        path, size = self._examples / "example.webm", (320, 240)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*VIDEOS[path.suffix]), 25 / 3, size)
        for frame in itertools.islice(_frames(SAMPLE), 0, 75, 3):
            writer.write(cv2.resize(frame, size, interpolation=cv2.INTER_AREA))
        writer.release()
        return path


def _html(value: str = "", **settings: Any) -> gr.HTML:
    """Put HTML on the page that is styled by our own sheet only."""
    return gr.HTML(value, apply_default_css=False, padding=False, js_on_load=None, **settings)


def _frames(clip: Path) -> Iterator[Frame]:
    source = open_source(clip)
    while (frame := source.read()) is not None:
        yield frame
    source.close()


def card_html(card: Card) -> str:
    """Word a model's card: size, score, speed, classes, terms."""
    details, scores = card.details, card.details.get("scores", {})
    size = details.get("input", {})
    rows = [row for row in details.get("speed", {}).get("rows", []) if row["variant"] == "int8"]
    facts = {
        "Input": f"{size['width']}×{size['height']}" if size else "",
        "File": f"{card.file.stat().st_size / 1e6:.1f} MB",
        "mIoU": f"{100 * scores['miou']:.1f} %" if scores else "",
        "Integer only": {True: "yes, proven", False: "no"}.get(details.get("verify", {}).get("integer_only"), ""),
        **{f"{row['threads']} thread{'s' * (row['threads'] > 1)}": f"{row['median_ms']:.1f} ms" for row in rows},
    }
    told = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items() if value)
    chips = "".join(
        f"<span><i style='--swatch:{f'rgb{info.color}' if label else '#8884'}'></i>{escape(info.name)}</span>"
        for label, info in enumerate(card.classes)
    )
    where = details.get("speed", {}).get("device", "")
    notes = [details.get("data", ""), details.get("terms", ""), f"Times measured on {where}." if where else ""]
    note = " ".join(escape(text) for text in notes if text)
    return f"<div class='card'><dl>{told}</dl><div class='chips'>{chips}</div><div class='note'>{note}</div></div>"


MASTHEAD = (
    f"<div class='masthead'><img src='page/icon.svg' alt=''><div><h1>{TITLE}</h1>"
    "<p>An integer-only vision transformer names every pixel.</p></div></div>"
)
API = """
What the buttons do can be called from programs too; **Use via API** at the foot of the page lists every parameter.

```python
from gradio_client import Client, handle_file

client = Client("ADDRESS")
picture, shares, files = client.predict(handle_file("photo.jpg"), mode="cutout", api_name="/segment")
```

One request without any library: a JPEG of at most 1280 pixels a side in, the drawn JPEG out, figures in the
header `X-Result`.

```sh
curl --data-binary @photo.jpg "ADDRESSlive/frame?mode=blur&edges=1" -o out.jpg
```
"""


def theme() -> gr.themes.Base:
    """Return the page's colours and type; only fonts that the visitor's device has."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "monospace"]
    base = gr.themes.Base(
        primary_hue=gr.themes.colors.orange, neutral_hue=gr.themes.colors.stone, radius_size=gr.themes.sizes.radius_lg,
        font=system, font_mono=mono,
    )  # fmt: skip
    return base.set(
        body_background_fill="#f7f5f2", body_background_fill_dark="#111317",
        block_background_fill="#fff", block_background_fill_dark="#1a1d23",
        input_background_fill="#fff", input_background_fill_dark="#22262e",
        input_border_width="1px", input_border_color="#e3dfd9", input_border_color_dark="#363b46",
        block_border_color="#e3dfd9", block_border_color_dark="#2b2f38",
        button_primary_background_fill="#c23a20", button_primary_background_fill_dark="#ff7a59",
        button_primary_background_fill_hover="#a93019", button_primary_background_fill_hover_dark="#ff8e72",
        button_primary_text_color="#fff", button_primary_text_color_dark="#1b0d08",
        slider_color="#c23a20", slider_color_dark="#ff7a59", color_accent="#c23a20",
    )  # fmt: skip
