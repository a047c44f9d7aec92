"""A Debian for another CPU in a folder: apt fetches it, dpkg-deb unpacks it, qemu runs its Python; no root needed.

Without binfmt, Docker or chroot: the Python in the folder is a script that starts qemu with the real one. Whatever
calls it - a virtual environment, pip, make, a subprocess - runs emulated and need not know.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from models import UserError

MIRROR = "http://deb.debian.org/debian"
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
QEMU = {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}
# The 7.2 of Bookworm itself crashes in LiteRT.
QEMU_RELEASE = "bookworm-backports"
TOOLS = ("apt-get", "dpkg", "dpkg-deb")

WRAPPER = """#!/bin/sh
exec {qemu} -cpu "${{EMULATED_CPU:-max}}" -L {root} -0 "$0" {real} "$@"
"""

APT = """
Dir "{folder}"; Dir::State "state"; Dir::State::status "{folder}/status"; Dir::Cache "cache"; Dir::Etc "etc";
Dir::Bin::methods "/usr/lib/apt/methods"; Acquire::Languages "none"; Acquire::Retries "3"; APT::Sandbox::User "";
APT::Architecture "{architecture}"; APT::Architectures "{architecture}"; APT::Install-Recommends "false";
"""


def python(cache: Path, release: str, architecture: str, packages: Iterable[str]) -> Path:
    """Unpack packages and all they depend on, once, and return the emulated Python.

    Args:
        cache: folder that keeps everything.
        release: "bookworm" or "trixie".
        architecture: a key of `QEMU`, as Debian spells it.
        packages: what is wanted besides Python and its venv.

    The environment variable EMULATED_CPU chooses the CPU: "cortex-a72", "cortex-a76", for 32 bits "cortex-a15".
    """
    root = cache / f"{release}-{architecture}"
    if not root.is_dir():
        qemu = _qemu(cache) / "usr/bin" / QEMU[architecture]
        partial = _unpack(root, _fetch(cache, release, architecture, ["python3", "python3-venv", *packages]))
        for library in partial.glob("usr/lib/*/*/lib*.so.3"):  # what update-alternatives would do for NumPy
            if library.parent.name in ("blas", "lapack"):
                (library.parents[1] / library.name).symlink_to(f"{library.parent.name}/{library.name}")
        link = partial / "usr/bin/python3"
        real = link.resolve().name  # python3.11
        link.resolve().rename(partial / "usr/bin" / f"{real}.real")
        wrapper = partial / "usr/bin" / real
        wrapper.write_text(WRAPPER.format(qemu=qemu, root=root, real=root / "usr/bin" / f"{real}.real"))
        wrapper.chmod(0o755)
        partial.rename(root)
    return root / "usr/bin/python3"


def _qemu(cache: Path) -> Path:
    folder = cache / "qemu"
    if not folder.is_dir():
        host = run(["dpkg", "--print-architecture"]).strip()
        _unpack(folder, _fetch(cache, QEMU_RELEASE, host, ["qemu-user"])).rename(folder)
    return folder


def _fetch(cache: Path, release: str, architecture: str, packages: list[str]) -> list[Path]:
    """Let apt choose and fetch packages for an empty machine; what is there already is not fetched again."""
    for tool in TOOLS:
        if shutil.which(tool) is None:
            raise UserError(f"{tool} is not here: run this on Debian, Ubuntu or Raspberry Pi OS.")
    if not KEYS.is_file():
        raise UserError(f"{KEYS} is missing: `apt install debian-archive-keyring`.")
    folder = cache / "apt" / f"{release}-{architecture}"
    for part in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "etc/sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {release} main\n")
    (folder / "apt.conf").write_text(APT.format(folder=folder, architecture=architecture))
    environ = {"APT_CONFIG": str(folder / "apt.conf")}
    print(f"Fetching {release} for {architecture} ...", flush=True)
    run(["apt-get", "update"], environ)
    run(["apt-get", "--yes", "--download-only", "install", *packages], environ)
    return sorted((folder / "cache/archives").glob("*.deb"))


def _unpack(target: Path, packages: list[Path]) -> Path:
    """Unpack into a folder beside the target, which the caller renames when it is whole."""
    for old in target.parent.glob(f"{target.name}.*"):  # what an interrupted run left
        shutil.rmtree(old)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    for package in tqdm(packages, desc=f"unpacking {target.name}", unit="package", leave=False, disable=None):
        run(["dpkg-deb", "-x", str(package), str(partial)])
    return partial


def run(command: list[str], environ: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """Run a command in a folder and return what it printed; a failure is a `UserError` with its last words."""
    environ = os.environ | (environ or {})
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"`{' '.join(command[:3])} ...` failed ({words}): mend that, then run this again.")
    return done.stdout
