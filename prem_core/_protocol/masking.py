"""Random characters at the beginning of a request, and a length that tells little.

The chunks of a streamed reply have a known form and the request's nonce. They reveal as many bytes of the request, from
its beginning, as the longest chunk has. With masking these bytes are random, fresh for each attempt. They stand in the
parameter `metadata`, inside the published schema. This stops a reader only: a gateway that sends the request again can
read all of it.

The padding must be random. Known padding, such as spaces, would reveal more of the reply.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prem_core._protocol.request_json import to_json

#: Bytes of random text, at least, before the first byte of the caller's. Most chunks have about 300 bytes. The known
#: end of a longer chunk, one with a whole large tool call, reveals some bytes of the request at its place.
MIN_MASK: Final = 2048

#: The published schema's limits of `metadata`.
MAX_PAIRS: Final = 16
VALUE_LENGTH: Final = 512

#: The names of the members that are added: this and two digits.
PADDING_NAME: Final = "padding-"

_NAME: Final = PADDING_NAME.encode()

#: Bytes of an added member besides its value.
_MEMBER: Final = len(f'"{PADDING_NAME}00":"",')

#: Every byte as one of JSON's four kinds of whitespace. Used where `metadata` has no room.
_WHITESPACE: Final = bytes(b" \t\n\r"[byte % 4] for byte in range(256))


@dataclass(frozen=True, slots=True, repr=False)
class ChatRequest:
    """The parameters of a chat as JSON, in the parts between which each attempt puts its mask.

    Args:
        model: The model's name.
        metadata: The members of the caller's `metadata`, without braces; None if there is no `metadata`.
        room: How many members may be added to `metadata`.
        rest: All other members, without braces. `messages` is the last.
        include_usage: Whether the caller asked for the token counts in a last chunk.
    """

    model: str
    metadata: bytes | None
    room: int
    rest: bytes
    include_usage: bool = False

    @classmethod
    def of(cls, params: Mapping[str, Any], *, whole: bool = False) -> ChatRequest:
        """The request with these parameters: `metadata` is written first, `messages` last.

        Args:
            params: The parameters.
            whole: Leave out what asks for a stream.

        Raises:
            InvalidParameterError: A value cannot be written as JSON.
        """
        left_out = {"metadata", "messages"} | ({"stream", "stream_options"} if whole else set())
        first = {name: params[name] for name in ("metadata",) if name in params}
        last = {name: params[name] for name in ("messages",) if name in params}
        others = {name: value for name, value in params.items() if name not in left_out}
        options = params.get("stream_options")
        include_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        metadata = params.get("metadata", {})
        if not isinstance(metadata, dict):  # from extra_body, unchecked
            return cls(
                str(params.get("model")), None, 0, _members({**first, **others, **last}), include_usage
            )
        return cls(
            model=str(params.get("model")),
            metadata=_members(first).removeprefix(b'"metadata":{')[:-1] if first else None,
            room=max(0, MAX_PAIRS - len(metadata)),
            rest=_members({**others, **last}),
            include_usage=include_usage,
        )

    def plaintext(self, *, masked: bool = False) -> bytes:
        """The JSON to seal; with `masked`, behind fresh random characters.

        The length of a masked request is one of Padmé's buckets (Nikitin et al., "Reducing Metadata Leakage from
        Encrypted Files and Communication with PURBs", 2019): at most 12 % above that of its content.
        """
        metadata = self.metadata or b""
        plain = self.rest if self.metadata is None else b'"metadata":{%b},%b' % (metadata, self.rest)
        if not masked:
            return b"{%b}" % plain
        size = len(plain) + 2
        if not self.room:
            return b"{%b%b}" % (_whitespace(padme(size + MIN_MASK) - size), plain)
        if self.metadata is None:
            size += len('"metadata":{},')
        if not metadata:
            size -= 1  # no comma after the last member that is added
        fill = padme(size + MIN_MASK + MIN_MASK // VALUE_LENGTH * _MEMBER) - size
        pairs, left = divmod(fill, _MEMBER + VALUE_LENGTH)
        pairs = min(self.room, pairs + (left >= _MEMBER))
        characters = min(fill - pairs * _MEMBER, pairs * VALUE_LENGTH)
        text = base64.urlsafe_b64encode(os.urandom(-(-characters * 3 // 4)))[:characters]
        members = [
            b'"%b%02d":"%b"' % (_NAME, number, text[number * VALUE_LENGTH : (number + 1) * VALUE_LENGTH])
            for number in range(pairs)
        ]
        if metadata:
            members.append(metadata)
        # In front, as it is part of the mask where the caller's metadata leaves little room.
        space = _whitespace(fill - pairs * _MEMBER - characters)
        return b'{%b"metadata":{%b},%b}' % (space, b",".join(members), self.rest)


def without_padding(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a masked request without its mask."""
    metadata = params.get("metadata")
    if not isinstance(metadata, dict):
        return params
    kept = {name: value for name, value in metadata.items() if not name.startswith(PADDING_NAME)}
    others = {name: value for name, value in params.items() if name != "metadata"}
    return params if len(kept) == len(metadata) else {**others, **({"metadata": kept} if kept else {})}


def padme(size: int) -> int:
    """The smallest of Padmé's buckets with room for `size` bytes."""
    exponent = size.bit_length() - 1
    free = exponent - exponent.bit_length()
    step = (1 << max(0, free)) - 1
    return (size + step) & ~step


def _members(params: Mapping[str, Any]) -> bytes:
    return to_json(params)[1:-1]


def _whitespace(size: int) -> bytes:
    return os.urandom(size).translate(_WHITESPACE)
