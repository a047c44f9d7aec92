"""The page to share: live camera, pictures and clips segmented by this machine, in any browser.

python run_demo.py web                       for this machine: http://127.0.0.1:7860/
python run_demo.py web --https               for the phones of this network too: scan the QR code
python run_demo.py web --share               for everybody who gets the public link, made by Gradio's tunnel
python run_demo.py live --show web           this machine's own camera on the page, for any number of viewers
"""

import argparse
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app import https, phone
from models import UserError, names

if TYPE_CHECKING:  # Gradio takes seconds to import, and may be missing
    from app.web.screen import Screen
    from app.web.server import Door

log = logging.getLogger("app")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `run_demo.py web`."""
    add = parser.add_argument
    add("--model", action="append", metavar="NAME|PATH", help="offer this model, the first at start (all shipped ones)")
    add("--threads", type=int, metavar="N", help="of the network (default: the cores, at most 4)")
    add("--export-space", type=Path, metavar="DIR", help="write a Hugging Face Space into this folder, and end")
    configure_door(parser)


def configure_door(parser: argparse._ActionsContainer) -> None:
    """Declare the options that say where and for whom the page is served."""
    add = parser.add_argument
    add("--host", help="address to listen on (127.0.0.1, with --https 0.0.0.0)")
    add("--port", type=int, default=7860, help="port to listen on, 0 for any free one (%(default)s)")
    add("--https", action="store_true", help="encrypt: browsers give no camera to a phone without it")
    add("--share", action="store_true", help="make a public link through Gradio's tunnel, for a week at most")
    add("--auth", metavar="USER:PASSWORD", help="ask for a login; EDGE_AUTH in the environment does the same")


def main(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C or SIGTERM, or write the Space."""
    models = phone.offered(args.model)
    if args.export_space:
        from app.web.space import export

        export(args.export_space, models)
        log.info(f"{args.export_space} is a Space: upload it with `hf upload USER/NAME . --repo-type space`.")
        return 0
    with _page(args, models):
        phone.until_stopped(threading.Event().wait)
    return 0


@contextmanager
def screen(args: argparse.Namespace) -> Iterator["Screen"]:
    """Serve the page around a live session and give the surface that the session shows its pictures on."""
    from app.web.screen import Screen

    shown = Screen()
    with _page(args, list(dict.fromkeys([args.model, *names()])), shown):
        yield shown


@contextmanager
def _page(args: argparse.Namespace, models: Sequence[str], shown: "Screen | None" = None) -> Iterator[None]:
    try:
        from app.web.engine import Engine
        from app.web.server import serving
    except ImportError as error:
        raise UserError(
            f"The page needs Gradio ({error}): run `pip install 'gradio>=6.25,<7' cryptography segno`."
        ) from None
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio calls its own server at start
    opened, engine = door(args), Engine(models, args.threads)
    engine.segmenter()  # a file that is no model shall not be found out by the first visitor
    with serving(opened, engine, shown) as address:
        announce(address, opened)
        yield


def door(args: argparse.Namespace) -> "Door":
    """Read the options of `configure_door`."""
    from app.web.server import Door

    login = None
    if words := args.auth or os.environ.get("EDGE_AUTH"):
        user, _, password = words.partition(":")
        if not (user and password):
            raise UserError("--auth wants a name and a password: for instance --auth ada:lovelace.")
        login = (user, password)
    if not 0 <= args.port < 65536:
        raise UserError(f"There is no port {args.port}: choose one from 1 to 65535.")
    return Door(args.host, args.port, args.https, args.share, login)


def announce(url: str, door: "Door") -> None:
    """Print where the page is, and who may come in."""
    if door.share:
        log.info(f"{https.qr_code(url)}\nThe page: {url}   (Ctrl-C ends it)")
    else:
        phone.announce(url, door.secure)
    if not https.local(url) and not door.login:
        log.info("Whoever reaches this address may use it; --auth USER:PASSWORD asks for a login.")
