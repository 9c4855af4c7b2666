"""Anthropic's Messages API, as a translation to a chat of Prem's API and back."""

from prem_core._apis.messages.api import MessagesApi

__all__ = ["MessagesApi"]
