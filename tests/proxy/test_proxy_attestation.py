"""`LocalProxy` with attestation: OpenAI's client gets the answer, or an error before the prompt is sent."""

from __future__ import annotations

import openai
import pytest
from support.proxies import StartProxy, chat

from prem_core._protocol.attestation.settings import VERDICTS
from prem_core.enclave import Exchange, LocalEnclave

CHAT = "/rvenc/chat/completions"


def test_the_proxy_verifies_attestation_before_it_sends_a_prompt(start_proxy: StartProxy) -> None:
    VERDICTS.clear()
    exchanges: list[Exchange] = []
    with LocalEnclave(respond=lambda request: "Hello", on_exchange=exchanges.append) as prem:
        proxy = start_proxy(
            prem, attestation="require", attestation_roots=prem.attestation_roots, max_retries=0
        )
        with openai.OpenAI(base_url=proxy.base_url, api_key=prem.api_key, max_retries=0) as client:
            assert client.chat.completions.create(**chat()).choices[0].message.content == "Hello"
            answer = client.chat.completions.with_raw_response.create(**chat())
            assert "attested=yes; key-bound=no" in answer.headers["x-prem-protection"]
            assert [each.path for each in exchanges][-1] == CHAT
            assert proxy.log.latest()[0].attempts == 1
            VERDICTS.clear()
            exchanges.clear()
            prem.attestation_faults = ["wrong_nonce"]
            with pytest.raises(openai.APIStatusError) as refused:
                client.chat.completions.create(**chat())
    assert refused.value.status_code == 502
    assert refused.value.code == "attestation_failed"
    assert CHAT not in [each.path for each in exchanges]
