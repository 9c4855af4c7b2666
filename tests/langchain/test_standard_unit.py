"""langchain-tests' unit suite."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_prem import ChatPremEncrypted


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[ChatPremEncrypted]:
        return ChatPremEncrypted

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "openai/gpt-oss-120b", "api_key": "sk_test_unit"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {"PREM_API_KEY": "sk_test_environment"},
            {"model": "openai/gpt-oss-120b"},
            {"api_key": "sk_test_environment"},
        )

    @pytest.mark.xfail(
        strict=True,
        raises=ValueError,
        reason="langchain-core loads only the classes on its own list, and 'all' means that list; the round trip "
        "with ours named, as users do it, is in test_copies.py",
    )
    def test_serdes(self, model: Any, snapshot: Any) -> None:
        super().test_serdes(model, snapshot)
