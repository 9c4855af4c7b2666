"""The other side of the attacks: the client's texts, the enclave's model, and a score of what was read.

This is the only module here that uses the enclave's key: it opens the recordings to count what was read rightly.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

from prem_core import EncryptionKeys
from prem_core.enclave import AudioReply, Engine, EngineRequest
from prem_core.enclave.engines.base import Chunk
from prem_core.enclave.engines.stream import Choice, prompt_tokens, stream
from support.attacks.gateway import Recording
from support.attacks.partly_known import PartlyKnown
from support.attacks.reading import Reading
from support.attacks.reopening import MASK, REPEAT
from support.wire_schemas import TEST_KEY

MODEL: Final = "openai/gpt-oss-120b"

#: The time of every response, by the clock of the enclave and of the gateway.
NOW: Final = 1_790_000_000

QUESTION: Final = (
    "You advise the works council of a hospital. Dr. Anna Lindqvist, 51, a surgeon in its clinic at Malmö, was "
    "diagnosed with Parkinson's disease on 3 March. She informed only her physician. Her contract runs until the end "
    "of next year and allows a transfer to another department; § 14 forbids a dismissal for illness within two years. "
    'The director asks in writing whether she is "fully fit for duty". May she leave the question unanswered, and '
    "what follows if she operates in the meantime? Answer in English, with the reasons, and name the risks for the "
    "patients, for the hospital and for her licence. Keep it below 150 words, because the council meets today."
)

REASONING: Final = "Duty to patients first, then the contract."

ANSWER: Final = (
    "She may leave the question unanswered for now, because it is not limited to what her employer needs in order to "
    "plan its operations. She may not operate in the meantime. A surgeon with a diagnosis of this kind owes her "
    'patients an examination by the occupational physician, who answers only "fit", "fit with limits" or "unfit" '
    "and names no disease.\n\nIf she operates and a patient is harmed, the hospital is liable, its insurer may seek "
    "recourse, and the board may suspend her licence. § 14 protects her against a dismissal for illness, but not "
    "against one for concealing a risk.\n\nSo: ask the physician today, stay out of the theatre until the result, and "
    "propose the transfer that her contract allows. Tell the director the result only, and never the diagnosis."
)

#: A request that is much longer than a chunk.
LONG_QUESTION: Final = "Summarise these minutes.\n" + "\n".join(
    f"{number}. The council heard case {7919 * number % 10007} and voted {number % 7} to {number % 5}; the file is "
    f"kept under {pow(7919, number, 2**61 - 1):016x}."
    for number in range(1, 171)
)

TRANSCRIPT: Final = "The patient may go home on Monday."


#: With this in the message, the answer comes as one chunk.
ONE_CHUNK: Final = "Answer in one chunk."


class Model(Engine):
    """Gives one fixed answer to a question, and a greeting to a shorter message such as a probe.

    It repeats the user's message if the request contains `REPEAT`. Its chunks have the documented form, a random id and
    the time `NOW`. A transcript consists of the recording's file name and `TRANSCRIPT`.
    """

    async def chat(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
        head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": NOW,
            "model": request.model,
            "system_fingerprint": "fp_0a1b2c3d4e",
        }
        for chunk in stream([_choice(request)], head, prompt_tokens=prompt_tokens(request)):
            yield chunk

    async def audio(self, request: EngineRequest) -> AudioReply:
        text = f"{request.file_name}: {TRANSCRIPT}"
        return AudioReply(text if request.params.get("response_format") == "text" else {"text": text}, 1.0)


def _choice(request: EngineRequest) -> Choice:
    if REPEAT in json.dumps(dict(request.params)):
        return Choice(request.text, REASONING)
    if ONE_CHUNK in request.text:
        return Choice([ANSWER * 3], REASONING)
    return Choice(ANSWER if len(request.text) > 100 else "Hello.", REASONING)


@dataclass(frozen=True)
class Score:
    """What an attack read rightly, of how much.

    Attributes:
        reply: Characters of the response, its reasoning included.
        request: Bytes of the request's JSON, without its mask.
        question: Bytes of the user's message in it.
        wrong: Bytes of the request that were read wrongly.
    """

    reply: tuple[int, int]
    request: tuple[int, int]
    question: tuple[int, int]
    wrong: int = 0


def score(reading: Reading, recording: Recording, question: str) -> Score:
    """Compare what was read of an exchange with what was sent."""
    plain = _opened(recording)
    text = json.dumps(question, ensure_ascii=False)[1:-1].encode()
    reply = REASONING + ANSWER
    if not contains(recording, question):
        return Score((0, len(reply)), (0, 0), (0, len(text)))
    right = PartlyKnown.of(plain).xor(reading.request.values)
    places = {place for place, known in enumerate(reading.request.known) if known}
    found = {place for place in places if right.values[place] == 0}
    own = range(plain.index(b'"model"') if plain.startswith(MASK) else 0, len(plain))
    start = plain.index(text)
    return Score(
        reply=(same(reading.reasoning + reading.content, reply), len(reply)),
        request=(len(found & {*own}), len(own)),
        question=(len(found & {*range(start, start + len(text))}), len(text)),
        wrong=len(places - found),
    )


def _opened(recording: Recording) -> bytes:
    fields = recording.fields
    keys = EncryptionKeys(TEST_KEY.decapsulate(fields["cipherText"]), fields["cipherText"])
    return keys.open(fields["encryptedInference"], fields["nonce"])


def contains(recording: Recording, question: str) -> bool:
    """Whether a recorded request contains a question. A probe does not."""
    return json.dumps(question, ensure_ascii=False)[1:-1].encode() in _opened(recording)


def same(read: str, written: str) -> int:
    """The number of characters that were read rightly."""
    return sum(a == b for a, b in zip(read, written, strict=False))


def messages(question: str = QUESTION) -> list[dict[str, Any]]:
    """The messages of the client's request."""
    return [{"role": "user", "content": question}]
