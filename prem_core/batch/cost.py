"""What a batch costs, by the prices in the models list."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prem_core._config import positive
from prem_core._errors import ConfigurationError

if TYPE_CHECKING:
    from prem_core import Model, Usage

#: Bytes of a prompt for each token of it, as an estimate before the service has counted.
BYTES_PER_TOKEN: Final = 4


class Price(NamedTuple):
    """The price of a model: for one token of a prompt, and for one of an answer."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The price of so many tokens."""
        return self.prompt * prompt_tokens + self.completion * completion_tokens


def read_prices(models: Iterable[Model]) -> dict[str, Price]:
    """The price of each model that has one in the list.

    A price is ``price_config.confidential.default`` with `prompt_price_per_k` and `completion_price_per_k`, for a
    thousand tokens. An entry of any other form has no price.
    """
    prices = {}
    for model in models:
        found: Any = model.price_config
        for name in ("confidential", "default"):
            found = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            prompt = _number(found.get("prompt_price_per_k"))
            completion = _number(found.get("completion_price_per_k"))
            if prompt is not None and completion is not None:
                prices[model.id] = Price(prompt / 1000, completion / 1000)
    return prices


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number < math.inf else None


class CostMeter:
    """Adds up the cost of the answers, and says whether another request fits under a maximum.

    A request reserves the estimated price of its prompt and of its token limit; without a limit, of an average answer.
    The answer's own count replaces that, so the maximum can be exceeded only by what the estimates are too low for.

    Args:
        prices: By model.
        maximum: No further request starts when this would be exceeded; None for no maximum.

    Raises:
        ConfigurationError: `maximum` is not a positive number.
    """

    def __init__(self, prices: Mapping[str, Price], maximum: float | None = None) -> None:
        if maximum is not None:
            positive("max_cost", maximum)
        self._prices = prices
        self._maximum = maximum
        self._reserved = 0.0
        self._answers = 0
        self._tokens = 0
        self.spent = 0.0

    @property
    def has_prices(self) -> bool:
        """Whether the cost of any model is known."""
        return bool(self._prices)

    def estimate(self, model: str, size: int, max_tokens: int | None) -> float:
        """The estimated price of a request whose line has `size` bytes.

        Raises:
            ConfigurationError: There is a maximum, and the model has no price.
        """
        price = self._prices.get(model)
        if price is None:
            if self._maximum is None:
                return 0.0
            raise ConfigurationError(f"max_cost cannot be kept: the models list has no price for {model!r}")
        tokens = max_tokens if max_tokens is not None else self._tokens / max(1, self._answers)
        return price.of(size / BYTES_PER_TOKEN, tokens)

    def reserve(self, estimate: float) -> bool:
        """Reserve the price of a request. False if it does not fit."""
        if self._maximum is not None and self.spent + self._reserved + estimate > self._maximum:
            return False
        self._reserved += estimate
        return True

    def release(self, estimate: float) -> None:
        """Give back a reserved price, after the answers of the request were added."""
        self._reserved -= estimate

    def spend(self, model: str, usage: Usage | None) -> bool:
        """Add the price of an answer. False if it has none."""
        if usage is None:
            return False
        self._answers += 1
        self._tokens += usage.completion_tokens
        price = self._prices.get(model)
        if price is None:
            return False
        self.spent += price.of(usage.prompt_tokens, usage.completion_tokens)
        return True
