"""English transcription on this machine, for development and tests.

pocketsphinx, with the English model of its package, transcribes recordings that libsndfile decodes. A recording is
split at its pauses, and each utterance is recognised on its own. The same recording always has the same transcript.

It is not Whisper: it has one language and about 130,000 words, writes neither capitals nor punctuation, does not
translate, and makes more mistakes than a modern model. `prompt` and `temperature` are accepted and change nothing.
Unsupported parameters raise an EngineError that names the parameter.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prem_core.enclave.engines.base import AudioTask, EngineError
from prem_core.enclave.engines.speech.recogniser import FRAMES_PER_SECOND, Utterance, utterances
from prem_core.enclave.engines.speech.recording import Recording, decode

__all__ = ["Recording", "Utterance", "decode", "refuse", "transcription", "utterances"]

_LANGUAGE: Final = "en"


def refuse(task: AudioTask, params: Mapping[str, Any]) -> None:
    """Raise EngineError for a task or a language that the recogniser lacks."""
    if task == "translate":
        raise EngineError("the embedded enclave cannot translate. Use --upstream with a server that can")
    if params.get("language", _LANGUAGE) != _LANGUAGE:
        raise EngineError(
            "the embedded enclave transcribes English (en) only. Use --upstream with a server that supports others",
            param="language",
        )


def transcription(
    params: Mapping[str, Any], seconds: float, found: Sequence[Utterance]
) -> dict[str, Any] | str:
    """The transcript of a recording of `seconds`, in the form that ``response_format`` asks for."""
    text = " ".join(utterance.text for utterance in found)
    match params.get("response_format"):
        case "text":
            return text
        case "verbose_json":
            wanted = params.get("timestamp_granularities", ("segment",))
            verbose = {
                "task": "transcribe",
                "language": "english",
                "duration": round(seconds, 3),
                "text": text,
            }
            if "segment" in wanted:
                verbose["segments"] = [_segment(number, utterance) for number, utterance in enumerate(found)]
            if "word" in wanted:
                verbose["words"] = [word._asdict() for utterance in found for word in utterance.words]
            return verbose
    return {"text": text}


def _segment(number: int, utterance: Utterance) -> dict[str, Any]:
    """Whisper's segment. It has no tokens, and `seek` is its own start in frames of 10 ms."""
    text = utterance.text.encode()
    return {
        "id": number,
        "seek": round(utterance.start * FRAMES_PER_SECOND),
        "start": utterance.start,
        "end": utterance.end,
        "text": utterance.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": utterance.avg_logprob,
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 3),
        "no_speech_prob": utterance.no_speech_prob,
    }
