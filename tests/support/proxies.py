"""Proxies and parameters for their tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from prem_core.enclave import LocalEnclave
from prem_core.proxy import LocalProxy
from support.waiting import eventually as eventually

#: Starts a proxy in front of an enclave, with the options given; it is stopped after the test.
Run = Callable[..., LocalProxy]

MODEL = "openai/gpt-oss-120b"
WHISPER = "openai/whisper-large-v3"


def in_front_of(prem: LocalEnclave, **options: Any) -> LocalProxy:
    """A proxy that asks `prem`."""
    return LocalProxy(**{"gateway_url": prem.gateway_url, "enclave_url": prem.enclave_url, **options})


def chat(content: str = "Say hello.", **more: Any) -> dict[str, Any]:
    """A chat's parameters."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="this system does not list descriptors"
)
