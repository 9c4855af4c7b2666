"""Paths of the API, what they accept, and their size limits."""

from __future__ import annotations

from typing import Final

CHAT_ROUTE: Final = "/rvenc/chat/completions"
AUDIO_ROUTES: Final = {"transcribe": "/rvenc/audio/transcriptions", "translate": "/rvenc/audio/translations"}
MODELS_ROUTE: Final = "/models"

#: What ``GET /models?type=`` may ask for.
MODEL_TYPES: Final = ("CHAT", "AUDIO_TRANSCRIPTION", "AUDIO_SPEECH", "IMAGE")

#: Bytes of one recording before it is sealed: the service's 25 MB.
MAX_AUDIO_BYTES: Final = 25 * 1024 * 1024
