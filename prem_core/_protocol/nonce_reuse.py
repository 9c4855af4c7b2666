"""Replies under their request's nonce: what the client does about them, and what is known about the service.

A streamed reply is sealed under the nonce of its request, chunk by chunk. The gateway, without a key, can read such a
reply, put another one in its place and, by sending the request again, read the request (SECURITY.md). A reply in one
piece under a nonce of its own has none of these weaknesses.
"""

from __future__ import annotations

import secrets
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from prem_core._config import environment_source, from_environment
from prem_core._crypto.xwing import PublicKey
from prem_core._errors import ConfigurationError

NonceReuse = Literal["warn", "error", "allow"]

NONCE_REUSE_MODES: Final = get_args(NonceReuse)

Task = Literal["chat", "transcribe", "translate"]

#: How many outcomes of probes a process keeps. A forgotten one is probed for again.
MAX_OUTCOMES: Final = 10_000

#: The letters of a probe's random word, and its length: 100 bits.
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_WORD_LENGTH: Final = 20

#: More tokens than a model needs to answer a single word.
_PROBE_TOKENS: Final = 16

#: The recording of an audio probe: half a second of silence, as 16-bit PCM with this many samples per second.
_SAMPLE_RATE: Final = 16_000


class NonceReuseWarning(UserWarning):
    """A reply is sealed under its request's nonce, so the gateway can read and replace it."""


_warned = False


def warn_of_nonce_reuse() -> None:
    """Warn, once per process, that a reply is or will be sealed under its request's nonce."""
    global _warned
    if _warned:
        return
    _warned = True
    warnings.warn(
        "this reply is sealed under its request's nonce, as every streamed reply is: the gateway can read it, put "
        "another one in its place and, by sending the request again, read the request. Set nonce_reuse='error' (or "
        "PREM_NONCE_REUSE=error) to accept only replies under a nonce of their own, or 'allow' to silence this "
        "warning",
        NonceReuseWarning,
        stacklevel=2,
    )


def resolve_nonce_reuse(mode: object) -> NonceReuse:
    """`mode`, if it is one of the three; None for that of the environment, then "warn".

    Raises:
        ConfigurationError: It is not one of them.
    """
    name = "nonce_reuse"
    if mode is None:
        variable = environment_source(name)
        mode, name = from_environment(name) or "warn", f"{name} (from {variable})"
    for known in NONCE_REUSE_MODES:
        if mode == known:
            return known  # type: ignore[no-any-return]
    raise ConfigurationError(f"{name} must be 'warn', 'error' or 'allow', not {mode!r}")


@dataclass(frozen=True, slots=True)
class ProbeSubject:
    """What a probe is about: the replies of one model to one kind of request."""

    task: Task
    model: str


class ReplyForms:
    """Which nonce the service seals its replies under, as far as this process knows.

    One outcome for each gateway, enclave key, kind of request and model.
    """

    def __init__(self) -> None:
        self._own: OrderedDict[tuple[str, str, ProbeSubject], bool] = OrderedDict()

    def own_nonce(self, gateway_url: str, key: PublicKey, subject: ProbeSubject) -> bool | None:
        """Whether these replies have a nonce of their own; None if it is not known."""
        return self._own.get((gateway_url, key.fingerprint(), subject))

    def record(self, gateway_url: str, key: PublicKey, subject: ProbeSubject, *, own: bool) -> None:
        """Remember an outcome. One reply under its request's nonce outweighs all others."""
        name = (gateway_url, key.fingerprint(), subject)
        self._own[name] = own and self._own.get(name, True)
        if len(self._own) > MAX_OUTCOMES:
            self._own.popitem(last=False)

    def clear(self) -> None:
        """Forget all outcomes."""
        self._own.clear()


#: The outcomes of this process.
REPLY_FORMS: Final = ReplyForms()


def probe_params(subject: ProbeSubject) -> dict[str, Any]:
    """The parameters of a probe: for a chat, a random word and nothing else."""
    if subject.task != "chat":
        return {"model": subject.model}
    word = "".join(secrets.choice(_LETTERS) for _ in range(_WORD_LENGTH))
    return {
        "model": subject.model,
        "max_tokens": _PROBE_TOKENS,
        "messages": [{"role": "user", "content": word}],
    }


def is_probe(params: Mapping[str, Any]) -> bool:
    """Whether these are the parameters of a chat's probe. A `ScriptedEngine` does not spend a reply on it."""
    messages = params.get("messages")
    if params.keys() - {"metadata"} != {"model", "max_tokens", "messages"} or not isinstance(messages, list):
        return False
    content = messages[0].get("content") if len(messages) == 1 and isinstance(messages[0], dict) else None
    return (
        params["max_tokens"] == _PROBE_TOKENS
        and isinstance(content, str)
        and len(content) == _WORD_LENGTH
        and not set(content) - set(_LETTERS)
    )


def probe_recording() -> bytes:
    """A WAV file with half a second of silence."""
    samples = bytes(_SAMPLE_RATE)
    size, rate = len(samples), _SAMPLE_RATE
    numbers = [
        (36 + size, 4),
        b"WAVEfmt ",
        (16, 4),
        (1, 2),
        (1, 2),
        (rate, 4),
        (2 * rate, 4),
        (2, 2),
        (16, 2),
    ]
    header = b"".join(
        each if isinstance(each, bytes) else each[0].to_bytes(each[1], "little") for each in numbers
    )
    return b"RIFF" + header + b"data" + size.to_bytes(4, "little") + samples
