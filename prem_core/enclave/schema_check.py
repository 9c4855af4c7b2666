"""The published schemas: checking bodies against them, and the envelopes they describe.

The rule of this file: what is said about a body names a place and a rule, both taken from the schema. No
value of the body is repeated, and no name that only the body has: a finding about sealed parameters
leaves the enclave in the clear.
"""

from __future__ import annotations

import functools
import json
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

SchemaName = Literal[
    "audio-request",
    "audio-transcription-params",
    "audio-translation-params",
    "audio-translation-result",
    "chat-chunk",
    "chat-inference-params",
    "chat-request",
    "error-envelope",
    "response-envelope",
]

#: More findings than this say nothing new, and an envelope should stay readable.
MAX_PROBLEMS: Final = 20

#: Parameters that other APIs have and the published schema has not. Only these are named when they
#: turn up: any other unknown name is the sender's own text.
_OTHER_APIS: Final = frozenset(
    {
        "best_of",
        "chat_template_kwargs",
        "extra_body",
        "include_reasoning",
        "max_output_tokens",
        "min_p",
        "parallel_tool_calls",
        "reasoning",
        "repetition_penalty",
        "thinking",
        "top_k",
        "user",
    }
)

_RULES: Final[Mapping[str, str]] = {
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "minItems": "must have at least {} items",
    "maxItems": "must have at most {} items",
    "maxLength": "must be at most {} characters long",
    "maxProperties": "must have at most {} entries",
    "pattern": "must match {}",
}


class Problem(NamedTuple):
    """One finding: where (``messages.0.role``; empty for the whole body) and what must hold there."""

    path: str
    rule: str


class _Schema(NamedTuple):
    validator: Draft202012Validator
    names: frozenset[str]  # every property name the schema knows, at any depth


