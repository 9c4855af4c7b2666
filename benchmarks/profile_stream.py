"""What one streamed chat costs in Python calls: how many, in which files, in which order.

Counts the calls (and generator resumptions) in this project's packages with `sys.setprofile`, on the calling thread:
until the first chunk is delivered, and for each further chunk. The client is warm: one call has been made before, so
imports, the enclave's key and the connection are not counted. The service is the embedded enclave.

    python benchmarks/profile_stream.py [--calls]

Prints a table, and for each way of streaming its files in the order in which they are first entered. `--calls` also
lists every call until the first chunk. The limits apply to `ChatPremEncrypted.stream`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from llama_index.core.llms import ChatMessage

import langchain_prem
import llama_index_prem
import prem_core
from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core import AsyncPremClient, PremClient
from prem_core.enclave import LocalEnclave

MODEL = "openai/gpt-oss-120b"
PROMPT = "Context: The clinic opens at eight and closes at five. Question: When does the clinic open?"

#: The limits this project holds itself to: files and calls to the first chunk, calls for a further chunk.
FILE_LIMIT, CALL_LIMIT, CHUNK_LIMIT = 14, 85, 12

_ROOT = Path(prem_core.__file__).parent.parent
_PACKAGES = tuple(
    os.fspath(Path(package.__file__ or "").parent) + os.sep
    for package in (prem_core, langchain_prem, llama_index_prem)
)
_COMPREHENSIONS = frozenset({"<dictcomp>", "<listcomp>", "<setcomp>"})


@dataclass
class Profile:
    """The calls of one stream: one list until the first chunk, and one for each chunk after it.

    Comprehensions are not counted: from Python 3.12 on they are no calls.
    """

    spans: list[list[str]] = field(default_factory=lambda: [[]])

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(_PACKAGES) and code.co_name not in _COMPREHENSIONS:
            path = Path(code.co_filename).relative_to(_ROOT).as_posix()
            self.spans[-1].append(f"{path} {code.co_qualname}")

    @property
    def first(self) -> list[str]:
        """The calls until the first chunk."""
        return self.spans[0]

    @property
    def files(self) -> list[str]:
        """The files entered until the first chunk, in order."""
        return list(dict.fromkeys(call.partition(" ")[0] for call in self.first))

    @property
    def further(self) -> int:
        """The calls of a further chunk: the median, because now and then a read brings two chunks or none."""
        counts = sorted(map(len, self.spans[1:-2]))  # the last ones end the stream
        return counts[len(counts) // 2]


def profiled(stream: Callable[[], Iterator[Any]]) -> Profile:
    profile = Profile()
    sys.setprofile(profile)
    try:
        for _ in stream():
            profile.spans.append([])
    finally:
        sys.setprofile(None)
    return profile


async def aprofiled(stream: Callable[[], AsyncIterator[Any]]) -> Profile:
    profile = Profile()
    sys.setprofile(profile)
    try:
        async for _ in stream():
            profile.spans.append([])
    finally:
        sys.setprofile(None)
    return profile


def measure(prem: LocalEnclave) -> dict[str, Profile]:
    llm = ChatPremEncrypted(model=MODEL, **prem.client_options)
    index_llm = PremEncrypted(model=MODEL, **prem.client_options)
    message: Any = {"role": "user", "content": PROMPT}

    with PremClient(**prem.client_options) as client:
        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "ChatPremEncrypted.stream": lambda: llm.stream(PROMPT),
            "PremEncrypted.stream_chat": lambda: index_llm.stream_chat([ChatMessage(PROMPT)]),
            "PremClient": lambda: iter(
                client.chat.completions.create(model=MODEL, messages=[message], stream=True)
            ),
        }
        measured = {}
        for name, way in ways.items():
            for _ in way():  # warm
                pass
            measured[name] = profiled(way)

    async def asynchronous() -> None:
        async with AsyncPremClient(**prem.client_options) as client:

            async def chunks() -> AsyncIterator[Any]:
                async for chunk in await client.chat.completions.create(
                    model=MODEL, messages=[message], stream=True
                ):
                    yield chunk

            async def responses() -> AsyncIterator[Any]:
                async for response in await index_llm.astream_chat([ChatMessage(PROMPT)]):
                    yield response

            ways: dict[str, Callable[[], AsyncIterator[Any]]] = {
                "ChatPremEncrypted.astream": lambda: llm.astream(PROMPT),
                "PremEncrypted.astream_chat": responses,
                "AsyncPremClient": chunks,
            }
            for name, way in ways.items():
                async for _ in way():
                    pass
                measured[name] = await aprofiled(way)

    asyncio.run(asynchronous())
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", action="store_true", help="list every call until the first chunk")
    options = parser.parse_args()
    with LocalEnclave() as prem:
        measured = measure(prem)
    print(f"{'':28}{'files':>7}{'calls':>7}{'functions':>11}{'per further chunk':>19}")
    for name, profile in measured.items():
        first = profile.first
        print(f"{name:28}{len(profile.files):7}{len(first):7}{len(set(first)):11}{profile.further:19}")
    print(f"{'limits (stream)':28}{FILE_LIMIT:7}{CALL_LIMIT:7}{'':11}{CHUNK_LIMIT:19}")
    for name, profile in measured.items():
        print(f"\n{name}, until the first chunk:")
        if options.calls:
            print(*(f"    {call}" for call in profile.first), sep="\n")
        else:
            for path in profile.files:
                print(f"{sum(call.startswith(path + ' ') for call in profile.first):7}  {path}")
    held = measured["ChatPremEncrypted.stream"]
    within = len(held.files) <= FILE_LIMIT and len(held.first) <= CALL_LIMIT and held.further <= CHUNK_LIMIT
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
