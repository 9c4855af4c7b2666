"""A client's settings for attestation, and the verdicts that this process remembers."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from prem_core import _config
from prem_core._errors import AttestationError, ConfigurationError, PremError

if TYPE_CHECKING:
    from prem_core.attestation.policy import VerificationPolicy
    from prem_core.attestation.report import AttestationReport
    from prem_core.attestation.roots import TrustedRoots

AttestationMode = Literal["off", "warn", "require"]

#: How many verdicts a process keeps. A forgotten one is made again.
MAX_VERDICTS: Final = 1_000

#: Seconds for which "warn" does not repeat an attestation that failed.
FAILED_SECONDS: Final = 300.0

DEFAULT_MAX_AGE: Final = 3600.0


class AttestationWarning(UserWarning):
    """The enclave's attestation failed, and requests are sent all the same: `attestation` is "warn"."""


_warned = False


def warn_of_failure(error: PremError) -> None:
    """Warn, once per process, that an attestation failed."""
    global _warned
    if _warned:
        return
    _warned = True
    check = f"the check {error.check!r}" if isinstance(error, AttestationError) else "fetching the evidence"
    warnings.warn(
        f"the enclave's attestation failed at {check}: {error}. Requests are sent all the same; set "
        "attestation='require' (or PREM_ATTESTATION=require) to send nothing without a proof, or 'off' to verify "
        "nothing",
        AttestationWarning,
        stacklevel=2,
    )


class _Scope:
    """What a verdict depends on in the settings. Compared often, so its hash is computed once."""

    __slots__ = ("_hash", "_values")

    def __init__(self, *values: Hashable) -> None:
        self._values = values
        self._hash = hash(values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Scope) and self._values == other._values)


class ById:
    """Stands for an object that cannot be hashed: equal only to itself."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value  # kept, so that no other object gets its id

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self._value is other._value


def hashable(value: Any) -> Hashable:
    """`value`, or what stands for it if it cannot be hashed."""
    try:
        hash(value)
    except TypeError:
        return ById(value)
    else:
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Attestation:
    """The settings of a client for attestation.

    Args:
        mode: "off" verifies nothing, "warn" warns where it fails, "require" sends nothing then.
        policy: Decides whether genuine evidence is acceptable; None for `PremPolicy()`.
        roots: The roots that are trusted; None for the vendors' own.
        max_age: Seconds for which a verdict counts.
        require_key_binding: Whether evidence that does not commit to the enclave's key is refused.
        cache_dir: The folder in which fetched documents are kept; None to keep them in memory only.
        collateral: A folder of documents that are used instead of fetched ones.
    """

    mode: AttestationMode = "off"
    policy: VerificationPolicy | None = None
    roots: TrustedRoots | None = None
    max_age: float = DEFAULT_MAX_AGE
    require_key_binding: bool = False
    cache_dir: str | None = None
    collateral: str | None = None
    scope: _Scope = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scope = _Scope(hashable(self.policy), self.roots, self.require_key_binding, self.collateral)
        object.__setattr__(self, "scope", scope)

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Attestation:
        """The settings from a client's options.

        Raises:
            ConfigurationError: An option is not valid, or the extra that the verification needs is not installed.
        """
        mode = check_attestation(options["attestation"] or _config.from_environment("attestation") or "off")
        policy, roots = options["attestation_policy"], options["attestation_roots"]
        if policy is not None or roots is not None:
            _check_types(policy, roots)
        if not isinstance(options["require_key_binding"], bool):
            raise ConfigurationError(
                f"require_key_binding must be True or False, not {options['require_key_binding']!r}"
            )
        max_age = _config.positive("attestation_max_age", options["attestation_max_age"])
        if mode == "off":
            for name in ("attestation_policy", "require_key_binding"):
                if options[name]:
                    raise ConfigurationError(
                        f"{name} has no effect with attestation='off': set attestation='require'"
                    )
        else:
            check_extra()
        return cls(
            mode=mode,
            policy=policy,
            roots=roots,
            max_age=max_age,
            require_key_binding=options["require_key_binding"],
            cache_dir=_folder("attestation_cache_dir", options["attestation_cache_dir"], make=mode != "off"),
            collateral=_folder("attestation_collateral", options["attestation_collateral"]),
        )


def check_attestation(mode: str) -> AttestationMode:
    """`mode`, if it is one of the three.

    Raises:
        ConfigurationError: It is not.
    """
    for known in get_args(AttestationMode):
        if mode == known:
            return known  # type: ignore[no-any-return]
    raise ConfigurationError(f"attestation must be 'off', 'warn' or 'require', not {mode!r}")


def check_extra() -> None:
    """Check that everything that a verification may need is installed.

    Raises:
        ConfigurationError: It is not.
    """
    missing = [
        package
        for module, package in (("dcap_qvl", "dcap-qvl"), ("jwt", "pyjwt"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ConfigurationError(
            f'attestation needs {" and ".join(missing)}: pip install "prem-encrypted[attestation]"'
        )


def _check_types(policy: Any, roots: Any) -> None:
    from prem_core.attestation.policy import VerificationPolicy
    from prem_core.attestation.roots import TrustedRoots

    if policy is not None and (isinstance(policy, type) or not isinstance(policy, VerificationPolicy)):
        raise ConfigurationError(
            "attestation_policy must be an object with a method verify(report), such as PremPolicy()"
        )
    if roots is not None and not isinstance(roots, TrustedRoots):
        raise ConfigurationError("attestation_roots must be a prem_core.attestation.TrustedRoots")


def _folder(name: str, path: Any, *, make: bool = False) -> str | None:
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigurationError(f"{name} must be the path of a folder, not {path!r}")
    folder = os.path.abspath(os.fsdecode(path))
    try:
        if make:
            os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{name}: {folder} cannot be made: {error.strerror}") from None
    if name == "attestation_collateral" and not os.path.isdir(folder):
        raise ConfigurationError(f"{name}: {folder} is not a folder")
    return folder


@dataclass(frozen=True, eq=False)
class Verdict:
    """The outcome of one attestation.

    Attributes:
        key: The fingerprint of the enclave's key that was current; None if it is not known.
        at: When it was made, in seconds since the epoch.
        report: What the evidence shows; None if the attestation failed.
    """

    key: str | None
    at: float
    report: AttestationReport | None

    def counts(self, attestation: Attestation, now: float) -> bool:
        """Whether it still counts for a client with these settings."""
        if now < self.at:  # the clock was set back
            return False
        if self.report is None:
            return attestation.mode == "warn" and now - self.at < min(FAILED_SECONDS, attestation.max_age)
        return now - self.at < attestation.max_age and now < self.report.valid_until.timestamp()


class Verdicts:
    """The latest verdict for each gateway, enclave key, model, and settings that it depends on."""

    def __init__(self) -> None:
        self._verdicts: OrderedDict[tuple[str, str | None, str, _Scope], Verdict] = OrderedDict()

    def find(
        self, gateway_url: str, key: str | None, model: str, attestation: Attestation, now: float
    ) -> Verdict | None:
        """The verdict that still counts, or None."""
        verdict = self._verdicts.get((gateway_url, key, model, attestation.scope))
        return verdict if verdict is not None and verdict.counts(attestation, now) else None

    def record(self, gateway_url: str, model: str, attestation: Attestation, verdict: Verdict) -> None:
        """Remember a verdict."""
        self._verdicts[gateway_url, verdict.key, model, attestation.scope] = verdict
        if len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)

    def clear(self) -> None:
        """Forget all verdicts."""
        self._verdicts.clear()


#: The verdicts of this process.
VERDICTS: Final = Verdicts()
