"""What a flow asks of its driver, and the settings of a flow."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.attestation.settings import Attestation
from prem_core._protocol.charge import Charge
from prem_core._protocol.nonce_reuse import NonceReuse, ProbeSubject
from prem_core._protocol.request_body import Body
from prem_core._protocol.retry import RetryPolicy


class Step:
    """Something for the driver to do."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Acquire(Step):
    """Wait for a permit, keep it, and return the enclave's public key (None where `key` is False).

    An unknown key is fetched before waiting for the permit, so that waiting for the key does not occupy a permit. The
    key is read again after the permit is granted, because it may have been rotated meanwhile.
    """

    key: bool = True
    charge: Charge = field(default_factory=Charge)


@dataclass(frozen=True, slots=True)
class FetchKey(Step):
    """Return the enclave's public key. Fetch it again if the cached key is still `stale`."""

    stale: PublicKey


@dataclass(frozen=True, slots=True)
class Release(Step):
    """Close the open response and release the permit, before another attempt or an error.

    Args:
        pause: Seconds for which no request may start; None for no pause.
        rate_limited: Whether the service answered 429.
        spacing: After a 429, seconds that should lie between the next requests; None otherwise.
        stream_refused: Whether the service refused a stream because another one is open. The pause is then one for
            streams only.
    """

    pause: float | None = None
    rate_limited: bool = False
    spacing: float | None = None
    stream_refused: bool = False


@dataclass(frozen=True, slots=True)
class Sleep(Step):
    """Wait this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Probe(Step):
    """Find out under which nonce these replies come, if this process does not know it yet; see `probe`."""

    subject: ProbeSubject


@dataclass(frozen=True, slots=True)
class Attest(Step):
    """Return the `Verdict` on the attestation of this model's enclave, a new one if none counts; see `attest`."""

    model: str


@dataclass(frozen=True, slots=True)
class RunInThread(Step):
    """Call this and return its result. It takes too long to run on an event loop."""

    call: Callable[[], Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Send(Step):
    """Send this request and return the `ResponseHead`. A response that is still open is closed first.

    Args:
        method: The HTTP method.
        party: The destination: "gateway", "enclave", or "collateral" for a vendor's service. The last gets no API key.
        path: The path below the party's URL; for "collateral" the whole URL.
        body: The request's body.
        query: The query parameters.
        read_timeout: Seconds to wait for the next bytes of the response's body, where shorter than the call's timeout.
        whole: Whether the response starts only when the whole answer is ready. Without a timeout of the caller's, the
            default for such a response applies.
    """

    method: str
    party: Literal["gateway", "enclave", "collateral"]
    path: str
    body: Body | None = field(default=None, repr=False)
    query: Mapping[str, str] = field(default_factory=dict)
    read_timeout: float | None = None
    whole: bool = False


class Read(Step):
    """Return the next bytes of the open response; ``b""`` at its end."""

    __slots__ = ()


#: One shared instance, because this step occurs for every network read.
READ: Final = Read()


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and headers of a response. Header names are lower case; `received` is in seconds since the epoch."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    received: float = 0.0


Flow = Generator[Any, Any, None]


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """The settings of a client, and of a call, that a flow needs.

    Args:
        retry: How often to retry, and after which delays.
        max_buffer_size: Maximum bytes of one event or one body in memory.
        keys: One KEM result reused for all requests; None generates a fresh one per request.
        pinned: Whether the caller set the enclave's key. It is then never fetched.
        gateway_url: The gateway, for what is remembered of its replies.
        nonce_reuse: What to do about replies under their request's nonce.
        request_masking: Whether a chat begins with random characters.
        retry_after_send: Whether to send a request again that the service may have accepted.
        attestation: How the enclave's attestation is verified.
        chunk_timeout: Seconds between the chunks of a stream, or between the bytes of a body; None for no limit.
        deadline: The time by `clock` at which the call fails; None for no deadline.
        clock: A monotonic clock, in seconds.
        wall_clock: The time in seconds since the epoch, by which attestation is judged.
    """

    retry: RetryPolicy
    max_buffer_size: int
    keys: EncryptionKeys | None = None
    pinned: bool = False
    gateway_url: str = ""
    nonce_reuse: NonceReuse = "warn"
    request_masking: bool = True
    retry_after_send: bool = False
    attestation: Attestation = field(default_factory=Attestation)
    chunk_timeout: float | None = None
    deadline: float | None = None
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time

    @property
    def asks_for_streams(self) -> bool:
        """Whether a caller's stream is asked for as a stream."""
        return self.nonce_reuse != "error"

    def fingerprint(self, key: PublicKey | None) -> str | None:
        """The fingerprint of the enclave's key that requests are sealed to; None if it is not known.

        Args:
            key: The key; None if `keys` are used instead of it.
        """
        if self.keys is not None:
            return self.keys.enclave_fingerprint
        return key.fingerprint() if key is not None else None
