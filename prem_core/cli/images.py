"""Message content for the images of ``prem chat --image``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from prem_core._adapters.content import image_part
from prem_core._media import image_format
from prem_core.cli import EXIT_USAGE
from prem_core.cli.errors import CliError

#: Bytes of one image. The service publishes no limit; this one is OpenAI's.
MAX_BYTES: Final = 20 * 1024 * 1024


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
    found = image_format(data)
    if found is None:
        raise _error(image, "is not a PNG, JPEG, GIF or WebP image")
    return image_part(data=data, media_type=found.media_type)


def _error(image: str, problem: str) -> CliError:
    return CliError(f"--image: {image} {problem}", EXIT_USAGE)
