"""What is publicly known of the models behind Prem's API.

Only facts a model's maker publishes; an unknown model has no profile rather than a guessed one. Pass
``profile={…}`` for a model that is not here.
"""

from __future__ import annotations

from langchain_core.language_models import ModelProfile

#: gpt-oss: 131,072 tokens of context, text only, reasoning with an effort setting, function calling and
#: structured output (OpenAI's model card, https://openai.com/index/gpt-oss-model-card/).
_GPT_OSS: ModelProfile = {
    "max_input_tokens": 131_072,
    "max_output_tokens": 131_072,
    "text_inputs": True,
    "image_inputs": False,
    "audio_inputs": False,
    "pdf_inputs": False,
    "video_inputs": False,
    "text_outputs": True,
    "image_outputs": False,
    "audio_outputs": False,
    "video_outputs": False,
    "reasoning_output": True,
    "tool_calling": True,
    "tool_choice": True,
    "structured_output": True,
    "image_tool_message": False,
    "pdf_tool_message": False,
}

PROFILES: dict[str, ModelProfile] = {
    "openai/gpt-oss-120b": _GPT_OSS,
    "openai/gpt-oss-20b": _GPT_OSS,
}


def profile_of(model: str) -> ModelProfile | None:
    """A copy of the model's profile, or None."""
    profile = PROFILES.get(model)
    return None if profile is None else profile.copy()
