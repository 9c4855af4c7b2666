"""Measure what the proxy adds to a chunk: client → proxy → enclave against client → enclave, in one run.

There are three processes: a canned enclave, the proxy, and the client (this one). The direct client is
`PremClient`, which decrypts the chunks itself. Through the proxy there are two clients: a plain HTTP client
that reads OpenAI's events, and the official `openai` client. In the first part the enclave seals all chunks in
advance and sends them as fast as it can. In the second part it sends one every millisecond, which contains the
time.

    python benchmarks/proxy_overhead.py [--chunks 2000] [--rounds 9]

Prints µs per chunk from the first to the last, the ratio, the CPU time of the proxy's process, and the latency
of a single chunk.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import httpx
import openai
from canned import _PRIVATE, MODEL, PROMPT, answer, arguments, chunk

from prem_core import EncryptionKeys, PremClient
from prem_core.proxy import LocalProxy

#: The highest ratio that passes.
LIMIT = 2.0

KEY = "sk_test_benchmark"
DIRECT, PROXIED, OFFICIAL = "PremClient → enclave", "httpx → proxy → enclave", "openai → proxy → enclave"

#: The model whose chunks are sent at intervals, the interval in seconds, and the number of chunks.
PACED, GAP, PACED_CHUNKS = "paced", 0.001, 300

Job = Callable[[str], Iterator[str | None]]


def params(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": True}


# The enclave's process


async def send_answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chunks: list[bytes]
) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    body = json.loads(await reader.readexactly(length))
    keys = EncryptionKeys(_PRIVATE.decapsulate(bytes.fromhex(body["cipherText"])), body["cipherText"])
    nonce = bytes.fromhex(body["nonce"])
    model = json.loads(keys.open(bytes.fromhex(body["encryptedInference"]), nonce))["model"]

    def http_chunk(event: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(event), event)

    def sealed(each: bytes) -> bytes:
        return http_chunk(b"event: data\ndata: %b\n\n" % keys.seal(each, nonce).hex().encode())

    begin = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    if model == PACED:
        writer.write(begin)
        for _ in range(PACED_CHUNKS):
            await asyncio.sleep(GAP)
            writer.write(sealed(json.dumps(chunk({"content": repr(time.perf_counter())})).encode()))
        writer.write(sealed(chunks[-1]))
    else:
        prepared = [sealed(each) for each in chunks]
        writer.write(begin)
        for each in prepared:
            writer.write(each)
            await writer.drain()
    writer.write(http_chunk(b"event: done\ndata: [DONE]\n\n") + b"0\r\n\r\n")


def enclave(pipe: Connection, number: int) -> None:
    """Answer every request with `number` chunks, until the process is terminated."""
    chunks = answer(number)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await send_answer(reader, writer, chunks)
        except asyncio.IncompleteReadError:  # the client disconnected
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


# The proxy's process


def proxy(pipe: Connection, options: dict[str, Any]) -> None:
    """Run the proxy and report its CPU time on request, until the process is terminated."""
    with LocalProxy(**options) as running:
        pipe.send(running.base_url)
        while pipe.recv():
            pipe.send(time.process_time())


def started(target: Callable[..., None], *args: Any) -> tuple[Any, Any, Connection]:
    """Start a process; return it, its first message, and the pipe to it."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(there, *args), daemon=True)
    process.start()
    return process, here.recv(), here


# The client's


def read(client: httpx.Client, url: str, model: str) -> Iterator[str | None]:
    headers = {"authorization": f"Bearer {KEY}"}
    with client.stream("POST", f"{url}/chat/completions", json=params(model), headers=headers) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line[6:])["choices"][0]["delta"].get("content")


def contents(chunks: Any) -> Iterator[str | None]:
    return (each.choices[0].delta.content for each in chunks)


def burst(job: Job, expected: int) -> float:
    """Return the seconds from the first chunk to the last."""
    chunks = job(MODEL)
    next(chunks)
    start = time.perf_counter()
    seen = 1 + sum(1 for _ in chunks)
    took = time.perf_counter() - start
    assert seen == expected, seen
    return took


def latency(job: Job) -> float:
    """Return the median latency in seconds of chunks that are sent one by one."""
    return statistics.median(time.perf_counter() - float(sent) for sent in job(PACED) if sent)


def main() -> int:
    options = arguments(__doc__)
    first, port, _ = started(enclave, options.chunks)
    settings = {
        "gateway_url": f"http://127.0.0.1:{port}",
        "enclave_public_key": bytes(_PRIVATE.public_key()),
    }
    second, url, pipe = started(proxy, settings)

    def spent() -> float:
        pipe.send(True)
        return float(pipe.recv())

    number = options.chunks + 1  # with the chunk of the finish reason
    best = dict.fromkeys((DIRECT, PROXIED, OFFICIAL), float("inf"))
    single = dict(best)
    cpu = float("inf")
    with (
        PremClient(api_key=KEY, **settings) as prem,
        httpx.Client(trust_env=False) as plain,
        openai.OpenAI(api_key=KEY, base_url=url, max_retries=0) as official,
    ):
        jobs: dict[str, Job] = {
            DIRECT: lambda model: contents(prem.chat.completions.create(**params(model))),
            PROXIED: lambda model: read(plain, url, model),
            OFFICIAL: lambda model: contents(official.chat.completions.create(**params(model))),
        }
        for _ in range(options.rounds):
            for name, job in jobs.items():
                before = spent()
                best[name] = min(best[name], burst(job, number))
                if name == PROXIED:
                    cpu = min(cpu, spent() - before)
                single[name] = min(single[name], latency(job))
    second.terminate()
    first.terminate()

    ratio = best[PROXIED] / best[DIRECT]
    figures = ", ".join(f"{name} {took * 1e6 / number:.1f} µs" for name, took in best.items())
    print(f"openai {openai.__version__}; {options.chunks} chunks, best of {options.rounds} rounds")
    print(f"stream, per chunk: {figures}, ratio {ratio:.3f} (limit {LIMIT:.2f})")
    print(f"CPU of the proxy, per chunk: {cpu * 1e6 / number:.1f} µs")
    figures = ", ".join(f"{name} {took * 1e6:.0f} µs" for name, took in single.items())
    print(f"latency of a single chunk: {figures}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
