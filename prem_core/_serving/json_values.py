"""The limit on the JSON values of one request body."""

from __future__ import annotations

import itertools
import re
from typing import Final

#: JSON values of one body. Python needs about 100 bytes for each, and a body of 32 MB can hold ten million.
MAX_JSON_VALUES: Final = 500_000

#: A string, or a character before a value. A string that is not closed ends with the text: the search stays linear.
_JSON_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{\[,]', re.DOTALL)


def has_too_many_values(data: bytes) -> bool:
    """Whether a JSON text holds more than `MAX_JSON_VALUES` values, without parsing it.

    Empty lists and objects count twice.
    """
    if sum(map(data.count, (b"{", b"[", b","))) <= MAX_JSON_VALUES:
        return False
    # Perhaps the commas are those of a long text.
    tokens = (1 for token in _JSON_TOKEN.finditer(data) if data[token.start()] != ord('"'))
    return next(itertools.islice(tokens, MAX_JSON_VALUES, None), None) is not None
