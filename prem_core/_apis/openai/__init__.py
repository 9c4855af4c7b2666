"""OpenAI's API: chat completions, completions, models and audio."""
