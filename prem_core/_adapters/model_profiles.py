"""What is publicly known of the models behind Prem's API; for both adapters.

The rule of this file: only facts that a model's maker publishes, or that the service's own list states.
Of an unknown model nothing is known, rather than something guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prem_core._protocol.assumptions import CONTEXT_WINDOW_NAMES
from prem_core._protocol.response_types import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What a model takes and gives."""

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
    """Whether it holds to a JSON schema."""


#: OpenAI's model card, https://openai.com/index/gpt-oss-model-card/: text only, reasoning with an effort
#: setting, function calling and structured output.
_GPT_OSS = ModelProfile(
    context_window=131_072,
    max_output_tokens=131_072,
    reasoning=True,
    tool_calling=True,
    structured_output=True,
)

_FACTS = {"openai/gpt-oss-120b": _GPT_OSS, "openai/gpt-oss-20b": _GPT_OSS}


def model_profile(model: str) -> ModelProfile | None:
    """What is known of `model`, or None."""
    return _FACTS.get(model)


def listed_context_window(models: Iterable[Model], name: str) -> int | None:
    """The context window that the models list states for the model called `name`; None where it does not."""
    for model in models:
        if name not in (model.request_name, model.id):
            continue
        for field in CONTEXT_WINDOW_NAMES:
            value = getattr(model, field, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None
