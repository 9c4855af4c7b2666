"""Message content for the images of ``prem chat --image``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from prem_core._adapters.content import image_part
from prem_core.cli import EXIT_USAGE
from prem_core.cli.errors import CliError

#: Bytes of one image. The service publishes no limit; this one is OpenAI's.
MAX_BYTES: Final = 20 * 1024 * 1024

#: Offset, magic bytes and media type. The file's suffix would prove nothing.
_MAGIC_BYTES: Final = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
)


def image_content(image: str) -> dict[str, Any]:
    """Make the content part of an image.

    Args:
        image: An http(s) or ``data:`` URL, which is passed on, or the path of a file, which is read.

    Raises:
        CliError: The file cannot be read, is too large, or is not a PNG, JPEG, GIF or WebP image.
    """
    if image.startswith(("http://", "https://", "data:")):
        return image_part(url=image)
    try:
        with Path(image).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _error(image, f"cannot be read ({getattr(error, 'strerror', None) or 'not a path'})") from None
    if len(data) > MAX_BYTES:
        raise _error(image, f"is larger than {MAX_BYTES // 1024**2} MB")
    for offset, magic, media_type in _MAGIC_BYTES:
        if data[offset : offset + len(magic)] == magic:
            return image_part(data=data, media_type=media_type)
    raise _error(image, "is not a PNG, JPEG, GIF or WebP image")


def _error(image: str, problem: str) -> CliError:
    return CliError(f"--image: {image} {problem}", EXIT_USAGE)
