"""Certificates for this machine's addresses, and QR codes that a camera reads."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from app import https
from models import UserError

x509 = pytest.importorskip("cryptography.x509", reason="the cryptography package is not installed")
pytest.importorskip("segno", reason="the segno package is not installed")

URL = "https://192.168.178.23:8080/"


def names(certificate: https.Certificate) -> set[str]:
    found = x509.load_pem_x509_certificate(certificate.cert.read_bytes())
    alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in alternatives}


def test_the_certificate_names_this_machine_and_is_kept(tmp_path: Path) -> None:
    made = https.certificate(tmp_path / "https")
    assert names(made) >= {"localhost", "127.0.0.1", "::1", *https.addresses()}
    first = made.cert.read_bytes(), made.key.read_bytes()
    assert https.certificate(tmp_path / "https") == made
    assert (made.cert.read_bytes(), made.key.read_bytes()) == first


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_nobody_else_may_enter_the_keys_folder(tmp_path: Path) -> None:
    https.certificate(tmp_path / "https")
    assert (tmp_path / "https").stat().st_mode & 0o077 == 0


def test_a_new_address_gets_a_new_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "addresses", lambda: ["192.168.0.7"])
    assert "192.168.0.7" in names(https.certificate(tmp_path))
    monkeypatch.setattr(https, "addresses", lambda: ["10.0.0.9"])
    assert "10.0.0.9" in names(https.certificate(tmp_path))


def test_a_broken_certificate_is_made_anew(tmp_path: Path) -> None:
    made = https.certificate(tmp_path)
    made.cert.write_text("no certificate")
    assert "localhost" in names(https.certificate(tmp_path))


def test_without_cryptography_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(UserError, match="pip install cryptography"):
        https.certificate(tmp_path)


def test_the_terminals_qr_code_can_be_read() -> None:
    lines = https.qr_code(URL).splitlines()
    # Each letter is two modules, one above the other; a dark terminal's ink is the code's white
    halves = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}
    letters = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    modules = np.array([[halves[letter][half] for letter in line] for line in letters for half in (0, 1)], np.uint8)
    picture = np.pad(np.kron(255 * modules, np.ones((6, 6), np.uint8)), 24, constant_values=255)
    assert cv2.QRCodeDetector().detectAndDecode(picture)[0] == URL


def test_a_page_gets_its_code_as_one_svg_element() -> None:
    drawn = https.qr_picture(URL)
    assert (
        drawn.startswith("<svg")
        and drawn.endswith("</svg>")
        and "http://" not in drawn.replace("http://www.w3.org", "")
    )


@pytest.mark.parametrize(
    ("host", "secure", "expected"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:80/"),
        ("::1", True, "https://[::1]:80/"),
        ("box", True, "https://box:80/"),
    ],
)
def test_an_address_is_written_as_browsers_want_it(host: str, secure: bool, expected: str) -> None:
    assert https.page(host, 80, secure) == expected


def test_listening_everywhere_is_told_as_an_address_that_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "addresses", lambda: ["192.168.0.7", "10.0.0.9"])
    assert https.page("0.0.0.0", 8080, True) == "https://192.168.0.7:8080/"
