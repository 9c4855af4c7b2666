"""Paths of the API, what they accept, and their size limits."""

from __future__ import annotations

CHAT_ROUTE = "/rvenc/chat/completions"
AUDIO_ROUTES = {"transcribe": "/rvenc/audio/transcriptions", "translate": "/rvenc/audio/translations"}
MODELS_ROUTE = "/models"

#: What ``GET /models?type=`` may ask for.
MODEL_TYPES = ("CHAT", "AUDIO_TRANSCRIPTION", "AUDIO_SPEECH", "IMAGE")
