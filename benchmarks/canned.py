"""Share a canned transport, which answers with the same chunks encrypted or in plaintext, and its clock.

The time spent in the transport is measured separately and subtracted on both sides. (On our side it includes
the work of the enclave: sealing two thousand chunks under the request's nonce.) Rounds alternate and the best
of each side counts, because machines are noisy. Only the ratio of the two is a result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx

from prem_core import EncryptionKeys
from prem_core._crypto.xwing import PrivateKey

MODEL = "openai/gpt-oss-120b"
PROMPT = "Summarise the attached discharge letter in plain words. " * 8

_PRIVATE = PrivateKey(bytes(32))


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
    chunked = [chunk({"role": "assistant", "content": f" word{i}"}) for i in range(chunks)]
    return [json.dumps(one).encode() for one in [*chunked, chunk({}, "stop")]]


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
    """Counts the seconds spent in the canned transport."""

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


class Events(httpx.SyncByteStream):
    """Yields one event at a time, like a network that delivers each token immediately."""

    def __init__(self, events: Iterable[bytes]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._events)


def sealed(clock: Clock, chunks: list[bytes]) -> dict[str, Any]:
    """Return arguments for one of our models. The answer is `chunks`, encrypted; without stream, it is `completion`."""

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        keys = EncryptionKeys(_PRIVATE.decapsulate(bytes.fromhex(body["cipherText"])), body["cipherText"])
        nonce = bytes.fromhex(body["nonce"])
        params = json.loads(keys.open(bytes.fromhex(body["encryptedInference"]), nonce))
        if not params.get("stream"):
            data = {"encryptedResponse": keys.seal(completion(), nonce).hex(), "nonce": nonce.hex()}
            return httpx.Response(
                200, json={"status": 200, "data": data, "message": None, "env": "development"}
            )
        events = [b"event: data\ndata: " + keys.seal(one, nonce).hex().encode() + b"\n\n" for one in chunks]
        events.append(b"event: done\ndata: [DONE]\n\n")
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Events(events))

    return {
        "model": MODEL,
        "api_key": "sk_test_benchmark",
        "enclave_public_key": _PRIVATE.public_key(),
        "http_client": httpx.Client(transport=httpx.MockTransport(clock.around(handle))),
    }


def plain(clock: Clock, chunks: list[bytes]) -> httpx.Client:
    """Return a client of an OpenAI-compatible server that answers with `chunks`; without stream, with `completion`."""
    events = [b"data: " + one + b"\n\n" for one in chunks]
    events.append(b"data: [DONE]\n\n")

    def handle(request: httpx.Request) -> httpx.Response:
        if not json.loads(request.content).get("stream"):
            return httpx.Response(200, headers={"content-type": "application/json"}, content=completion())
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Events(events))

    return httpx.Client(transport=httpx.MockTransport(clock.around(handle)))


def arguments(doc: str | None) -> argparse.Namespace:
    """Parse the arguments of the command: `chunks` and `rounds`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def seconds(clock: Clock, job: Callable[[], object], times: int) -> float:
    """Seconds that one `job` takes, without the transport's."""
    clock.spent = 0.0
    start = time.perf_counter()
    for _ in range(times):
        job()
    return (time.perf_counter() - start - clock.spent) / times


def compare(name: str, unit: float, jobs: dict[str, Callable[[], float]], rounds: int, limit: float) -> bool:
    """Print the best of `rounds` for both jobs, ours first, and their ratio; return whether it is within `limit`.

    Args:
        name: The label of the measurement.
        unit: The number of chunks or calls in one run of a job.
        jobs: For each side's name, a function that returns its seconds.
        rounds: How often each job runs, in turn.
        limit: The highest ratio that passes.
    """
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for side, job in jobs.items():
            best[side] = min(best[side], job())
    mine, other = best.values()
    ratio = mine / other
    figures = ", ".join(f"{side} {took * 1e6 / unit:.1f} µs" for side, took in best.items())
    print(f"{name}: {figures}, ratio {ratio:.3f} (limit {limit:.2f})")
    return ratio <= limit
