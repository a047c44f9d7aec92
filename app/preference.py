"""The model and threads that `benchmark --best` found for this device: the defaults of the live demo."""

import json
import os
from pathlib import Path

from models import DEFAULT, UserError, resolve


def file() -> Path:
    """Return where the choice is kept: `edge-segmenter.json` in the user's configuration folder."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "edge-segmenter.json"


def preferred() -> tuple[str, int | None]:
    """Return model and threads to use when nobody names any; threads are None where the machine decides."""
    try:
        kept = json.loads(file().read_text())
        resolve(kept["model"])
        return str(kept["model"]), int(kept["threads"])
    except (OSError, ValueError, KeyError, TypeError, UserError):  # nothing kept, or a model that is gone
        return DEFAULT, None


def remember(model: str, threads: int) -> Path:
    """Keep model and threads as the defaults from now on; return the file that holds them."""
    path = file()
    beside = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"model": model, "threads": threads}) + "\n")
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): set XDG_CONFIG_HOME to a folder of yours.") from None
    return path
