"""The visitors' cameras: a JPEG in, the drawn JPEG out, one HTTP request a frame.

Plain requests, since a page may have at most two of them under way: there is no stream that could fill up, every proxy
and tunnel carries them, and a visitor is gone when the requests are. The answer's `X-Result` header holds the figures.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from fastapi import APIRouter, Request, Response

from app import device
from app.modes import MODES, View, compose, read_colour
from app.refine import Smoother, follow_edges
from app.web.engine import Engine, Overtaken
from app.web.pictures import FRAME_BYTES, open_frame, open_picture
from models import ClassMap, Frame, UserError

MAX_VISITORS = 16
SILENCE = 10.0  # seconds after which a visitor without requests is forgotten
QUALITY = 80  # of the JPEGs sent
MEMORY_REFRESH = 1.0  # seconds


@dataclass
class Visitor:
    """What is kept of one visitor between frames; nothing else is."""

    seen: float
    smoother: Smoother = field(default_factory=Smoother)
    classes: ClassMap | None = None  # of the newest frame, for clicks
    backdrop: Frame | None = None


class Visitors:
    """Those whose cameras are open: `draw` their frames, `leave` when they go."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._present = engine, dict[str, Visitor]()
        self._memory: dict[str, float | None] = {}
        self._measured = -MEMORY_REFRESH

    def enter(self, name: str) -> Visitor:
        """Find a visitor, or make room for a new one; those long silent are forgotten first."""
        now = time.monotonic()
        for other in [key for key, visitor in self._present.items() if visitor.seen < now - SILENCE]:
            self.leave(other)
        if name not in self._present:
            if len(self._present) >= MAX_VISITORS:
                raise UserError(f"{MAX_VISITORS} cameras are open already: try again when one has closed.")
            self._present[name] = Visitor(now)
        self._present[name].seen = now
        return self._present[name]

    def leave(self, name: str) -> None:
        """Forget a visitor and all that was kept; safe to call for one who never came."""
        self._present.pop(name, None)

    async def draw(self, name: str, jpeg: bytes, wish: Mapping[str, str]) -> tuple[bytes, dict[str, object]]:
        """Segment and draw one frame when it is the visitor's turn; give the JPEG and the figures."""
        visitor, arrived = self.enter(name), time.perf_counter()
        work = self._engine.submit(name, lambda: self._draw(visitor, jpeg, wish))
        drawn, told = await asyncio.wrap_future(work)
        told |= {"server_ms": round(1e3 * (time.perf_counter() - arrived), 2), "visitors": len(self._present)}
        return drawn, told | {"memory_mb": self._measure()["rss"]}

    def _draw(self, visitor: Visitor, jpeg: bytes, wish: Mapping[str, str]) -> tuple[bytes, dict[str, object]]:
        segmenter, frame = self._engine.segmenter(wish.get("model", "")), open_frame(jpeg)
        view = read_view(wish, visitor.backdrop)
        pixels = segmenter.prepare(frame)
        started = time.perf_counter()
        classes = segmenter.infer(pixels)
        model_ms = 1e3 * (time.perf_counter() - started)
        if wish.get("smooth") == "1":
            classes = visitor.smoother(pixels[0], classes, segmenter)
        shares = np.bincount(classes.ravel(), minlength=len(segmenter.card.classes)) / classes.size
        edges = wish.get("edges") == "1"
        visitor.classes = follow_edges(frame, classes) if edges else segmenter.restore(classes, *frame.shape[:2])
        picture = compose(frame, visitor.classes, segmenter.card, view)
        told = {"model_ms": round(model_ms, 2), "shares": [round(share, 4) for share in shares.tolist()]}
        return encode(picture), told

    def _measure(self) -> dict[str, float | None]:
        now = time.monotonic()
        if now - self._measured >= MEMORY_REFRESH:
            self._memory, self._measured = device.memory(), now
        return self._memory


def read_view(wish: Mapping[str, str], backdrop: Frame | None = None) -> View:
    """Turn a request's words into what is to be drawn.

    Args:
        wish: `mode` (of `modes.MODES`), `opacity` (0..100), `contour` ("1"), `classes` (ids, "1,4"), `background`
            ("#rrggbb"); what is missing has the live demo's default.
        backdrop: HxWx3 uint8 BGR picture for mode "replace", instead of the colour.

    Raises:
        UserError: one of them makes no sense.
    """
    view = View()
    view.mode = wish.get("mode", view.mode)
    if view.mode not in MODES:
        raise UserError(f"There is no mode '{view.mode[:20]}': choose from {', '.join(MODES)}.")
    try:
        view.opacity = min(100, max(0, int(wish.get("opacity", view.opacity))))
        view.chosen = frozenset(int(word) % 256 for word in wish.get("classes", "").split(",") if word)
    except ValueError:
        raise UserError("opacity is a whole number from 0 to 100, classes are ids like 1,4.") from None
    if colour := wish.get("background", ""):
        view.backdrop = read_colour(colour)
    view.contour = wish.get("contour") == "1"
    if backdrop is not None:
        view.backdrop = backdrop
    return view


def encode(picture: Frame) -> bytes:
    """Encode an HxWx3 uint8 BGR picture as the JPEG that is sent."""
    return cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()


def answer(jpeg: bytes, told: Mapping[str, object]) -> Response:
    """Wrap a picture and its figures; nobody keeps it, and no other site may show it."""
    headers = {"Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"}
    return Response(jpeg, media_type="image/jpeg", headers=headers | {"X-Result": json.dumps(told)})


async def body_of(request: Request, limit: int = FRAME_BYTES) -> bytes:
    """Read a request's body; one that is larger than `limit` bytes is not read to its end."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise UserError(f"More than {limit / 1e6:g} MB: send a smaller picture.")
    return bytes(content)


def add_routes(router: APIRouter, engine: Engine) -> None:
    """Add the addresses below /live to the page's own."""
    visitors = Visitors(engine)

    @router.post("/live/frame")
    async def frame(request: Request, visitor: str = "") -> Response:
        try:
            jpeg = await body_of(request)
            return answer(*await visitors.draw(_named(visitor, request), jpeg, request.query_params))
        except Overtaken:
            return Response(status_code=204)

    @router.post("/live/backdrop", status_code=204)
    async def backdrop(request: Request, visitor: str = "") -> None:
        content = await body_of(request)
        found = visitors.enter(_named(visitor, request))
        found.backdrop = await asyncio.to_thread(open_picture, content, 1280) if content else None

    @router.get("/live/class")
    async def class_at(request: Request, x: int, y: int, visitor: str = "") -> int:
        classes = visitors.enter(_named(visitor, request)).classes
        if classes is None or not (0 <= y < classes.shape[0] and x >= 0):
            return 0
        return int(classes[y, x % classes.shape[1]])  # both halves of "side" are the same scene

    @router.post("/live/leave", status_code=204)
    async def leave(request: Request, visitor: str = "") -> None:
        visitors.leave(_named(visitor, request))


def _named(visitor: str, request: Request) -> str:
    """Tell visitors apart: by the name their page chose, or by their address."""
    return visitor[:64] or (request.client.host if request.client else "")
