"""Proxies in front of embedded enclaves, and requests to them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy

#: Starts a proxy in front of an enclave, with options. It is stopped after the test.
StartProxy = Callable[..., LocalProxy]

MODEL = "openai/gpt-oss-120b"
WHISPER = "openai/whisper-large-v3"


def proxy_for(prem: LocalEnclave, **options: Any) -> LocalProxy:
    """A proxy in front of `prem`."""
    return LocalProxy(**{"gateway_url": prem.gateway_url, "enclave_url": prem.enclave_url, **options})


def chat(content: str = "Say hello.", **more: Any) -> dict[str, Any]:
    """The parameters of a chat."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}


def headers(prem: LocalEnclave) -> dict[str, str]:
    """The headers of a request with the API key of `prem`."""
    return {"authorization": f"Bearer {prem.api_key}"}


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Check that every thread that was started in the block has ended when it ends."""
    before = set(threading.enumerate())
    yield
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith("prem-")}


def descriptors() -> int:
    """The number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="this system does not list descriptors"
)
