"""The page that segments on the phone itself: the same integer-only files, run by LiteRT.js in the browser.

python run_demo.py phone                     serve it to this machine
python run_demo.py phone --https             serve it to the phones of this network: scan the QR code
python run_demo.py phone --export site       write it as a static site for any host
"""

import argparse
import functools
import http.server
import logging
import signal
import ssl
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app import https
from app.phone.export import export
from models import UserError, names

log = logging.getLogger(__name__)

TYPES = {".js": "text/javascript", ".webmanifest": "application/manifest+json", ".gz": "application/octet-stream"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run_demo.py phone`."""
    add = parser.add_argument
    add("--export", type=Path, metavar="DIR", help="write the site into this folder instead of serving it")
    add("--model", action="append", metavar="NAME|PATH", help="offer this model, the first at start (all shipped ones)")
    add("--host", help="address to listen on (127.0.0.1, with --https 0.0.0.0)")
    add("--port", type=int, default=8080, help="port to listen on, 0 for any free one (%(default)s)")
    add("--https", action="store_true", help="encrypt: browsers give no camera to a phone without it")


def main(args: argparse.Namespace) -> int:
    """Write the site, or serve it until Ctrl-C or SIGTERM."""
    models = offered(args.model)
    if args.export:
        written = export(args.export, models)
        log.info(f"{args.export}: {written / 1e6:.1f} MB, ready for any static host; docs/phone.md says how.")
        return 0
    host = args.host or ("0.0.0.0" if args.https else "127.0.0.1")
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), host, args.port, args.https) as server:
        export(Path(folder), models)
        announce(https.page(host, server.server_port, args.https), args.https)
        until_stopped(server.serve_forever)
    return 0


def offered(named: list[str] | None) -> list[str]:
    """Return the models to offer: those named with --model, or all shipped ones."""
    models = named or names()
    if not models:
        raise UserError("No model is there: put a .tflite file and its .json card into models/, or give --model PATH.")
    return models


def until_stopped(wait: Callable[[], object]) -> None:
    """Wait until Ctrl-C or SIGTERM ends it."""
    # A background job is started deaf to Ctrl-C, and SIGTERM, a service's end, would leave temporary files behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        wait()
    except KeyboardInterrupt:
        log.info("Stopped.")


def announce(url: str, secure: bool) -> None:
    """Print where the page is; for a phone's camera too, where a phone can reach it."""
    here = https.local(url)
    log.info(f"{'' if here else https.qr_code(url)}\nThe page: {url}   (Ctrl-C ends it)")
    if here:
        log.info("Only this machine sees it; with --https the phones of this network do.")
    elif secure:
        log.info("The phone warns once about the certificate, which this machine signed itself: choose to go on.")
    else:
        log.info("Without --https a phone shows the page but gives it no camera.")


def serve(folder: Path, host: str, port: int, secure: bool = False) -> http.server.ThreadingHTTPServer:
    """Open a web server for a folder; it answers from `serve_forever()` on and closes as a context manager.

    Raises:
        UserError: the port is taken, or `host` is no address of this machine.
    """
    try:
        server = _Server((host, port), functools.partial(_Files, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise UserError(f"Cannot listen on {host}:{port} ({error}): choose another --port or --host.") from None
    if secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files = https.certificate()
        context.load_cert_chain(files.cert, files.key)
        # The handshake waits for the connection's own thread: a silent visitor must not hold up the others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A visitor who hangs up, or who has not accepted the certificate yet, is no fault of ours.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Files(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | TYPES
    timeout = 60  # seconds without a word

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # ask each time; unchanged files are answered in a line
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet: the terminal keeps the QR code in sight."""
