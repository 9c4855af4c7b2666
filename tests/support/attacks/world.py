"""The modes in which the attacks run, and what they run against: a client, an attacker's gateway, an enclave."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, Self

from prem_core import PremClient, PremError
from prem_core.enclave import LocalEnclave
from prem_core.enclave.enclave import WholeReplies
from support.attacks.chunk_form import ChunkForm
from support.attacks.forging import Forger
from support.attacks.gateway import Gateway, Recording
from support.attacks.reading import AttackFailed, Reading, read
from support.attacks.reopening import MASK
from support.attacks.scenario import MODEL, NOW, QUESTION, Model, messages
from support.wire_schemas import TEST_KEY

#: How a request may begin, by the order in which the client writes its parameters.
BEGINNINGS: Final = (
    MASK,
    *(
        b'{"model":"%b",%b"messages":[{"role":"%b","content":"' % (MODEL.encode(), stream, role)
        for stream in (b"", b'"stream":true,')
        for role in (b"user", b"system")
    ),
)


@dataclass(frozen=True, eq=False)
class Mode:
    """Settings of the client, and what the enclave does.

    Attributes:
        name: The name in the table: `nonce_reuse`, and what differs from the defaults.
        options: Options of the client.
        stream: Whether the caller asks for a stream.
        whole_replies: The form of the enclave's response where no stream is asked for.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = True
    whole_replies: WholeReplies = "envelope"

    def __str__(self) -> str:
        return self.name


#: With "allow", everything is as with "warn", but for the warning.
WARN: Final = Mode("warn")
UNMASKED: Final = Mode("warn, no masking", {"request_masking": False})
WHOLE: Final = Mode("warn, no stream", stream=False)
WHOLE_STREAMED: Final = Mode("warn, no stream, service streams", stream=False, whole_replies="stream")
ERROR: Final = Mode("error", {"nonce_reuse": "error"})
ERROR_STREAMED: Final = Mode("error, service streams", {"nonce_reuse": "error"}, whole_replies="stream")

MODES: Final = (WARN, UNMASKED, WHOLE, WHOLE_STREAMED, ERROR, ERROR_STREAMED)


@dataclass(frozen=True)
class Result:
    """What an attack achieved.

    Attributes:
        read: By text, the characters or bytes that were read rightly, and of how many.
        forged: Whether the client took something for its response that is not the enclave's response to it.
        error: How the client's call failed.
        sent: How many requests the client sent.
    """

    read: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    forged: bool = False
    error: PremError | None = None
    sent: int = 0

    def __str__(self) -> str:
        found = [
            f"{name} {'whole' if read == of else 'in part'}" for name, (read, of) in self.read.items() if read
        ]
        return ", ".join([*found, *(["forged"] if self.forged else [])]) or "nothing"


class World:
    """An enclave, and the attacker's gateway in front of it.

    Args:
        whole_replies: The form of the enclave's response where no stream is asked for.
    """

    def __init__(self, whole_replies: WholeReplies) -> None:
        self.enclave = LocalEnclave(
            api_key="sk_test_attacks", engine=Model(), private_key=TEST_KEY, whole_replies=whole_replies
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.enclave)
        self.gateway = self._stack.enter_context(Gateway(self.enclave))
        self.form = ChunkForm.learn(self.enclave, MODEL, NOW)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- the client -------------------------------------------------------------------------------

    def client(self, mode: Mode, **more: Any) -> PremClient:
        """A client that uses the gateway."""
        return PremClient(**{**self.gateway.client_options, "max_retries": 0, **mode.options, **more})

    def ask(self, client: PremClient, mode: Mode, question: str = QUESTION) -> str:
        """The client's answer to a question."""
        params: dict[str, Any] = {"model": MODEL, "messages": messages(question)}
        if not mode.stream:
            return client.chat.completions.create(**params).choices[0].message.content or ""
        chunks = client.chat.completions.create(**params, stream=True)
        return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

    def transcribe(self, client: PremClient, name: str) -> str:
        """The client's transcript of a recording with this file name."""
        recording = (name, io.BytesIO(b"RIFF\0\0\0\0WAVE"))
        return client.audio.transcriptions.create(file=recording, response_format="text")

    # --- the attacker -----------------------------------------------------------------------------

    def read(self, recording: Recording) -> Reading:
        """What can be read of an exchange."""
        return read(recording, self.form, BEGINNINGS)

    def forger(self, recording: Recording) -> Forger:
        """A forger of responses to a request."""
        return Forger(recording, self.read(recording), len(self.form.head))

    def respond(self, act: Callable[[Recording], Iterable[bytes]]) -> None:
        """Respond with what `act` returns. Where it fails, forward the enclave's response."""

        def respond(recording: Recording) -> Iterable[bytes] | None:
            try:
                return list(act(recording))
            except AttackFailed:
                return None

        self.gateway.respond = respond
