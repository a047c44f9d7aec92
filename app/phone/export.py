"""Write the site: our page as it is, LiteRT.js from npm, the models, and for each model a picture with its answer."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from app.https import cache
from models import Segmenter, UserError, resolve
from models.catalogue import sha256

HERE = Path(__file__).parent
LOCK = HERE / "package-lock.json"
SAMPLE = HERE.parents[1] / "assets" / "sample.mp4"
SAMPLE_FRAME = 20

# With and without relaxed SIMD; both single-threaded, so the site needs no special headers from its host.
BUILDS = ("litert_wasm_internal", "litert_wasm_compat_internal")

# What stays of an export when it is done again: the host's own files, like .git
MARK = "site.json"


def export(folder: Path, models: Sequence[str | Path]) -> int:
    """Write the site into a folder that is new, empty, or holds an earlier export; give its size in bytes.

    Args:
        folder: its hidden files (`.git`, ...) are left alone.
        models: names or paths of models; the page starts with the first.

    Raises:
        UserError: npm is missing or fails, there is no such model, or the folder holds something else.

    Everything is prepared beside the folder first, so a failure leaves it as it was.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a new folder to export to.")
    if not (folder / MARK).exists() and any(not path.name.startswith(".") for path in _entries(folder)):
        raise UserError(f"{folder} holds other files: give a new or empty folder to export to.")
    near = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=near) as scratch:
            site = Path(scratch) / "site"
            build(site, models)
            size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
            folder.mkdir(parents=True, exist_ok=True)
            for entry in _entries(site):
                _replace(entry, folder / entry.name)
    except OSError as error:
        raise UserError(f"Cannot write {folder} ({error.strerror}): give another folder.") from None
    return size


def build(site: Path, models: Sequence[str | Path]) -> None:
    """Lay out the whole site in a new folder."""
    if len({resolve(name).stem for name in models}) < len(models):
        raise UserError("Two of the models have the same name: offer each name once.")
    shutil.copytree(HERE / "site", site)
    version = _copy_litert(npm_packages(), site / "litert")
    (site / "models").mkdir()
    offered = [_copy_model(name, site / "models") for name in models]
    (site / MARK).write_text(json.dumps({"litert": version, "models": offered}, indent=1) + "\n")
    _list_files(site)


def npm_packages() -> Path:
    """Return the `node_modules` folder with LiteRT.js, fetched once by `npm ci` as package-lock.json pins it."""
    kept = cache("litertjs") / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    if not kept.is_dir():
        if not shutil.which("npm"):
            raise UserError("The page's runtime comes from npm: install Node.js (nodejs.org) and export again.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            shutil.copy(HERE / "package.json", scratch)
            shutil.copy(LOCK, scratch)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            ran = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            if ran.returncode:
                reason = next((line for line in ran.stderr.splitlines() if "error" in line.lower()), "no reason given")
                raise UserError(f"npm could not fetch LiteRT.js ({reason}): look at the network and export again.")
            os.replace(Path(scratch) / "node_modules", kept)
    return kept


def _copy_litert(packages: Path, target: Path) -> str:
    target.mkdir()
    core, helper = packages / "@litertjs" / "core", packages / "@litertjs" / "wasm-utils"
    # A bare package name means nothing to a browser's worker: it is the one thing a bundler would have changed.
    code = (core / "dist" / "index.js").read_text()
    (target / "litert.js").write_text(code.replace('from "@litertjs/wasm-utils"', 'from "./wasm-utils.js"'))
    shutil.copy(helper / "dist" / "index.js", target / "wasm-utils.js")
    for build in BUILDS:
        shutil.copy(core / "wasm" / f"{build}.js", target)
        # Packed here, 9.3 MB become 2.8 MB whatever the host does; mtime=0 gives the same bytes at each export.
        packed = gzip.compress((core / "wasm" / f"{build}.wasm").read_bytes(), 6, mtime=0)
        (target / f"{build}.wasm.gz").write_bytes(packed)
    package = json.loads((core / "package.json").read_text())
    notice = f"{package['name']} {package['version']}, Copyright Google LLC, {package['license']} licence.\n"
    (target / "NOTICE.txt").write_text(notice + "https://github.com/google-ai-edge/LiteRT\n")
    return str(package["version"])


def _copy_model(name: str | Path, target: Path) -> dict[str, Any]:
    """Copy a model and compute what the page must get for the stored picture; tell the page about both."""
    segmenter = Segmenter(name, threads=1)
    card = segmenter.card
    name = card.file.stem
    shutil.copy(card.file, target / f"{name}.tflite")
    pixels = segmenter.prepare(_sample())
    answer = segmenter.infer(pixels)
    (target / f"{name}.check").write_bytes(pixels.tobytes() + answer.tobytes())
    return {
        "name": name,
        "variant": "int8" if card.details.get("verify", {}).get("integer_only") else "file",
        "file": f"models/{name}.tflite",
        "bytes": card.file.stat().st_size,
        "sha256": sha256(card.file),
        "check": f"models/{name}.check",
        "input": [segmenter.height, segmenter.width],
        "output": list(answer.shape),
        "terms": card.details.get("terms", ""),
        "classes": [{"name": info.name, "color": info.color} for info in card.classes],
    }


def _sample() -> Any:
    clip = cv2.VideoCapture(str(SAMPLE))
    try:
        clip.set(cv2.CAP_PROP_POS_FRAMES, SAMPLE_FRAME)
        read, frame = clip.read()
    finally:
        clip.release()
    if not read:
        raise UserError(f"{SAMPLE} cannot be read: check it out again.")
    return frame


def _list_files(site: Path) -> None:
    """Tell the service worker every file and its hash: it keeps what it has, and fetches what changed."""
    worker = site / "service-worker.js"
    paths = sorted(path for path in site.rglob("*") if path.is_file() and path not in (worker, site / "README.md"))
    files = {path.relative_to(site).as_posix(): sha256(path)[:16] for path in paths}
    worker.write_text(worker.read_text().replace("const FILES = {};", f"const FILES = {json.dumps(files, indent=1)};"))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def _replace(new: Path, old: Path) -> None:
    if old.is_dir():
        shutil.rmtree(old)
    os.replace(new, old)
