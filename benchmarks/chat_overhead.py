"""Measure the cost of a chunk and a call in ChatPremEncrypted, against langchain_openai.ChatOpenAI.

Both models run in this process with a canned transport that returns the same chunks (`canned`): encrypted for
ChatPremEncrypted, in plaintext for ChatOpenAI.

    python benchmarks/chat_overhead.py [--chunks 2000] [--rounds 9]

Prints µs per chunk of `stream`, µs per `invoke` (with a fresh KEM), and the ratios.
"""

from __future__ import annotations

import sys

import openai
from canned import MODEL, PROMPT, Clock, answer, arguments, compare, plain, sealed, seconds
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI

from langchain_prem import ChatPremEncrypted

#: The highest ratios that pass.
STREAM_LIMIT = 0.20
INVOKE_LIMIT = 0.60

OURS, THEIRS = "ChatPremEncrypted (encrypted)", "ChatOpenAI (plaintext)"


def streamed(model: BaseChatModel) -> int:
    return sum(1 for _ in model.stream(PROMPT))


def text(model: BaseChatModel) -> str:
    return "".join(chunk.text for chunk in model.stream(PROMPT))


def main() -> int:
    options = arguments(__doc__)
    chunks = answer(options.chunks)
    mine_clock, their_clock = Clock(), Clock()
    mine = ChatPremEncrypted(**sealed(mine_clock, chunks))
    other = ChatOpenAI(
        model=MODEL,
        api_key="sk-benchmark",
        base_url="http://127.0.0.1:1/v1",
        http_client=plain(their_clock, chunks),
    )
    # The last chunks differ (usage, finish reason); the text must not.
    assert text(mine) == text(other)
    assert mine.invoke(PROMPT).content == other.invoke(PROMPT).content
    print(
        f"langchain-openai with openai {openai.__version__}; {options.chunks} chunks, best of {options.rounds} rounds"
    )
    good = compare(
        "stream, per chunk",
        options.chunks,
        {
            OURS: lambda: seconds(mine_clock, lambda: streamed(mine), 1),
            THEIRS: lambda: seconds(their_clock, lambda: streamed(other), 1),
        },
        options.rounds,
        STREAM_LIMIT,
    )
    good &= compare(
        "invoke, per call",
        1,
        {
            OURS: lambda: seconds(mine_clock, lambda: mine.invoke(PROMPT), 50),
            THEIRS: lambda: seconds(their_clock, lambda: other.invoke(PROMPT), 50),
        },
        options.rounds,
        INVOKE_LIMIT,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
