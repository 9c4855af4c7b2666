"""What a chunk and a call cost in ChatPremEncrypted, beside langchain_openai.ChatOpenAI.

Both models run in this process, against a canned transport that gives the same chunks: sealed for ours,
plaintext for ChatOpenAI. What the transport itself takes (for ours, sealing two thousand chunks under the
request's nonce, which is the enclave's work) is timed apart and taken off on both sides. The machine is
noisy, so rounds alternate and the best of each side counts; only their ratio is a claim.

    python benchmarks/chat_overhead.py [--chunks 2000] [--rounds 9]

Prints µs per chunk of `stream`, µs per `invoke` (a fresh KEM included), and the ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import httpx
import openai
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI

from langchain_prem import ChatPremEncrypted
from prem_core import EncryptionKeys
from prem_core._kem import PrivateKey

MODEL = "openai/gpt-oss-120b"
PROMPT = "Summarise the attached discharge letter in plain words. " * 8

#: The ratios this project holds itself to.
STREAM_LIMIT = 0.20
INVOKE_LIMIT = 0.60


def chunk(delta: dict[str, object], finish_reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1764004858,
        "model": MODEL,
        "choices": [choice],
        "usage": None,
    }


def answer(chunks: int) -> list[bytes]:
    said = [chunk({"role": "assistant", "content": f" word{i}"}) for i in range(chunks)]
    return [json.dumps(one).encode() for one in [*said, chunk({}, "stop")]]


def completion() -> bytes:
    message = {"role": "assistant", "content": "The patient may go home on Friday. " * 10}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 90, "completion_tokens": 80, "total_tokens": 170}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1764004858,
            "model": MODEL,
            "choices": [choice],
            "usage": usage,
        }
    ).encode()


class Clock:
    """Time spent in the canned transport, in seconds."""

    def __init__(self) -> None:
        self.spent = 0.0

    def around(self, handler: Callable[[object], object]) -> Callable[[object], object]:
        def timed(request: object) -> object:
            start = time.perf_counter()
            try:
                return handler(request)
            finally:
                self.spent += time.perf_counter() - start

        return timed


class Pieces(httpx.SyncByteStream):
    """One event a piece, as a network that sends each token at once would deliver them."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)


def ours(clock: Clock, chunks: list[bytes]) -> ChatPremEncrypted:
    private = PrivateKey(bytes(32))

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        keys = EncryptionKeys(private.decapsulate(bytes.fromhex(body["cipherText"])), body["cipherText"])
        nonce = bytes.fromhex(body["nonce"])
        params = json.loads(keys.open(bytes.fromhex(body["encryptedInference"]), nonce))
        if not params.get("stream"):
            data = {"encryptedResponse": keys.seal(completion(), nonce).hex(), "nonce": nonce.hex()}
            return httpx.Response(
                200, json={"status": 200, "data": data, "message": None, "env": "development"}
            )
        events = [b"event: data\ndata: " + keys.seal(one, nonce).hex().encode() + b"\n\n" for one in chunks]
        events.append(b"event: done\ndata: [DONE]\n\n")
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces(events))

    return ChatPremEncrypted(
        model=MODEL,
        api_key="sk_test_benchmark",
        enclave_public_key=private.public_key(),
        http_client=httpx.Client(transport=httpx.MockTransport(clock.around(handle))),
    )


def theirs(clock: Clock, chunks: list[bytes]) -> ChatOpenAI:
    events = [b"data: " + one + b"\n\n" for one in chunks]
    events.append(b"data: [DONE]\n\n")

    def handle(request: httpx.Request) -> httpx.Response:
        if not json.loads(request.content).get("stream"):
            return httpx.Response(200, headers={"content-type": "application/json"}, content=completion())
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces(events))

    return ChatOpenAI(
        model=MODEL,
        api_key="sk-benchmark",
        base_url="http://127.0.0.1:1/v1",
        http_client=httpx.Client(transport=httpx.MockTransport(clock.around(handle))),
    )


def streamed(model: BaseChatModel) -> int:
    return sum(1 for _ in model.stream(PROMPT))


def text(model: BaseChatModel) -> str:
    return "".join(piece.text for piece in model.stream(PROMPT))


def seconds(clock: Clock, job: Callable[[], object], times: int) -> float:
    clock.spent = 0.0
    start = time.perf_counter()
    for _ in range(times):
        job()
    return (time.perf_counter() - start - clock.spent) / times


def compare(name: str, unit: float, jobs: dict[str, Callable[[], float]], rounds: int, limit: float) -> bool:
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for side, job in jobs.items():
            best[side] = min(best[side], job())
    mine, other = best["prem"], best["openai"]
    ratio = mine / other
    print(
        f"{name}: ChatPremEncrypted (encrypted) {mine * 1e6 / unit:.1f} µs, "
        f"ChatOpenAI (plaintext) {other * 1e6 / unit:.1f} µs, ratio {ratio:.3f} (limit {limit:.2f})"
    )
    return ratio <= limit


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    chunks = answer(options.chunks)
    mine_clock, their_clock = Clock(), Clock()
    mine, other = ours(mine_clock, chunks), theirs(their_clock, chunks)
    # The last chunks differ (usage, finish reason); the answer must not.
    assert text(mine) == text(other)
    assert mine.invoke(PROMPT).content == other.invoke(PROMPT).content
    print(
        f"langchain-openai with openai {openai.__version__}; {options.chunks} chunks, best of {options.rounds} rounds"
    )
    good = compare(
        "stream, per chunk",
        options.chunks,
        {
            "prem": lambda: seconds(mine_clock, lambda: streamed(mine), 1),
            "openai": lambda: seconds(their_clock, lambda: streamed(other), 1),
        },
        options.rounds,
        STREAM_LIMIT,
    )
    good &= compare(
        "invoke, per call",
        1,
        {
            "prem": lambda: seconds(mine_clock, lambda: mine.invoke(PROMPT), 50),
            "openai": lambda: seconds(their_clock, lambda: other.invoke(PROMPT), 50),
        },
        options.rounds,
        INVOKE_LIMIT,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
