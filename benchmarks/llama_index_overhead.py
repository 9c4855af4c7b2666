"""Measure the cost of a chunk in PremEncrypted, against llama-index-llms-openai-like's OpenAILike.

Both models run in this process with a canned transport that returns the same chunks (`canned`): encrypted for
PremEncrypted, in plaintext for OpenAILike. Both include LlamaIndex's own callbacks, which no LLM can leave out.

    python benchmarks/llama_index_overhead.py [--chunks 2000] [--rounds 9]

Prints µs per chunk of `stream_chat`, and the ratio.
"""

from __future__ import annotations

import sys
from importlib.metadata import version

from canned import MODEL, PROMPT, Clock, answer, arguments, compare, plain, sealed, seconds
from llama_index.core.llms import LLM, ChatMessage
from llama_index.llms.openai_like import OpenAILike

from llama_index_prem import PremEncrypted

#: The highest ratio that passes.
STREAM_LIMIT = 0.40


def streamed(model: LLM) -> int:
    return sum(1 for _ in model.stream_chat([ChatMessage(PROMPT)]))


def text(model: LLM) -> str:
    return "".join(response.delta or "" for response in model.stream_chat([ChatMessage(PROMPT)]))


def main() -> int:
    options = arguments(__doc__)
    chunks = answer(options.chunks)
    mine_clock, their_clock = Clock(), Clock()
    mine = PremEncrypted(**sealed(mine_clock, chunks))
    other = OpenAILike(
        model=MODEL,
        api_key="sk-benchmark",
        api_base="http://127.0.0.1:1/v1",
        is_chat_model=True,
        http_client=plain(their_clock, chunks),
    )
    assert text(mine) == text(other)
    print(
        f"llama-index-llms-openai-like {version('llama-index-llms-openai-like')}; {options.chunks} chunks, "
        f"best of {options.rounds} rounds"
    )
    good = compare(
        "stream_chat, per chunk",
        options.chunks,
        {
            "PremEncrypted (encrypted)": lambda: seconds(mine_clock, lambda: streamed(mine), 1),
            "OpenAILike (plaintext)": lambda: seconds(their_clock, lambda: streamed(other), 1),
        },
        options.rounds,
        STREAM_LIMIT,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
