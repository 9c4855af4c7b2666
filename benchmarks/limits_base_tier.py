"""200 prompts against the BASE tier's limits: no error, no more than five at once, and how many were refused.

The embedded enclave limits as the BASE tier does (5 requests at once, 5 in the bucket, 1 a second), with the prompts
kept short: its 38,000 tokens a minute are not what is tried here. One process, one model object. From an empty
bucket the service lets 200 requests in within 195 seconds at best.

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
    """The BASE tier, counting what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.admitted = self.refused = self.open = self.most_open = 0

    @contextmanager
    def request(self, metered: Metered = "tokens") -> Iterator[None]:
        """As `Tier.request`."""
        # Counted whether admitted or not: a refused request is on its way too, until it has its answer.
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            with super().request(metered):
                self.admitted += 1
                yield
        except LimitReached:
            self.refused += 1
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
            f"({tier.refused} given), at most {tier.most_open} in flight",
            flush=True,
        )
        for kind in {type(error).__name__ for error in failed}:
            print(f"  {kind}: {sum(type(error).__name__ == kind for error in failed)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
