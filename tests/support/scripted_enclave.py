"""Replies that a test writes down chunk by chunk, for `ScriptedEngine`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prem_core.enclave.engines.scripted import ScriptedReply


def always(*chunks: Any, truncated: bool = False) -> Callable[[Any], Any]:
    """`ScriptedEngine.respond` that answers every request with these chunks; without an end if `truncated`."""

    async def respond(request: Any) -> ScriptedReply:
        return ScriptedReply(chunks=chunks, truncated=truncated)

    return respond
