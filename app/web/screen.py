"""The machine's own camera on the page: the live session's window, for any number of browsers."""

import asyncio
import threading
import time
from collections import deque
from contextlib import suppress

import numpy as np
from fastapi import APIRouter, Response

from app.web.live import answer, encode
from models import Frame

# What viewers may press, out of the window's keys: nothing that writes files, stops the run or halts it for all.
KEYS = frozenset("0123456789mncsei+-")
WATCHED = 3.0  # seconds after its last request that a viewer counts
PATIENCE = 5.0  # seconds that a request waits for a newer picture


class Screen:
    """A `Surface` like `app.window.Window`: what the session shows goes to whoever asks for it, the newest only.

    Each picture is encoded at most once, when the first viewer asks, however many there are.
    """

    closed, hint = False, ""

    def __init__(self) -> None:
        self._picture: Frame | None = None
        self._number, self._encoded, self._jpeg = 0, 0, b""
        self._keys: deque[str] = deque(maxlen=8)
        self._clicks: deque[tuple[int, int]] = deque(maxlen=8)
        self._viewers: dict[str, float] = {}
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._lock = threading.Lock()  # of `_waiting`, which viewers and the session both change

    @property
    def watched(self) -> bool:
        """Whether anyone has asked for a picture lately."""
        return any(time.monotonic() - seen < WATCHED for seen in list(self._viewers.values()))

    def show(self, picture: Frame) -> None:
        """Take the newest HxWx3 uint8 BGR picture, from the session's thread."""
        if self._picture is not None and np.array_equal(picture, self._picture):
            return  # a still, or a paused camera: nobody needs it again
        self._picture = picture
        self._number += 1
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)

    def events(self) -> tuple[str, list[tuple[int, int]]]:
        """Return a key that a viewer pressed ("" for none) and the clicks, x and y in the picture."""
        clicks = [self._clicks.popleft() for _ in range(len(self._clicks))]
        return self._keys.popleft() if self._keys else "", clicks

    def close(self) -> None:
        """Let the picture go."""
        self.closed, self._picture = True, None

    async def newer(self, after: int, viewer: str) -> tuple[int, bytes] | None:
        """Wait for a picture with a number above `after`; None if none comes for a while."""
        self._viewers = {name: seen for name, seen in self._viewers.items() if time.monotonic() - seen < WATCHED}
        self._viewers[viewer] = time.monotonic() + PATIENCE
        if self._number <= after:
            await self._turn()
        self._viewers[viewer] = time.monotonic()
        number, picture = self._number, self._picture
        if picture is None or number <= after:
            return None
        if self._encoded != number:
            self._jpeg, self._encoded = encode(picture), number
        return number, self._jpeg

    async def _turn(self) -> None:
        turn = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._waiting.append(turn)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(turn[1].wait(), PATIENCE)
        finally:  # a viewer may also have gone
            with self._lock:
                self._waiting = [other for other in self._waiting if other is not turn]

    def add_routes(self, router: APIRouter) -> None:
        """Add the addresses below /camera to the page's own."""

        @router.get("/camera/frame")
        async def frame(after: int = 0, viewer: str = "") -> Response:
            found = await self.newer(after, viewer[:64])
            if found is None:
                return Response(status_code=204)
            return answer(found[1], {"number": found[0], "viewers": len(self._viewers)})

        @router.post("/camera/press", status_code=204)
        async def press(key: str) -> None:
            if key in KEYS and len(key) == 1:
                self._keys.append(key)

        @router.post("/camera/click", status_code=204)
        async def click(x: int, y: int) -> None:
            self._clicks.append((x, y))
