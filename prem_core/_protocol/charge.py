"""What a request is charged against an organisation's limits: an estimate before it is sent, then what it used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

#: Bytes of JSON for each token, and tokens for each image or other file inside a request.
BYTES_PER_TOKEN: Final = 4
TOKENS_PER_FILE: Final = 1000

#: Starts the base64 of a file inside a chat request: in a data URL, and in `input_audio`.
_FILE_STARTS: Final = (b";base64,", b'"data":"')


@dataclass(slots=True, eq=False)
class Charge:
    """The charge of one attempt. Its flow fills in what was used; where it does not, the estimate counts.

    Attributes:
        stream: Whether a stream is asked for.
        tokens: Estimated tokens of the prompt.
        audio_seconds: Estimated length of the recording.
        used_tokens: Tokens of prompt and answer; None if not known.
        used_audio_seconds: The length that the service reported; None if not known.
    """

    stream: bool = False
    tokens: float = 0
    audio_seconds: float = 0
    used_tokens: float | None = None
    used_audio_seconds: float | None = None

    def refund(self) -> None:
        """Charge nothing, because the service rejected the request or did not receive it."""
        self.used_tokens = self.used_audio_seconds = 0


def estimate_tokens(members: bytes) -> float:
    """Estimate the tokens of a request from its JSON. Files inside it count as `TOKENS_PER_FILE` each."""
    text, files = len(members), 0
    for start in _FILE_STARTS:
        at = members.find(start)
        while at >= 0:
            end = members.find(b'"', at + len(start))
            if end < 0:
                break
            text -= end - at - len(start)
            files += 1
            at = members.find(start, end)
    return text / BYTES_PER_TOKEN + files * TOKENS_PER_FILE


def reported_seconds(plaintext: bytes) -> float | None:
    """The duration in the decrypted response to a transcription; None if it has none."""
    if b'"duration"' not in plaintext:
        return None
    try:
        value: Any = json.loads(plaintext)
    except (ValueError, RecursionError):
        return None
    seconds = value.get("duration") if isinstance(value, dict) else None
    try:
        seconds = float(seconds) if isinstance(seconds, int | float | str) else -1.0
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
