"""What is publicly known of a model, as LangChain's profile.

Pass ``profile={…}`` for a model of which nothing is known.
"""

from __future__ import annotations

from langchain_core.language_models import ModelProfile

from prem_core._adapters.model_profiles import model_profile


def profile_of(model: str) -> ModelProfile | None:
    """The model's profile, or None."""
    facts = model_profile(model)
    if facts is None:
        return None
    return {
        "max_input_tokens": facts.context_window,
        "max_output_tokens": facts.max_output_tokens,
        "text_inputs": True,
        "image_inputs": facts.image_inputs,
        "audio_inputs": facts.audio_inputs,
        "pdf_inputs": facts.pdf_inputs,
        "video_inputs": False,
        "text_outputs": True,
        "image_outputs": False,
        "audio_outputs": False,
        "video_outputs": False,
        "reasoning_output": facts.reasoning,
        "tool_calling": facts.tool_calling,
        "tool_choice": facts.tool_calling,
        "structured_output": facts.structured_output,
        # The published schema: tool messages hold text only.
        "image_tool_message": False,
        "pdf_tool_message": False,
    }
