"""What the reference pages show of docstrings that griffe alone would not read."""

from __future__ import annotations

import runpy
from typing import Any

import griffe
import pytest
from support.documentation import DOCS

from prem_core._client.options import AsyncClientOptions, SyncClientOptions
from prem_core._protocol.request_schema import ChatOptions, TranscriptionOptions


@pytest.fixture(scope="module")
def loaded() -> griffe.Object:
    """`prem_core`, as the site's extension presents it."""
    reader = runpy.run_path(str(DOCS / "_site" / "docstrings.py"))["Reader"]()
    package = griffe.load("prem_core", extensions=griffe.load_extensions(reader), docstring_parser="google")
    assert isinstance(package, griffe.Object)
    return package


@pytest.mark.parametrize(
    ("documented", "options"),
    [
        ("_client.chat.Completions.create", ChatOptions),
        ("_client.audio.Transcriptions.create", TranscriptionOptions),
        ("_client.client.PremClient", SyncClientOptions),
        ("_client.client.AsyncPremClient", AsyncClientOptions),
    ],
)
def test_the_parameters_of_a_request_and_the_options_of_a_client_are_listed(
    documented: str, options: Any, loaded: griffe.Object
) -> None:
    docstring = loaded[documented].docstring
    sections = [
        section for section in docstring.parsed if section.kind is griffe.DocstringSectionKind.parameters
    ]
    listed = {parameter.name for section in sections for parameter in section.value}
    assert options.__optional_keys__ <= listed
    assert not any(name.startswith("*") for name in listed)


def test_the_example_of_the_client_is_read_as_code(loaded: griffe.Object) -> None:
    docstring = loaded["_client.client.PremClient"].docstring
    assert griffe.DocstringSectionKind.examples in {section.kind for section in docstring.parsed}


def test_a_message_lists_its_keys_and_marks_those_that_are_optional(loaded: griffe.Object) -> None:
    docstring = loaded["_protocol.request_schema.UserMessage"].docstring
    (section,) = (each for each in docstring.parsed if each.kind is griffe.DocstringSectionKind.attributes)
    assert {each.name: each.description for each in section.value} == {
        "role": "",
        "content": "",
        "name": "Optional.",
    }
