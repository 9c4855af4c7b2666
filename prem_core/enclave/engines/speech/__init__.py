"""The built-in engine's ear: English speech to text on this machine, for development and tests.

What it is: pocketsphinx with the English model its package carries, on recordings that libsndfile decodes. A
recording is cut where nobody speaks, and each utterance is recognised for itself. The same recording always
gives the same text.

What it is not: Whisper. It knows one language and about 130,000 words, writes neither capitals nor
punctuation, does not translate, and mishears where a modern model would not. `prompt` and `temperature` are
accepted and change nothing. What it cannot do it refuses with an EngineError that names the parameter.
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
    """Raise EngineError, 400, if schema-valid `params` ask for what the recogniser cannot do."""
    if task == "translate":
        raise EngineError(
            "the built-in engine has no model for translation; with --upstream a server that has one answers",
        )
    if params.get("language", _LANGUAGE) != _LANGUAGE:
        raise EngineError(
            "the built-in engine has no model for this language, only for en; "
            "with --upstream a server that has one answers",
            param="language",
        )


def transcription(
    params: Mapping[str, Any], seconds: float, heard: Sequence[Utterance]
) -> dict[str, Any] | str:
    """What was heard in a recording of `seconds`, in the form that ``response_format`` asks for."""
    text = " ".join(utterance.text for utterance in heard)
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
                verbose["segments"] = [_segment(number, utterance) for number, utterance in enumerate(heard)]
            if "word" in wanted:
                verbose["words"] = [word._asdict() for utterance in heard for word in utterance.words]
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
