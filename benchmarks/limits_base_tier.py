"""Send 200 prompts against the BASE tier's limits, and report errors, retries and requests in flight.

The embedded enclave has the limits of the BASE tier (5 concurrent requests; a bucket of 5 requests, refilled with 1 a
second). The prompts are short, so that its 38,000 tokens a minute do not matter. One process, one model object. The
tier needs at least 195 seconds for 200 requests.

    python benchmarks/limits_base_tier.py [--prompts 200] [--ways batch,abatch,fan-out,streams]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from langchain_core.language_models import BaseChatModel

from langchain_prem import ChatPremEncrypted
from prem_core import Limits
from prem_core.enclave import LocalEnclave
from prem_core.enclave.quota import LimitReached, Metered, Tier


class WatchedTier(Tier):
    """The BASE tier, which counts the requests it admits and rejects."""

    def __init__(self) -> None:
        super().__init__()
        self.rejected = self.open = self.most_open = 0

    @contextmanager
    def request(self, metered: Metered = "tokens") -> Iterator[None]:
        """As `Tier.request`."""
        # Counted whether admitted or not: a rejected request is open, too, until it is answered.
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            with super().request(metered):
                yield
        except LimitReached:
            self.rejected += 1
            raise
        finally:
            self.open -= 1


def batch(llm: BaseChatModel, prompts: list[str]) -> list[object]:
    return llm.batch(prompts, return_exceptions=True)


def abatch(llm: BaseChatModel, prompts: list[str]) -> list[object]:
    return asyncio.run(llm.abatch(prompts, return_exceptions=True))


def fan_out(llm: BaseChatModel, prompts: list[str]) -> list[object]:
    async def run() -> list[object]:
        return await asyncio.gather(*map(llm.ainvoke, prompts), return_exceptions=True)

    return asyncio.run(run())


def streams(llm: BaseChatModel, prompts: list[str]) -> list[object]:
    async def one(prompt: str) -> object:
        return [chunk async for chunk in llm.astream(prompt)]

    async def run() -> list[object]:
        return await asyncio.gather(*map(one, prompts), return_exceptions=True)

    return asyncio.run(run())


WAYS: dict[str, Callable[[BaseChatModel, list[str]], list[object]]] = {
    "batch": batch,
    "abatch": abatch,
    "fan-out": fan_out,
    "streams": streams,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--ways", default=",".join(WAYS))
    options = parser.parse_args()
    good = True
    for way in options.ways.split(","):
        tier, limits = WatchedTier(), Limits()
        with LocalEnclave(tier=tier) as prem:
            llm = ChatPremEncrypted(model="openai/gpt-oss-120b", limits=limits, **prem.client_options)
            start = time.monotonic()
            answers = WAYS[way](llm, [f"Hello, {n}!" for n in range(options.prompts)])
            took = time.monotonic() - start
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        stats = limits.stats
        good &= not failed and len(answers) == options.prompts and tier.most_open <= 5
        print(
            f"{way}: {len(answers) - len(failed)} of {options.prompts} answered in {took:.1f} s, "
            f"{len(failed)} errors, {stats.retries} retries, {stats.rate_limited} answers of 429 "
            f"({tier.rejected} sent by the tier), at most {tier.most_open} in flight",
            flush=True,
        )
        for kind in {type(error).__name__ for error in failed}:
            print(f"  {kind}: {sum(type(error).__name__ == kind for error in failed)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
