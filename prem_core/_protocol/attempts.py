"""The attempts of one request: when to send it again, and when not."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

from prem_core import _errors as errors
from prem_core._crypto.keys import EncryptionKeys
from prem_core._crypto.xwing import PublicKey
from prem_core._protocol.attestation.settings import Verdict
from prem_core._protocol.charge import Charge
from prem_core._protocol.error_body import is_key_rotation_error, is_stream_refusal
from prem_core._protocol.nonce_reuse import REPLY_FORMS, ProbeSubject, warn_of_nonce_reuse
from prem_core._protocol.protection import Protection
from prem_core._protocol.retry import TOTAL_TIMEOUT_MESSAGE, Retries, rate_limit_interval, shared_backoff
from prem_core._protocol.steps import Acquire, Attest, FetchKey, FlowSettings, Probe, Release, Sleep, Step


class Attempts:
    """The attempts of one sealed request: creates a secret per attempt and decides what to do after a failure.

    Args:
        settings: See `FlowSettings`.
        subject: What the request is, if it is sent only where replies have a nonce of their own; None for a probe.
        estimate: What each attempt is expected to be charged.
    """

    __slots__ = ("_estimate", "_refetched", "_retries", "_settings", "_subject", "_verdict", "charge", "key")

    def __init__(
        self, settings: FlowSettings, subject: ProbeSubject | None = None, estimate: Charge | None = None
    ) -> None:
        self._settings = settings
        self._subject = subject
        self._estimate = estimate or Charge()
        self._retries = Retries(settings.retry, settings.clock)
        self._refetched = False
        self._verdict: Verdict | None = None
        #: The enclave's key that the attempt is sealed to.
        self.key: PublicKey
        #: The charge of the attempt.
        self.charge = self._estimate

    def start(self) -> Generator[Step, Any, EncryptionKeys]:
        """Start an attempt: wait for a permit, and return its secret, a fresh one unless the client reuses one.

        Raises:
            AttestationError: The enclave's attestation fails, and the settings require it.
            NonceReuseError: Replies come under their request's nonce, and the settings refuse them.
        """
        settings, subject = self._settings, self._subject
        first = True
        while True:
            # Before waiting for the permit: both can take seconds, and the probe needs a permit, too.
            if subject is not None and settings.attestation.mode != "off":
                self._verdict = yield Attest(subject.model)
            if subject is not None and settings.nonce_reuse == "error":
                yield Probe(subject)
            self.charge = dataclasses.replace(self._estimate)
            self.key = yield Acquire(settings.keys is None, self.charge)
            if self._is_prepared(check_age=first):
                return settings.keys or EncryptionKeys.encapsulate(self.key)
            first = False
            self.charge.refund()
            yield Release()

    def _is_prepared(self, *, check_age: bool) -> bool:
        """Whether the outcomes count for the key that the request will be sealed to.

        While the request waited for its permit, the key may have been rotated, or the verdict have become too old.

        Args:
            check_age: Whether the verdict's age counts. It counts once: a queue that is longer than
                `attestation_max_age` must not keep the request out forever.

        Raises:
            NonceReuseError: Replies come under their request's nonce, and the settings refuse them.
        """
        settings, verdict = self._settings, self._verdict
        if verdict is not None:
            if verdict.key != settings.fingerprint(self.key):
                return False
            if check_age and not verdict.counts(settings.attestation, settings.wall_clock()):
                return False
        if self._subject is not None and settings.nonce_reuse == "error":
            own = REPLY_FORMS.own_nonce(settings.gateway_url, self.key, self._subject)
            if own is False:
                raise errors.NonceReuseError
            return own is not None
        return True

    def check_nonce(self, *, own: bool) -> None:
        """Act on a reply under its request's nonce, as `nonce_reuse` says.

        Raises:
            NonceReuseError: It says "error". Later requests fail before they are sent.
        """
        settings = self._settings
        if own or settings.nonce_reuse == "allow":
            return
        if settings.nonce_reuse == "warn":
            warn_of_nonce_reuse()
            return
        if self._subject is not None:
            REPLY_FORMS.record(settings.gateway_url, self.key, self._subject, own=False)
        raise errors.NonceReuseError

    def protection(self, *, own_nonce: bool, support_id: str | None = None) -> Protection:
        """How the reply to this attempt was protected."""
        keys = self._settings.keys
        report = self._verdict.report if self._verdict is not None else None
        return Protection(
            key_fingerprint=keys.enclave_fingerprint if keys is not None else self.key.fingerprint(),
            key_source="encryption_keys"
            if keys is not None
            else "pinned"
            if self._settings.pinned
            else "fetched",
            attested=report is not None,
            key_bound=report is not None and report.key_bound,
            reply_nonce="own" if own_nonce else "request's",
            support_id=support_id,
        )

    def after(self, error: errors.APIError, *, delivered: bool = False) -> Generator[Step, Any, None]:
        """Release the permit and wait, if another attempt makes sense. Otherwise raise.

        Args:
            error: How the attempt failed.
            delivered: Whether the caller already received a chunk. A retry would repeat it.

        Raises:
            APIError: `error`, or a timeout if the next attempt would start after the deadline.
            EnclaveKeyError: The enclave cannot decrypt requests sealed with the pinned or refetched key.
        """
        settings = self._settings
        if not delivered and (
            isinstance(error, errors.APIStatusError)
            or (isinstance(error, errors.APIConnectionError) and not error.request_sent)
        ):
            self.charge.refund()
        if not delivered and is_key_rotation_error(error):
            if self._refetched or settings.pinned or settings.keys:
                raise errors.EnclaveKeyError(self._key_rotation_message()) from error
            self._refetched = True
            # Fetched before the permit is released; otherwise the next caller would seal to the same old key.
            yield FetchKey(stale=self.key)
            yield Release()
            return
        delay = None if delivered else self._retries.delay(error)
        sent = isinstance(error, errors.APIConnectionError) and error.request_sent
        if delay is not None and sent and not settings.retry_after_send:
            if _in_time(settings, delay):
                error.add_note(
                    "The service may have accepted the request, so it was not sent again. "
                    "With retry_after_send=True it is."
                )
            delay = None
        pause = shared_backoff(error, delay)
        rate_limited = isinstance(error, errors.APIStatusError) and error.status_code == 429
        if self.charge.stream and is_stream_refusal(error):
            yield Release(pause, rate_limited, stream_refused=True)
        else:
            yield Release(pause, rate_limited, rate_limit_interval(error) if pause is not None else None)
        if delay is None:
            raise error
        check_time(settings, delay, error)
        if pause is None:  # a pause already delays every caller, including this one
            yield Sleep(delay)

    def _key_rotation_message(self) -> str:
        if self._settings.keys:
            return "the enclave no longer accepts these encryption_keys: generate new ones"
        if self._settings.pinned:
            return (
                "the enclave no longer has the private key of the pinned enclave_public_key: "
                "check the enclave's new key, then pin it"
            )
        return "the enclave could not open the request, even after its key was fetched again"


def _in_time(settings: FlowSettings, delay: float) -> bool:
    """Whether an attempt after `delay` seconds would start before the deadline."""
    return settings.deadline is None or settings.clock() + delay < settings.deadline


def check_time(settings: FlowSettings, delay: float, error: errors.APIError) -> None:
    """Fail now if the next attempt would start after the deadline.

    Raises:
        APITimeoutError: The next attempt would start after the deadline.
    """
    deadline = settings.deadline
    if deadline is None or _in_time(settings, delay):
        return
    if isinstance(error, errors.APITimeoutError) and settings.clock() >= deadline:
        raise error
    raise errors.APITimeoutError(TOTAL_TIMEOUT_MESSAGE) from error
