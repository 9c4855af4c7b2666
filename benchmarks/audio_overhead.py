"""Measure the cost of encrypting and sending a 25 MB recording, against libsodium's encryption and hex encoding alone.

The recording goes through `PremClient.audio.transcriptions.create` into a transport that reads the body block
by block and discards it, like a socket. Memory is the peak of the process (`ru_maxrss`) minus its value with
the recording already in memory. Each side is measured in a separate process.

    python benchmarks/audio_overhead.py [--megabytes 25] [--rounds 5]

Prints the peak as a multiple of the recording, and the time as a ratio.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from binascii import hexlify
from collections.abc import Callable

import httpx
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from prem_core import EncryptionKeys, PremClient
from prem_core._crypto.aead import new_nonce
from prem_core._crypto.xwing import PrivateKey

MEGABYTE = 1024 * 1024
BLOCK = 64 * 1024

#: The limits of this project.
MEMORY_LIMIT = 2.5
TIME_LIMIT = 2.0


def client() -> PremClient:
    private = PrivateKey(bytes(32))

    def handle(request: httpx.Request) -> httpx.Response:
        fields = b""
        for block in request.stream:  # type: ignore[union-attr]
            if b'"encryptedFile":' not in fields:
                fields += block
        sealed = fields.split(b'"cipherText":"')[1].split(b'"')[0]
        keys = EncryptionKeys(private.decapsulate(bytes.fromhex(sealed.decode())), sealed.decode())
        nonce = new_nonce()
        data = {"encryptedResponse": keys.seal(b'{"text": "Hello."}', nonce).hex(), "nonce": nonce.hex()}
        return httpx.Response(200, json={"status": 200, "data": data, "message": None, "env": "development"})

    class Discarding(httpx.BaseTransport):
        """Reads the body block by block; `httpx.MockTransport` would read it completely first."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return handle(request)

    return PremClient(
        api_key="sk_test_benchmark",
        enclave_public_key=private.public_key(),
        http_client=httpx.Client(transport=Discarding()),
    )


def ours(recording: bytes) -> None:
    made = client()
    assert made.audio.transcriptions.create(file=("r.wav", recording)).text == "Hello."


def floor(recording: bytes) -> None:
    """Encrypt, and encode in hex block by block, without JSON and HTTP."""
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(recording, None, new_nonce(), bytes(32))
    for start in range(0, len(sealed), BLOCK):
        hexlify(memoryview(sealed)[start : start + BLOCK])


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(job: Callable[[bytes], None], size: int, rounds: int) -> dict[str, float]:
    small = os.urandom(BLOCK)
    job(small)  # imports and other one-time work are not part of the result
    recording = os.urandom(size)
    before = peak()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        job(recording)
        best = min(best, time.perf_counter() - start)
    return {"memory": (peak() - before) / size, "seconds": best}


def in_new_process(name: str, size: int, rounds: int) -> dict[str, float]:
    """Measure in a new process, because a peak never goes down."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, float] = json.loads(pool.apply(_measured, (name, size, rounds)))
        return found


def _measured(name: str, size: int, rounds: int) -> str:
    return json.dumps(measure({"ours": ours, "floor": floor}[name], size, rounds))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = options.megabytes * MEGABYTE
    mine = in_new_process("ours", size, options.rounds)
    least = in_new_process("floor", size, options.rounds)
    ratio = mine["seconds"] / least["seconds"]
    print(
        f"{options.megabytes} MB recording: peak extra memory {mine['memory']:.2f} times its size "
        f"(limit {MEMORY_LIMIT}; encryption and hex alone {least['memory']:.2f})"
    )
    print(
        f"time: {mine['seconds'] * 1e3:.0f} ms, encryption and hex alone {least['seconds'] * 1e3:.0f} ms, "
        f"ratio {ratio:.2f} (limit {TIME_LIMIT})"
    )
    return 0 if mine["memory"] <= MEMORY_LIMIT and ratio <= TIME_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
