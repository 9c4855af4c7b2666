"""What the adapter's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from upstream import Upstream

from llama_index_prem import PremEncrypted
from prem_core.enclave import LocalEnclave

MODEL = "openai/gpt-oss-120b"


@pytest.fixture
def llm(enclave: LocalEnclave) -> Callable[..., PremEncrypted]:
    """Makes models that talk to the test enclave."""

    def make(**kwargs: Any) -> PremEncrypted:
        return PremEncrypted(**{"model": MODEL, **enclave.client_options, **kwargs})

    return make


@pytest.fixture
def scripted(upstream: Upstream) -> Iterator[Callable[..., PremEncrypted]]:
    """Makes models whose enclave answers with the given chunks."""
    with LocalEnclave(upstream=upstream.url) as prem:

        def make(*chunks: Any, done: bool = True, **kwargs: Any) -> PremEncrypted:
            if chunks:
                upstream.says(*chunks, done=done)
            return PremEncrypted(**{"model": MODEL, **prem.client_options, "max_retries": 0, **kwargs})

        yield make
