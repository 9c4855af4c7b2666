"""A request of the audio routes, opened and checked.

The rule of this file: as in `_enclave`, a refusal names a parameter and a rule, and never a value. The name
of the file is as secret as the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PrivateKey
from prem_core.enclave.engines.base import AudioTask
from prem_core.enclave.gateway import AUDIO_PATHS
from prem_core.enclave.schema_check import Refused, SchemaName, read_body
from prem_core.enclave.sealed_fields import FILE, FILE_NAME, INFERENCE, open_items

#: What each route asks for.
TASKS: Final[Mapping[str, AudioTask]] = dict(zip(AUDIO_PATHS, ("transcribe", "translate"), strict=True))

PARAMS_SCHEMAS: Final[Mapping[AudioTask, SchemaName]] = {
    "transcribe": "audio-transcription-params",
    "translate": "audio-translation-params",
}


@dataclass(frozen=True, slots=True)
class OpenedAudio:
    """One request after decryption. Its repr shows nothing of it."""

    task: AudioTask
    keys: EncryptionKeys
    params: dict[str, Any] = field(repr=False)
    file_name: str = field(repr=False)
    audio: bytes = field(repr=False)


def open_audio(private_key: PrivateKey, task: AudioTask, body: bytes) -> OpenedAudio:
    """A forwarded body, opened and checked.

    Raises:
        Refused: 400; it does not have the published shape, does not open, or what it holds is not allowed.
    """
    fields = read_body("audio-request", body)
    keys, (inference, name, audio) = open_items(private_key, fields, (INFERENCE, FILE_NAME, FILE))
    params = read_body(PARAMS_SCHEMAS[task], inference, called=INFERENCE.sealed)
    if "timestamp_granularities" in params and params.get("response_format") != "verbose_json":
        rule = "needs response_format verbose_json"
        raise Refused(
            400,
            f"Invalid request: timestamp_granularities {rule}",
            validator={"timestamp_granularities": rule},
        )
    try:
        file_name = name.decode()
    except UnicodeDecodeError:
        rule = "must be UTF-8"
        raise Refused(
            400, f"Invalid request: {FILE_NAME.sealed} {rule}", validator={FILE_NAME.sealed: rule}
        ) from None
    return OpenedAudio(task, keys, params, file_name, audio)
