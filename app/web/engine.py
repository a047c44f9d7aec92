"""One network for everybody: of each visitor only the newest work waits, and they take turns."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from numpy.typing import NDArray

from models import ClassMap, Segmenter, UserError, card, resolve
from models.catalogue import Card

T = TypeVar("T")

WORKERS = 2  # while one runs the network, the other decodes the next picture or encodes the last


class Overtaken(Exception):
    """Newer work of the same visitor came before this one's turn."""


class Shared(Segmenter):
    """A `Segmenter` for several threads: all models of this process take turns on the same cores."""

    _turn = threading.Lock()

    def infer(self, pixels: NDArray) -> ClassMap:  # type: ignore[type-arg]
        """Run the network, see `Segmenter.infer`; waits while another thread runs one."""
        with Shared._turn:
            return super().infer(pixels)


class Engine:
    """Models on offer, and the workers who use them: `engine.submit(visitor, work).result()`.

    Args:
        models: names or paths; the first is the default.
        threads: CPU threads of each network.

    Attributes:
        cards: what is on offer, by name.

    Nothing piles up: work waits for at most one turn of each other visitor, and newer work of the same visitor takes
    the place of what still waits, which ends with `Overtaken`.
    """

    def __init__(self, models: Sequence[str | Path], threads: int | None = None) -> None:
        self.cards: dict[str, Card] = {}
        for name in models:
            told = card(resolve(name))
            if told.name in self.cards:
                raise UserError(f"Two models are called {told.name}: offer each name once.")
            self.cards[told.name] = told
        self._threads = threads
        self._opened: dict[str, Shared] = {}
        self._opening = threading.Lock()
        self._waiting: dict[str, tuple[Callable[[], object], Future[object]]] = {}  # in the order of their turns
        self._changed = threading.Condition()
        self._closed = False
        self._workers = [threading.Thread(target=self._work, name="web", daemon=True) for _ in range(WORKERS)]
        for worker in self._workers:
            worker.start()

    def segmenter(self, name: str = "") -> Shared:
        """Return a model on offer, opened when first asked for; "" stands for the default.

        Raises:
            UserError: it is not on offer. A path of the server is never looked at.
        """
        name = name or next(iter(self.cards))
        if name not in self.cards:
            raise UserError(f"There is no model '{name[:80]}': choose from {', '.join(self.cards)}.")
        with self._opening:
            if name not in self._opened:
                self._opened[name] = Shared(self.cards[name].file, self._threads)
            return self._opened[name]

    def submit(self, visitor: str, work: Callable[[], T]) -> "Future[T]":
        """Have a worker do the work when it is the visitor's turn; give what it returns or raises."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                future.set_exception(Overtaken())
                return future
            waiting = self._waiting.get(visitor)
            self._waiting[visitor] = (work, future)  # type: ignore[assignment]  # in the older one's place in the row
            self._changed.notify()
        if waiting:
            waiting[1].set_exception(Overtaken())
        return future

    def close(self) -> None:
        """End the workers; what still waits ends with `Overtaken`."""
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, {}
            self._changed.notify_all()
        for _, future in left.values():
            future.set_exception(Overtaken())
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                work, future = self._waiting.pop(next(iter(self._waiting)))
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:  # whoever asked shall see it
                    future.set_exception(error)
            del work, future  # a worker that waits keeps nobody's picture
