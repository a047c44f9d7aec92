"""What visitors bring: pictures and clips, checked before anything large is decoded."""

import io
import warnings
from base64 import b64decode
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from app.sources import Source, open_source
from models import Frame, UserError

UPLOAD_MB = 100  # a file; 10^6 bytes
PICTURE_PIXELS = 50_000_000  # width x height as the file's head tells
PICTURE_SIDE = 2048  # px; larger pictures are scaled to it
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
FRAME_BYTES, FRAME_SIDE = 2_000_000, 1280  # of one live frame, a JPEG
CLIP_SECONDS, CLIP_SIDE = 120, 1920

# FFmpeg also reads playlists, which name other files: only these containers of video come near it.
CONTAINERS = {
    4: (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"),  # MP4, MOV
    0: (b"\x1aE\xdf\xa3", b"RIFF", b"GIF8", b"\0\0\1\xba", b"\0\0\1\xb3"),  # WebM and MKV, AVI, GIF, MPEG
}

# Gradio opens pictures too, for the formats it shows; Pillow refuses twice this number.
Image.MAX_IMAGE_PIXELS = PICTURE_PIXELS // 2


def open_picture(source: Path | bytes, side: int = PICTURE_SIDE) -> Frame:
    """Read a visitor's picture upright, scaled down to at most `side` pixels a side.

    Args:
        source: a file, or its content.
        side: pixels.

    Returns:
        HxWx3 uint8 BGR; what was transparent is white.

    Raises:
        UserError: it is not a picture, is damaged, or is larger than 50 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what is too large is refused below
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
                _check_size(*opened.size)
                opened.draft("RGB", (side, side))  # a JPEG is decoded at a fraction of its size where that suffices
                turned = ImageOps.exif_transpose(opened)
                return _bgr(turned, side)
    except Image.DecompressionBombError:
        raise _too_large() from None
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError) as error:  # all that Pillow's readers raise
        damaged = "truncated" in str(error) or "broken" in str(error)
        what = "is damaged or cut off" if damaged else "is not a picture that can be read"
        raise UserError(f"This file {what}: bring a JPEG, PNG or WebP picture.") from None


def open_data_url(url: str) -> Frame:
    """Read a picture from a `data:image/...;base64,...` address, as `open_picture` does."""
    try:
        content = b64decode(url.partition(",")[2], validate=True)
    except ValueError:
        raise UserError("This data: address is not base64: send data:image/jpeg;base64,... .") from None
    return open_picture(content)


def open_frame(jpeg: bytes) -> Frame:
    """Read one live frame: a JPEG of at most 1280 pixels a side and 2 MB; HxWx3 uint8 BGR."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as head:  # reads the head only
            width, height = head.size
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError("This is not a JPEG: send one a request.") from None
    if max(width, height) > FRAME_SIDE:
        raise UserError(f"{width}x{height} is too large for a live frame: send at most {FRAME_SIDE} pixels a side.")
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if frame is None:
        raise UserError("This JPEG is damaged: send another.")
    return frame  # type: ignore[return-value]


def open_clip(path: Path) -> tuple[Source, int]:
    """Open a visitor's clip; give it and the number of frames it claims to have, 0 where it does not tell.

    Raises:
        UserError: it is not a video, gives no frame, or is longer than 120 s or larger than 1920 pixels a side.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if not any(head.startswith(marks, offset) for offset, marks in CONTAINERS.items()):
        raise UserError("This file is not a video that can be read: bring an MP4, MOV, WebM or AVI clip.")
    probe = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    width, height, fps, count = (
        probe.get(each)
        for each in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
    )
    probe.release()
    if max(width, height) > CLIP_SIDE:
        raise UserError(f"{width:.0f}x{height:.0f} is too large: bring a clip of at most {CLIP_SIDE} pixels a side.")
    if fps > 0 and count / fps > CLIP_SECONDS:
        raise UserError(f"{count / fps:.0f} s is too long: bring a clip of at most {CLIP_SECONDS} s.")
    try:
        source = open_source(path)
    except UserError:  # its message names the file's place on the server
        raise UserError("This video is damaged or cut off, no frame can be read: bring another clip.") from None
    return source, max(0, int(count)) if source.fps else 0  # a count is duration times rate


def _check_size(width: int, height: int) -> None:
    if width * height > PICTURE_PIXELS:
        raise _too_large()


def _too_large() -> UserError:
    return UserError(f"This picture is too large: bring one of at most {PICTURE_PIXELS // 1_000_000} megapixels.")


def _bgr(picture: Image.Image, side: int) -> Frame:
    picture.thumbnail((side, side), reducing_gap=2.0)
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[..., ::-1])
