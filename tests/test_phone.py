"""The phone page without a browser: what is exported, how it is served, and what stops an export."""

import gzip
import hashlib
import json
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import run_demo
from app import https
from app.phone import serve
from app.phone.export import HERE, LOCK, export
from models import Segmenter, UserError, names


@pytest.fixture(scope="module")
def site(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("npm"):
        pytest.skip("no page for a browser: npm is not installed (nodejs.org)")
    folder = tmp_path_factory.mktemp("phone") / "site"
    export(folder, [tiny, *names()])
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_model_comes_with_pythons_answer(site: Path) -> None:
    told = json.loads((site / "site.json").read_text())
    assert [model["name"] for model in told["models"]] == ["tiny", *names()]
    for model in told["models"]:
        segmenter = Segmenter(site / model["file"], threads=1) if model["name"] != "tiny" else None
        check = np.frombuffer((site / model["check"]).read_bytes(), np.uint8)
        (height, width), answer = model["input"], np.prod(model["output"])
        assert check.size == height * width * 3 + answer
        assert hashlib.sha256((site / model["file"]).read_bytes()).hexdigest() == model["sha256"]
        if segmenter:
            pixels = check[:-answer].reshape(1, height, width, 3)
            assert np.array_equal(segmenter.infer(pixels).ravel(), check[-answer:])


def test_the_service_worker_knows_each_file_by_its_hash(site: Path) -> None:
    listed = re.search(r"const FILES = (\{.*?\});", (site / "service-worker.js").read_text(), re.DOTALL)
    assert listed
    expected = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in files(site).items()}
    for unlisted in ("service-worker.js", "README.md"):
        del expected[unlisted]
    assert json.loads(listed[1]) == expected


def test_nothing_of_ours_names_another_host(site: Path) -> None:
    ours = {name for name in files(HERE / "site") if name.endswith((".js", ".html", ".css", ".webmanifest"))}
    for name in ours:
        addresses = re.findall(r"https?://[\w.-]*\w", (site / name).read_text())
        assert set(addresses) <= {"http://localhost"}, name  # in a sentence for the visitor


def test_a_first_visit_is_under_15_mb(site: Path) -> None:
    model = json.loads((site / "site.json").read_text())["models"][-1]
    other_build = "litert/litert_wasm_compat_internal"
    loaded = [
        name for name in files(site)
        if not name.startswith(("models/", other_build)) or name in (model["file"], model["check"])
    ]  # fmt: skip
    assert sum(len(gzip.compress((site / name).read_bytes())) for name in loaded) < 15e6


def test_a_second_export_replaces_the_first_and_leaves_hidden_files(site: Path, tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "space"
    shutil.copytree(site, target)
    (target / ".git").mkdir()
    (target / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (target / "index.html").write_text("old")
    export(target, [tiny])
    assert (target / ".git" / "HEAD").read_text() == "ref: refs/heads/main\n"
    assert (target / "index.html").read_bytes() == (HERE / "site" / "index.html").read_bytes()
    assert sorted(path.name for path in (target / "models").iterdir()) == ["tiny.check", "tiny.tflite"]
    assert not list(target.glob(".export*"))


def test_an_export_leaves_a_folder_of_other_things_alone(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert run_demo.main(["phone", "--export", str(tmp_path), "--model", str(tiny)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "empty folder" in error
    assert files(tmp_path) == {"thesis.tex": b"mine"}


def test_without_npm_one_sentence_says_so_and_nothing_is_written(
    tiny: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert run_demo.main(["phone", "--export", str(tmp_path / "site"), "--model", str(tiny)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "npm" in error and "Traceback" not in error
    assert not (tmp_path / "site").exists() and not list(tmp_path.glob(".export*"))


def test_npm_that_fails_is_told_in_a_sentence(
    tiny: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error code EINTEGRITY' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/bin:/usr/bin")
    with pytest.raises(UserError, match="EINTEGRITY"):
        export(tmp_path / "site", [tiny])
    assert not (tmp_path / "site").exists() and not files(own_cache)


def test_the_runtime_is_pinned_with_its_hash() -> None:
    packages = json.loads(LOCK.read_text())["packages"]
    wanted = packages.pop("")["dependencies"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", wanted["@litertjs/core"])
    assert packages["node_modules/@litertjs/core"]["version"] == wanted["@litertjs/core"]
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())


def test_two_models_of_one_name_are_refused(tiny: Path, site: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="same name"):
        export(tmp_path / "site", [tiny, tiny])
    assert not (tmp_path / "site").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "page.js").write_text("export {};\n")
    return tmp_path


@pytest.fixture(params=[False, True], ids=["http", "https"])
def address(request: pytest.FixtureRequest, folder: Path, own_cache: Path) -> Iterator[str]:
    if request.param:
        pytest.importorskip("cryptography")
    with serve(folder, "127.0.0.1", 0, secure=request.param) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield https.page("127.0.0.1", server.server_port, request.param)
        server.shutdown()
        thread.join()


def test_the_server_answers_with_the_right_types(address: str, own_cache: Path) -> None:
    trusting = None
    if address.startswith("https"):
        trusting = ssl.create_default_context(cafile=str(https.certificate().cert))
    with urllib.request.urlopen(address + "page.js", context=trusting, timeout=10) as answer:
        assert answer.read() == b"export {};\n"
        assert answer.headers["Content-Type"] == "text/javascript"
        assert answer.headers["Cache-Control"] == "no-cache"


def test_a_taken_port_is_told_in_a_sentence(folder: Path) -> None:
    with serve(folder, "127.0.0.1", 0) as server, pytest.raises(UserError, match="choose another --port"):
        serve(folder, "127.0.0.1", server.server_port)


def test_an_impossible_port_is_told_in_a_sentence(folder: Path) -> None:
    with pytest.raises(UserError, match="choose another --port"):
        serve(folder, "127.0.0.1", 70000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_the_site_until_it_is_interrupted(site: Path, tiny: Path, number: int) -> None:
    command = [sys.executable, "run_demo.py", "phone", "--port", "0", "--model", str(tiny)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
            with urllib.request.urlopen(url + "site.json", timeout=10) as answer:
                told = json.load(answer)
            assert told["models"] == json.loads((site / "site.json").read_text())["models"][:1]
            process.send_signal(number)
            assert "Stopped." in process.stderr.read()
            assert process.wait(10) == 0
        finally:
            process.kill()
