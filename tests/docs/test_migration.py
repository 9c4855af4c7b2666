"""The tables of docs/migration.md against the packages they speak of."""

from __future__ import annotations

import pickle
import re

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai.utils import to_openai_message_dicts
from support.documentation import DOCS, section

import prem_core
import prem_core.proxy
from langchain_prem import ChatPremEncrypted
from llama_index_prem import PremEncrypted
from prem_core import _config
from prem_core._client.options import DEFAULTS
from prem_core._crypto import keyfile
from prem_core.cli import COMMANDS

PAGE = DOCS / "migration.md"

FRAMEWORKS = [
    pytest.param("From ChatOpenAI", ChatOpenAI, BaseChatModel, ChatPremEncrypted, id="langchain"),
    pytest.param("From llama-index-llms-openai", OpenAI, FunctionCallingLLM, PremEncrypted, id="llama-index"),
]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's first table, its head left out."""
    table = section(PAGE, title).strip().split("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split(" |")] for row in table.splitlines()[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


@pytest.mark.parametrize(("title", "theirs", "base", "ours"), FRAMEWORKS)
def test_the_migration_table_covers_every_field_of_the_other_model(
    title: str, theirs: type, base: type, ours: type
) -> None:
    del ours
    listed = [names(row[0])[0] for row in rows(title)]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(theirs.model_fields) - set(base.model_fields)


@pytest.mark.parametrize(("title", "theirs", "base", "ours"), FRAMEWORKS)
def test_the_migration_table_names_the_right_field(title: str, theirs: type, base: type, ours: type) -> None:
    del theirs, base
    for first, becomes, *_ in rows(title):
        (name,) = names(first)
        if becomes == "same":
            assert name in ours.model_fields
        elif becomes == "not offered":
            assert name not in ours.model_fields
        else:
            assert set(names(becomes)) <= set(ours.model_fields)
            assert name not in ours.model_fields


@pytest.mark.parametrize(("title", "theirs", "base", "ours"), FRAMEWORKS)
def test_every_setting_in_the_migration_table_exists(
    title: str, theirs: type, base: type, ours: type
) -> None:
    known = {*theirs.model_fields, *ours.model_fields, *dir(ours), *base.model_fields}
    for _, _, remark in rows(title):
        for name in names(remark.replace("=", "")):
            assert name in known or name.isupper()


def test_every_name_of_the_typescript_sdk_maps_to_an_existing_name() -> None:
    variables = {name for group in _config.VARIABLES.values() for name in group} | {keyfile.KEK_VARIABLE}
    attributes = dir(prem_core.APIStatusError(""))
    known = {*DEFAULTS, *prem_core.__all__, *prem_core.proxy.__all__, *attributes, *variables}
    table = rows("From the TypeScript SDK")
    for _, becomes, *_ in table:
        for name in names(becomes):
            top, _, rest = name.partition(".")
            assert top in known
            assert not rest or hasattr(getattr(prem_core, top), rest)
    named = " ".join(row[0] for row in table)
    for option in ("apiKey", "clientKEK", "encryptionKeys", "requestTimeoutMs", "maxBufferSize"):
        assert f"`{option}`" in named
    assert {"createRvencClient", "generateEncryptionKeys"} <= set(re.findall(r"\w+", named))
    assert "proxy" in COMMANDS


def test_the_statements_on_chat_openai_are_true() -> None:
    with pytest.warns(UserWarning, match="foo"):
        theirs = ChatOpenAI(model="gpt-4o", api_key="sk-none", foo=1)
    assert theirs.model_kwargs == {"foo": 1}
    assert theirs.bind_tools([], parallel_tool_calls=False).kwargs["parallel_tool_calls"] is False
    with pytest.raises(TypeError):
        pickle.dumps(theirs)

    ours = ChatPremEncrypted(model="m", api_key="sk_test_x")
    with pytest.raises(ValueError, match="foo"):
        ChatPremEncrypted(model="m", foo=1)
    assert ours.bind_tools([], parallel_tool_calls=False).kwargs["parallel_tool_calls"] is False
    assert b"sk_test_x" not in pickle.dumps(ours)


def test_the_statements_on_llms_openai_are_true() -> None:
    theirs = OpenAI(model="gpt-4o", api_key="sk-none", max_tokens=7, additional_kwargs={"seed": 1}, foo=1)
    assert theirs.temperature == 0.1
    sent = theirs._get_model_kwargs(max_tokens=5, seed=2, stream=True)
    assert (sent["max_tokens"], sent["seed"]) == (7, 1)
    assert "stream_options" not in sent
    assert "foo" not in sent
    assert not hasattr(theirs, "foo")
    cut = ToolCallBlock(tool_call_id="1", tool_name="pay", tool_kwargs='{"amount": 10')
    answer = ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=[cut]))
    assert theirs.get_tool_calls_from_response(answer)[0].tool_kwargs == {"amount": 10}
    thought = ChatMessage(
        role=MessageRole.ASSISTANT, blocks=[ThinkingBlock(content="so"), TextBlock(text="hi")]
    )
    assert to_openai_message_dicts([thought]) == [{"role": "assistant", "content": "hi"}]
    with pytest.raises(ValueError, match="Unknown model"):
        _ = OpenAI(model="someone/else", api_key="sk-none").metadata

    with pytest.raises(ValueError, match="foo"):
        PremEncrypted(model="m", foo=1)
    assert PremEncrypted(model="someone/else", context_window=8000).metadata.context_window == 8000