@functools.cache
def _schema(name: SchemaName) -> _Schema:
    text = Path(__file__).with_name("schemas").joinpath(f"{name}.schema.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    return _Schema(Draft202012Validator(schema), frozenset(_property_names(schema)))


def _property_names(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", ())
        for keyword, part in schema.items():
            if keyword != "examples":
                yield from _property_names(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _property_names(part)


def problems(schema_name: SchemaName, instance: Any) -> list[Problem]:
    """What keeps `instance` from satisfying a published schema, at most `MAX_PROBLEMS` findings.

    A key of the instance that the schema does not know stands as ``*`` in a path.
    """
    schema = _schema(schema_name)
    found = (_problem(error, schema.names) for error in _explained(schema.validator.iter_errors(instance)))
    return list(dict.fromkeys(found))[:MAX_PROBLEMS]


def property_names(schema_name: SchemaName) -> frozenset[str]:
    """Every property name a published schema has, at any depth."""
    return _schema(schema_name).names


def _explained(errors: Iterable[ValidationError]) -> Iterator[ValidationError]:
    """`errors` with every failed ``oneOf`` replaced by what is wrong with the form that was meant."""
    for error in errors:
        if error.validator == "oneOf" and error.context:
            yield from _explained(_meant(error.context))
        else:
            yield error


def _meant(context: Sequence[ValidationError]) -> list[ValidationError]:
    forms: dict[Any, list[ValidationError]] = {}
    for error in context:
        forms.setdefault(error.relative_schema_path[0], []).append(error)
    # A form of another JSON type was not meant; nor was one whose tag (`role`, `type`) is another one.
    for wrong in (_is_other_type, _has_other_tag):
        left = [form for form in forms.values() if not any(map(wrong, form))]
        if not left:
            return [_either([error for form in forms.values() for error in form if wrong(error)])]
        forms = dict(enumerate(left))
    return min(forms.values(), key=len)


def _is_other_type(error: ValidationError) -> bool:
    return error.validator == "type" and not error.relative_path


def _has_other_tag(error: ValidationError) -> bool:
    return error.validator == "enum" and len(error.relative_path) == 1


def _either(errors: Sequence[ValidationError]) -> ValidationError:
    """One finding that allows what any of `errors`, all of one keyword at one place, would allow."""
    first = errors[0]
    allowed = [value for error in errors for value in _listed(error.validator_value)]
    first.validator_value = list(dict.fromkeys(allowed))
    return first


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _problem(error: ValidationError, names: Collection[str]) -> Problem:
    path = [str(step) if isinstance(step, int) or step in names else "*" for step in error.absolute_path]
    keyword = error.validator
    allowed: Any = error.validator_value
    instance: Any = error.instance
    if keyword == "required":
        # One error stands for one missing name, but does not hold it as a value of its own.
        missing = [name for name in allowed if name not in instance]
        return Problem(".".join(path), f"must have {_and(missing)}")
    if keyword == "additionalProperties":
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        extra = sorted(_OTHER_APIS & (set(instance) - set(known)))
        return Problem(".".join(path), f"must not have {_and(extra) or 'a name the schema does not know'}")
    if keyword == "type":
        rule = f"must be of type {' or '.join(_listed(allowed))}"
    elif keyword == "enum":
        rule = f"must be one of {', '.join(json.dumps(value) for value in allowed)}"
    elif keyword == "oneOf":
        rule = "must have exactly one of the documented forms"
    else:
        rule = _RULES.get(str(keyword), f"breaks the rule {keyword}").format(allowed)
    return Problem(".".join(path), rule)


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def support_id() -> str:
    """A fresh ``support_{uuidv7}``."""
    return f"support_{_uuid7()}"


def _uuid7(clock: Callable[[], int] = time.time_ns) -> uuid.UUID:
    # RFC 9562, section 5.7: 48 bits of milliseconds, then random bits around the version and the variant.
    # Python has uuid.uuid7 only from 3.14.
    milliseconds = clock() // 1_000_000 & (1 << 48) - 1
    bits = milliseconds << 80 | secrets.randbits(80)
    bits = bits & ~(0xF << 76) | 0x7 << 76
    bits = bits & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=bits)


def envelope(
    status: int,
    *,
    data: Any = None,
    error: str | Mapping[str, Any] | None = None,
    validator: Mapping[str, str] | None = None,
    log: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The documented envelope: `data` of a success, or `error` with a fresh support id."""
    return {
        "status": status,
        "data": data,
        "error": error,
        "message": None,
        "env": "development",
        "log": log,
        "validator": validator,
        "support_id": None if error is None else support_id(),
    }


class Refused(Exception):
    """A request is answered with an error envelope; raised by either role, written by the listener.

    Args:
        status: The HTTP status.
        error: The envelope's message, or OpenAI's error object. It goes out in the clear: no value of the
            request belongs in it.
        validator: Findings by field.
        log: The envelope's ``log``.
        headers: Further response headers, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        error: str | Mapping[str, Any],
        *,
        validator: Mapping[str, str] | None = None,
        log: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.validator = validator
        self.log = log
        self.headers = dict(headers or {})

    def envelope(self) -> dict[str, Any]:
        """The body to answer with."""
        return envelope(self.status, error=self.error, validator=self.validator, log=self.log)


def read_body(schema_name: SchemaName, body: bytes, *, called: str = "body") -> dict[str, Any]:
    """`body` as the JSON object that a published schema describes.

    Args:
        schema_name: The schema it has to satisfy.
        body: The bytes that came, or were opened.
        called: What findings about the whole of it name.

    Raises:
        Refused: 400; the findings by field, the first one in the message too.
    """
    try:
        value: dict[str, Any] = json.loads(body, parse_constant=_not_json)
    except (ValueError, RecursionError):
        raise Refused(
            400, f"Invalid request: {called} is not JSON", validator={called: "is not JSON"}
        ) from None
    try:
        found = problems(schema_name, value)
    except RecursionError:
        raise Refused(
            400, f"Invalid request: {called} is nested too deep", validator={called: "is nested too deep"}
        ) from None
    findings: dict[str, str] = {}
    for path, rule in found:
        place = path or called
        findings[place] = f"{findings[place]}; {rule}" if place in findings else rule
    if findings:
        place, rule = next(iter(findings.items()))
        raise Refused(400, f"Invalid request: {place} {rule}", validator=findings)
    return value


def _not_json(constant: str) -> NoReturn:
    # Python reads NaN and Infinity; JSON has neither.
    raise ValueError(constant)
