"""Published facts about the models behind Prem's API, for both adapters.

Every fact is published by the model's maker or stated in the service's models list. An unknown model has no profile;
nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prem_core._protocol.assumptions import CONTEXT_WINDOW_NAMES
from prem_core._protocol.response_types import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """Limits and abilities of a model."""

    context_window: int
    """Tokens of prompt and answer together."""
    max_output_tokens: int
    image_inputs: bool = False
    audio_inputs: bool = False
    pdf_inputs: bool = False
    reasoning: bool = False
    """Whether it reasons before it answers."""
    tool_calling: bool = False
    structured_output: bool = False
    """Whether its answers can be made to match a JSON schema."""


#: OpenAI's model card, https://openai.com/index/gpt-oss-model-card/: text only, reasoning with an effort
#: setting, function calling and structured output.
_GPT_OSS = ModelProfile(
    context_window=131_072,
    max_output_tokens=131_072,
    reasoning=True,
    tool_calling=True,
    structured_output=True,
)

_PROFILES = {"openai/gpt-oss-120b": _GPT_OSS, "openai/gpt-oss-20b": _GPT_OSS}


def model_profile(model: str) -> ModelProfile | None:
    """The profile of `model`, or None."""
    return _PROFILES.get(model)


def listed_context_window(models: Iterable[Model], name: str) -> int | None:
    """The context window that the models list states for `name`; None if it states none."""
    for model in models:
        if name != model.id:
            continue
        for field in CONTEXT_WINDOW_NAMES:
            value = getattr(model, field, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
