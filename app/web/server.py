"""The server of the page: Gradio's own, with a few addresses more, behind the same login and within the same limits."""

import contextlib
import io
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import https
from app.web import live
from app.web.engine import Engine
from app.web.pictures import UPLOAD_MB
from app.web.screen import Screen
from models import UserError

# Read by Gradio when it is imported: it would tell its makers about each start, and look for news.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

HERE = Path(__file__).parent
REQUEST_BYTES = UPLOAD_MB * 1_100_000  # a file, and what wraps it
FILES = {  # what the page is made of besides Gradio: nothing else is served from this folder
    "live.js": (HERE / "site" / "live.js", "text/javascript"),
    "style.css": (HERE / "site" / "style.css", "text/css"),
    "icon.svg": (HERE.parent / "phone" / "site" / "icons" / "icon.svg", "image/svg+xml"),
}
HEAD = """
<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">
<link rel="stylesheet" href="page/style.css"><script type="module" src="page/live.js"></script>
"""
ALONE = """
<div class='join'><div><p>Only this machine sees the page now. To open it on a phone in the same network, start it
with</p><p><code>python run_demo.py web --https</code></p><p class='note'>Phones give a page their camera only over
HTTPS; the command makes a certificate for this machine and shows a QR code here. <code>--share</code> makes a public
link instead.
</p></div></div>
"""
CERTIFICATE = """
The phone must be in the same network as this machine. It warns once that nobody vouches for the certificate: this
machine signed it itself, and what travels is encrypted all the same. Choose <i>Advanced</i>, then <i>Proceed</i>
(Android), or <i>Show Details</i>, then <i>visit this website</i> (iPhone).
"""
INSECURE = "Without HTTPS a phone shows this page but gives it no camera: start it with <code>--https</code>."


@dataclass(frozen=True)
class Door:
    """Where and for whom the page is served.

    `host` None means this machine only, with `secure` everybody; `port` 0 is any free one; `login` is (user, password).
    """

    host: str | None = None
    port: int = 7860
    secure: bool = False
    share: bool = False
    login: tuple[str, str] | None = None


class Bounded:
    """Refuse requests that are larger than any upload may be, before they are read to their end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as far as it is small enough."""
        told = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if told.isdigit() and int(told) > REQUEST_BYTES:
            await JSONResponse({"error": f"More than {UPLOAD_MB} MB: bring smaller files."}, 413)(scope, receive, send)
            return
        left = REQUEST_BYTES

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            return message if left >= 0 else {"type": "http.disconnect"}  # it told no length, or a wrong one

        await self._app(scope, counted, send)


class Guarded(APIRoute):
    """A route behind the page's login, whose `UserError`s are answered in a sentence."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Wrap the route's own handler."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            if not signed_in(request):
                return JSONResponse({"error": "Sign in first."}, 401)
            try:
                return await handle(request)
            except UserError as error:
                return JSONResponse({"error": str(error)}, 400)

        return guarded


def signed_in(request: Request) -> bool:
    """Tell whether Gradio's login, where there is one, knows this visitor."""
    app = request.app
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return app.auth is None or any(request.cookies.get(name) in app.tokens for name in names)


@contextmanager
def serving(door: Door, engine: Engine, screen: Screen | None = None) -> Iterator[str]:
    """Serve the page as long as the block lasts; gives its address.

    Raises:
        UserError: the port is taken, or no public link could be made.

    Everything visitors bring lies in a folder of its own, which goes with the server.
    """
    host = door.host or ("0.0.0.0" if door.secure else "127.0.0.1")
    port = _port(host, door.port)
    _reach_directly("localhost", "127.0.0.1", "0.0.0.0", host)
    with TemporaryDirectory(prefix="edge-segmenter-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
        blocks = _page(engine, screen, Path(folder))
        try:
            _launch(blocks, door, host, port)
            address = blocks.share_url or https.page(host, port, door.secure)
            _add_routes(blocks.app, engine, screen, join(address))
            yield address
        finally:
            engine.close()
            with contextlib.redirect_stdout(io.StringIO()):  # "Closing server running on port"
                if getattr(blocks, "server", None):
                    blocks.server.config.timeout_graceful_shutdown = 1  # visitors' open connections are not waited for
                blocks.close(verbose=False)


def _reach_directly(*hosts: str) -> None:
    """Keep a proxy out of the way: Gradio asks its own server whether it is there."""
    for name in ("no_proxy", "NO_PROXY"):  # where both are set, the lower-case one counts
        os.environ[name] = ",".join(dict.fromkeys([*filter(None, os.environ.get(name, "").split(",")), *hosts]))


def _page(engine: Engine, screen: Screen | None, folder: Path) -> Any:
    from app.web.page import Page

    return Page(engine, folder, screen is not None).build()


def _launch(blocks: Any, door: Door, host: str, port: int) -> None:
    from app.web.page import theme

    files = https.certificate() if door.secure else None
    said = io.StringIO()  # Gradio prints, for a terminal, what we word ourselves
    try:
        with contextlib.redirect_stdout(said):
            blocks.launch(
                server_name=host, server_port=port, share=door.share, auth=door.login, quiet=True, inline=False,
                prevent_thread_lock=True, ssl_certfile=files and str(files.cert), ssl_keyfile=files and str(files.key),
                ssl_verify=False, max_file_size=UPLOAD_MB * 1_000_000, state_session_capacity=100, ssr_mode=False,
                app_kwargs={"middleware": [Middleware(Bounded)]},
                run_history=False, enable_monitoring=False, footer_links=["api"], theme=theme(), head=HEAD,
                favicon_path=str(HERE.parent / "phone" / "site" / "icons" / "icon-192.png"),
            )  # fmt: skip
    except OSError as error:
        raise UserError(f"Cannot listen on {host}:{port} ({error}): choose another --port or --host.") from None
    if door.share and not blocks.share_url:
        raise UserError(
            "No public link: this machine does not reach Gradio's share server. Check the network, or use --https, "
            "which needs none beyond your own."
        )


def _add_routes(app: Any, engine: Engine, screen: Screen | None, way_in: str) -> None:
    router = APIRouter(route_class=Guarded)
    live.add_routes(router, engine)
    if screen:
        screen.add_routes(router)
    router.add_api_route("/page/join", lambda: Response(way_in, media_type="text/html"))
    app.include_router(router)
    app.add_api_route("/page/{name}", _file)


def join(address: str) -> str:
    """Word as HTML how a phone gets to the page: its QR code, or how to start it so that there is one."""
    if https.local(address):
        return ALONE
    note = INSECURE
    if address.startswith("https:"):
        note = CERTIFICATE if address.rpartition(":")[2].strip("/").isdecimal() else ""  # the tunnel's is vouched for
    picture = f"<div class='qr'>{https.qr_picture(address)}</div>"
    return (
        f"<div class='join'>{picture}<div><p class='address'>{escape(address)}</p>"
        f"<p>Scan the code with the phone's camera.</p><p class='note'>{note}</p></div></div>"
    )


def _file(name: str) -> Response:
    if name not in FILES:
        return Response(status_code=404)
    path, kind = FILES[name]
    return Response(path.read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})


def _port(host: str, wanted: int) -> int:
    """Check that a port can be listened on, or find a free one for 0; Gradio would not say which."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"Cannot listen on {host}:{wanted} ({reason}): choose another --port or --host.") from None
        return int(probe.getsockname()[1])
