"""What can be said of a part that is not text: a file's text, an image's size, a sound's length.

The engine sees and hears nothing. It reads headers and says so.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import struct
from collections.abc import Mapping
from typing import Any

from prem_core.enclave.engines.base import EngineError

_DATA_URL = re.compile(r"data:([^;,]*)((?:;[^;,]*)*),", re.I)
_SIGNATURES = (
    (b"%PDF-", "application/pdf"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)


def _decode(data: str, param: str) -> tuple[str, bytes]:
    """The media type (may be empty) and the bytes of a data URL or of bare base64."""
    media_type, encoding = "", ";base64"
    if head := _DATA_URL.match(data):
        media_type, encoding, data = head[1].lower(), head[2].lower(), data[head.end() :]
    if not encoding.endswith(";base64"):
        raise EngineError(f"{param} must be base64 or a base64 data URL", param=param)
    try:
        content = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise EngineError(f"{param} is not valid base64", param=param) from None
    return media_type or _sniff(content), content


def _sniff(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((name for signature, name in _SIGNATURES if content.startswith(signature)), "")


def file_text(file: Mapping[str, Any]) -> str:
    """The text of a `file` part: UTF-8 text, JSON (flattened to "key: value" lines) or, with pypdf, a PDF.

    Raises EngineError 400 for a file id, for bad base64 and for anything that is not text.
    """
    if file.get("file_id"):
        raise EngineError("file_id is not supported: send the file as file_data", param="file_id")
    if not isinstance(file.get("file_data"), str):
        raise EngineError("a file part needs file_data", param="file_data")
    media_type, content = _decode(file["file_data"], "file_data")
    if media_type == "application/pdf":
        return _pdf_text(content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise EngineError("file_data is neither UTF-8 text nor a PDF", param="file_data") from None
    return flatten(text)


def _pdf_text(content: bytes) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise EngineError(
            "file_data is a PDF, which needs pypdf: pip install 'prem-encrypted[enclave]'",
            param="file_data",
        ) from None
    try:
        return "\n\n".join(page.extract_text() for page in PdfReader(io.BytesIO(content)).pages)
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OSError):
        # pypdf lets several plain exceptions escape on damaged files; all mean the same to the sender.
        raise EngineError("file_data is a PDF that cannot be read", param="file_data") from None


def flatten(text: str) -> str:
    """JSON objects and arrays as readable "key: value" lines; any other text unchanged."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return "\n".join(_lines(json.loads(text), "")) or text
    except (ValueError, RecursionError):
        return text


def _lines(value: Any, path: str) -> list[str]:
    if isinstance(value, dict):
        return [line for key, inner in value.items() for line in _lines(inner, f"{path} {key}".lstrip())]
    if isinstance(value, list):
        if all(not isinstance(inner, (dict, list)) for inner in value):
            joined = ", ".join(_plain(inner) for inner in value)
            return [f"{path}: {joined}" if path else joined]
        return [line for inner in value for line in _lines(inner, path)]
    return [f"{path}: {_plain(value)}" if path else _plain(value)]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def image_note(url: str) -> str:
    """One sentence on an image: media type, size in pixels and bytes; or that a remote one is not fetched."""
    if url[:8].lower().startswith(("http://", "https://")):
        return "The image is given by a remote URL, which is not fetched."
    media_type, content = _decode(url, "image_url")
    size = _pixels(content)
    pixels = f"{size[0]} x {size[1]} pixels, " if size else ""
    kind = media_type or "of unknown type"
    return f"The image is {kind}, {pixels}{len(content)} bytes; its content is not understood."


def _pixels(content: bytes) -> tuple[int, int] | None:
    try:
        if content.startswith(b"\x89PNG"):
            return struct.unpack(">II", content[16:24])
        if content.startswith(b"GIF8"):
            return struct.unpack("<HH", content[6:10])
        if content.startswith(b"\xff\xd8"):
            return _jpeg_pixels(content)
        if content[8:12] == b"WEBP":
            return _webp_pixels(content)
    except struct.error:
        pass  # cut off inside the header: the size is not known
    return None


def _jpeg_pixels(content: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        # Start-of-frame markers carry the size; C4, C8 and CC are tables that share their range.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return width, height
        at += 2 + int(struct.unpack(">H", content[at + 2 : at + 4])[0])
    return None


def _webp_pixels(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L":
        bits = int(struct.unpack("<I", content[21:25])[0])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", content[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def audio_note(audio: Mapping[str, Any]) -> str:
    """One sentence on a sound: its format, byte size and, for WAV, its duration."""
    _, content = _decode(str(audio.get("data", "")), "input_audio")
    seconds = _wav_seconds(content)
    length = "" if seconds is None else f"{seconds:.2f} seconds, "
    return f"The audio is {audio.get('format')}, {length}{len(content)} bytes; it is not transcribed."


def _wav_seconds(content: bytes) -> float | None:
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return None
    at, rate = 12, 0
    while at + 8 <= len(content):
        kind, size = content[at : at + 4], int(struct.unpack("<I", content[at + 4 : at + 8])[0])
        if kind == b"fmt " and at + 20 <= len(content):
            rate = int(struct.unpack("<I", content[at + 16 : at + 20])[0])
        if kind == b"data":
            return min(size, len(content) - at - 8) / rate if rate else None
        at += 8 + size + size % 2  # chunks are padded to even length
    return None
