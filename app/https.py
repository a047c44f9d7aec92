"""How a phone gets in: this machine's addresses, a certificate for them, and a QR code of the page's address.

Browsers hand the camera only to secure pages, so a phone in the same network needs HTTPS. The certificate is our own:
the phone warns once, and then keeps the page's trust for as long as the certificate stays the same, a year.
"""

import contextlib
import datetime
import io
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.outputs import write_whole
from models import UserError

if TYPE_CHECKING:  # the package itself is imported where it is needed: it comes with the extra `web`
    from cryptography.x509 import GeneralName

DAYS = 365  # iOS refuses certificates that live longer than 825 days


@dataclass(frozen=True)
class Certificate:
    """The PEM files of a certificate and of its private key, as `ssl` and Gradio want them."""

    cert: Path
    key: Path


def cache(name: str) -> Path:
    """Return the folder below the user's cache folder (`XDG_CACHE_HOME`) for things that may be made again."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "edge-segmenter" / name


def addresses() -> list[str]:
    """List this machine's IPv4 addresses that others can reach, the one of the default route first."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation; a UDP connect sends nothing
            found.append(probe.getsockname()[0])
        except OSError:  # no network at all
            pass
    with contextlib.suppress(OSError):
        found += socket.gethostbyname_ex(socket.gethostname())[2]
    return [address for address in dict.fromkeys(found) if not address.startswith("127.")]


def certificate(folder: Path | None = None) -> Certificate:
    """Give a self-signed certificate for this machine's names and addresses, made once and kept in `folder`.

    It is made anew when an address came or when fewer than 30 days are left.

    Raises:
        UserError: the `cryptography` package is missing, or the folder cannot be written.
    """
    try:
        from cryptography import x509
    except ImportError:
        raise UserError("HTTPS needs the cryptography package: run `pip install cryptography`.") from None
    folder = folder or cache("https")
    kept = Certificate(folder / "cert.pem", folder / "key.pem")
    names = _names()
    try:
        found = x509.load_pem_x509_certificate(kept.cert.read_bytes())
        covered = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
        fresh = found.not_valid_after_utc > soon
        if fresh and kept.key.is_file() and set(names) <= {str(name.value) for name in covered}:
            return kept
    except (OSError, ValueError, x509.ExtensionNotFound):
        pass  # none yet, or not one of ours
    _sign(names, kept)
    return kept


def page(host: str, port: int, secure: bool = False) -> str:
    """Return the address to open: this machine's own in the network where the server listens on all of them."""
    if host in ("0.0.0.0", "::", ""):
        host = next(iter(addresses()), "127.0.0.1")
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


def local(url: str) -> bool:
    """Tell whether an address leads nobody but this machine itself to the page."""
    host = url.partition("//")[2]
    return host.startswith(("127.", "localhost", "[::1]"))


def qr_code(url: str) -> str:
    """Draw a QR code for a dark or a light terminal; "" where the `segno` package is not installed."""
    try:
        import segno
    except ImportError:
        return ""
    drawn = io.StringIO()
    segno.make(url, micro=False).terminal(drawn, compact=True, border=2)
    return drawn.getvalue()


def qr_picture(url: str) -> str:
    """Draw a QR code as one SVG element for a page; "" where the `segno` package is not installed."""
    try:
        import segno
    except ImportError:
        return ""
    return str(segno.make(url, micro=False).svg_inline(scale=5, border=2, light="white"))


def _names() -> list[str]:
    host = socket.gethostname().removesuffix(".local")
    return list(dict.fromkeys(["localhost", host, f"{host}.local", "127.0.0.1", "::1", *addresses()]))


def _sign(names: list[str], files: Certificate) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Edge Segmenter on this network")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of phones and small boards disagree
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files.key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # nobody else reads the key
    write_whole(files.key, secret)
    write_whole(files.cert, signed.public_bytes(pem))


def _general(name: str) -> "GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
