"""What keys and clicks do: each key is one small method, found through one table."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.modes import MODES, OPACITY_STEP, View
from app.outputs import MaskFolder, Output, Video, write_picture
from app.pipeline import Pipeline, Result, warm_up
from models import Frame, Segmenter, UserError, names
from models.runtime import cores

RECORDING_FPS = 25.0
NOTICE_SECONDS = 2.5


class Controls:
    """The state a user steers: `press(key)` and `click(x, y, result)` change view, pipeline and recording.

    Args:
        view, pipeline: what is steered.
        folder: where snapshots and recordings go.
        clock: seconds, for how long notices stand.

    Attributes:
        paused, quit: what the loop has to heed.
        recording: outputs that take every frame while the user records.
    """

    def __init__(
        self, view: View, pipeline: Pipeline, folder: Path = Path(), clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.view, self.pipeline = view, pipeline
        self.paused = self.quit = False
        self.recording: list[Output] = []
        self._folder, self._clock = folder, clock
        self._notice, self._until = "", 0.0
        self._last: tuple[Result, Frame] | None = None
        self._keys: dict[str, Callable[[], None]] = {
            "m": self._next_mode, "n": self._next_model, "t": self._next_threads,
            "+": lambda: self._fade(1), "=": lambda: self._fade(1), "-": lambda: self._fade(-1),
            "c": lambda: self._toggle(view, "contour", "contours"),
            "i": lambda: self._toggle(view, "figures", "figures"),
            "h": lambda: self._toggle(view, "help"), "?": lambda: self._toggle(view, "help"),
            "s": lambda: self._toggle(pipeline, "smooth", "smoothing"),
            "e": lambda: self._toggle(pipeline, "refine", "edges"),
            " ": self._pause, "p": self._snapshot, "v": self._record, "q": self._quit, "Esc": self._quit,
        }  # fmt: skip

    def press(self, key: str) -> None:
        """Do what a key means; a key without meaning does nothing, and what fails is said in a notice."""
        try:
            if key.isdecimal():
                self._choose(int(key))
            elif action := self._keys.get(key):
                action()
        except UserError as error:
            self.say(str(error))

    def click(self, x: int, y: int, result: Result) -> None:
        """Choose the class at this pixel of the shown picture; the background stands for all."""
        height, width = result.classes.shape
        if 0 <= y < height and x >= 0:
            self._choose(int(result.classes[y, x % width]))  # both halves of "side by side" are the same scene

    def remember(self, result: Result, picture: Frame) -> None:
        """Keep what a snapshot would save, and hand it to a recording that is under way."""
        self._last = (result, picture)
        for output in self.recording:
            output.write(result, picture)

    def say(self, notice: str) -> None:
        """Show a sentence for a few seconds."""
        self._notice, self._until = notice, self._clock() + NOTICE_SECONDS

    def notices(self) -> list[str]:
        """Return what is to be said on the picture now."""
        lasting = [self.pipeline.camera.problem, "paused" if self.paused else "", "recording" if self.recording else ""]
        return [text for text in [*lasting, self._notice if self._clock() < self._until else ""] if text]

    def close(self) -> None:
        """Finish a recording that is under way."""
        outputs, self.recording = self.recording, []
        for output in outputs:
            output.finish()

    def _next_mode(self) -> None:
        modes = list(MODES)
        self.view.mode = modes[(modes.index(self.view.mode) + 1) % len(modes)]
        self.say(f"{self.view.mode}: {MODES[self.view.mode][1]}")

    def _fade(self, direction: int) -> None:
        self.view.opacity = min(100, max(0, self.view.opacity + direction * OPACITY_STEP))
        self.say(f"opacity {self.view.opacity} %")

    def _toggle(self, owner: View | Pipeline, name: str, word: str = "") -> None:
        setattr(owner, name, not getattr(owner, name))
        if word:
            self.say(f"{word} {'on' if getattr(owner, name) else 'off'}")

    def _choose(self, label: int) -> None:
        classes = self.pipeline.segmenter.card.classes
        if label < len(classes):
            self.view.choose(label)
            self.say(", ".join(classes[chosen].name for chosen in sorted(self.view.chosen)) or "all classes")

    def _next_model(self) -> None:
        now = self.pipeline.segmenter.card
        others = [name for name in names() if name != now.name]
        if not others:
            raise UserError("There is no other model: put one into models/.")
        known = sorted([*others, now.name])
        self._switch(known[(known.index(now.name) + 1) % len(known)], self.pipeline.segmenter.threads)
        self.view.chosen = frozenset()

    def _next_threads(self) -> None:
        segmenter = self.pipeline.segmenter
        self._switch(segmenter.card.file, segmenter.threads % cores() + 1)

    def _switch(self, model: str | Path, threads: int) -> None:
        segmenter = Segmenter(model, threads)
        warm_up(segmenter)
        self.pipeline.segmenter = segmenter
        self.say(f"{segmenter.card.name}, {threads} thread{'s' * (threads > 1)}")

    def _pause(self) -> None:
        self.paused = not self.paused

    def _snapshot(self) -> None:
        if self._last is None:
            return
        result, picture = self._last
        name = self._name("snapshot")
        write_picture(self._folder / f"{name}.png", picture)
        write_picture(self._folder / f"{name}-mask.png", result.classes)
        self.say(f"saved {name}.png")

    def _record(self) -> None:
        if self.recording:
            film, masks = (output.path for output in self.recording)
            self.close()
            with suppress(OSError):  # not empty: there was a frame
                masks.rmdir()
            self.say(f"saved {film.name}" if film.exists() else "nothing to save: no frame came")
        else:
            name = self._name("recording")
            video = Video(self._folder / f"{name}.mp4", RECORDING_FPS)
            self.recording = [video, MaskFolder(self._folder / f"{name}-masks")]

    def _name(self, kind: str) -> str:
        base = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
        taken = {path.stem for path in self._folder.glob(f"{base}*")}
        return next(name for n in range(len(taken) + 1) if (name := f"{base}-{n}" if n else base) not in taken)

    def _quit(self) -> None:
        self.quit = True
