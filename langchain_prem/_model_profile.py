"""Published facts about a model, as LangChain's profile.

An unknown model has none; pass ``profile={…}`` for it.
"""

from __future__ import annotations

from langchain_core.language_models import ModelProfile

from prem_core._adapters.model_profiles import model_profile


def profile_of(model: str) -> ModelProfile | None:
    """The model's profile, or None."""
    known = model_profile(model)
    if known is None:
        return None
    return {
        "max_input_tokens": known.context_window,
        "max_output_tokens": known.max_output_tokens,
        "text_inputs": True,
        "image_inputs": known.image_inputs,
        "audio_inputs": known.audio_inputs,
        "pdf_inputs": known.pdf_inputs,
        "video_inputs": False,
        "text_outputs": True,
        "image_outputs": False,
        "audio_outputs": False,
        "video_outputs": False,
        "reasoning_output": known.reasoning,
        "tool_calling": known.tool_calling,
        "tool_choice": known.tool_calling,
        "structured_output": known.structured_output,
        # They are moved to a user message.
        "image_tool_message": known.image_inputs,
        "pdf_tool_message": known.pdf_inputs,
    }
