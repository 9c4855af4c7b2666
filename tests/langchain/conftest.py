"""Fixtures of the LangChain tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.cassettes import resealing
from support.scripted_enclave import always

from langchain_prem import ChatPremEncrypted
from prem_core.enclave import LocalEnclave, ScriptedEngine

MODEL = "openai/gpt-oss-120b"


@pytest.fixture
def llm(enclave: LocalEnclave) -> Callable[..., ChatPremEncrypted]:
    """Constructs models that use the test enclave."""

    def make(**kwargs: Any) -> ChatPremEncrypted:
        return ChatPremEncrypted(**{"model": MODEL, **enclave.client_options, **kwargs})

    return make


@pytest.fixture
def scripted(engine: ScriptedEngine, scripted_options: dict[str, Any]) -> Callable[..., ChatPremEncrypted]:
    """Constructs models whose enclave answers with the given chunks."""

    def make(*chunks: Any, truncated: bool = False, **kwargs: Any) -> ChatPremEncrypted:
        engine.respond = always(*chunks, truncated=truncated)
        return ChatPremEncrypted(**{"model": "scripted", **scripted_options, **kwargs})

    return make


@pytest.fixture
def vcr_config() -> dict[str, Any]:
    return {
        "match_on": ["method", "path", "prem_params"],
        "filter_headers": ["authorization"],
        # The suite's benchmark runs the recorded exchange again and again.
        "allow_playback_repeats": True,
    }


@pytest.fixture(autouse=True)
def reseal_cassettes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("vcr"):
        resealing(monkeypatch)


def pytest_recording_configure(config: pytest.Config, vcr: Any) -> None:
    from support.cassettes import same_params

    del config
    vcr.register_matcher("prem_params", same_params)
