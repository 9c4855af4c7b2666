"""The pytest fixture `prem_enclave`: an embedded enclave whose replies a test writes down.

pytest loads this module in every run, so it imports nothing but pytest until the fixture is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from prem_core.enclave import LocalEnclave


@pytest.fixture
def prem_enclave(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalEnclave]:
    """A running `LocalEnclave`, a fresh one for each test, which gives the replies the test sets.

    The environment leads every client to it, so that the code under test needs no arguments::

        def test_greeting(prem_enclave):
            prem_enclave.reply("Hello")
            assert ChatPremEncrypted(model="openai/gpt-oss-120b").invoke("Hi").text == "Hello"
    """
    try:
        from prem_core.enclave import LocalEnclave
    except ImportError as error:
        pytest.fail(str(error), pytrace=False)
    with LocalEnclave(replies=()) as prem:
        for name, value in prem.environment.items():
            monkeypatch.setenv(name, value)
        yield prem
