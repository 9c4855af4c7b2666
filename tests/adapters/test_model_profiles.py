import dataclasses

import pytest

from prem_core import Model
from prem_core._adapters.model_profiles import listed_context_window, model_profile
from prem_core._protocol.assumptions import CONTEXT_WINDOW_NAMES


@pytest.mark.parametrize("model", ["openai/gpt-oss-120b", "openai/gpt-oss-20b"])
def test_a_known_model_has_a_profile(model):
    facts = model_profile(model)
    assert facts.context_window == facts.max_output_tokens == 131_072
    assert facts.reasoning
    assert facts.tool_calling
    assert facts.structured_output
    assert not facts.image_inputs


def test_a_profile_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        model_profile("openai/gpt-oss-120b").context_window = 5


def test_an_unknown_model_has_no_profile():
    assert model_profile("somebody/new") is None


@pytest.mark.parametrize("field", CONTEXT_WINDOW_NAMES)
def test_a_listed_context_window_is_found_by_the_name_to_request_by(field):
    models = [Model(id="other", **{field: 5}), Model(id="7", model="m", **{field: 9})]
    assert listed_context_window(models, "m") == 9
    assert listed_context_window(models, "7") is None


@pytest.mark.parametrize("value", [None, 0, -1, "9", True, 9.5])
def test_a_listed_value_that_is_no_token_count_is_ignored(value):
    assert listed_context_window([Model(id="m", context_length=value)], "m") is None
