"""Check request bodies against the published schemas.

Findings contain a path and a rule from the schema, and neither a value nor an unknown name of the body: a finding about
sealed parameters leaves the enclave as plaintext.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from prem_core._serving.json_values import MAX_JSON_VALUES, has_too_many_values
from prem_core.enclave.envelope import EnvelopeError

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

#: Findings that one envelope lists: it should stay readable.
MAX_PROBLEMS: Final = 20

#: Parameters that other APIs have and the published schema does not. Findings name only these: any other unknown name
#: may be content of the request.
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
    """One finding: a path (``messages.0.role``; empty for the whole body) and the rule that it breaks."""

    path: str
    rule: str


class _Schema(NamedTuple):
    validator: Draft202012Validator
    names: frozenset[str]  # every property name in the schema, at any depth


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
    """The rules of a published schema that `instance` breaks, at most `MAX_PROBLEMS`.

    In a path, ``*`` replaces a key of the instance that the schema does not define.
    """
    schema = _schema(schema_name)
    found = (_problem(error, schema.names) for error in _explained(schema.validator.iter_errors(instance)))
    return list(dict.fromkeys(found))[:MAX_PROBLEMS]


def property_names(schema_name: SchemaName) -> frozenset[str]:
    """Every property name of a published schema, at any depth."""
    return _schema(schema_name).names


def _explained(errors: Iterable[ValidationError]) -> Iterator[ValidationError]:
    """`errors`, with every failed ``oneOf`` replaced by the errors of its closest alternative."""
    for error in errors:
        if error.validator == "oneOf" and error.context:
            yield from _explained(_closest_alternative(error.context))
        else:
            yield error


def _closest_alternative(context: Sequence[ValidationError]) -> list[ValidationError]:
    alternatives: dict[Any, list[ValidationError]] = {}
    for error in context:
        alternatives.setdefault(error.relative_schema_path[0], []).append(error)
    # Exclude alternatives of another JSON type, then those with another tag (`role`, `type`).
    for wrong in (_is_other_type, _has_other_tag):
        matching = [errors for errors in alternatives.values() if not any(map(wrong, errors))]
        if not matching:
            return [
                _combined([error for errors in alternatives.values() for error in errors if wrong(error)])
            ]
        alternatives = dict(enumerate(matching))
    return min(alternatives.values(), key=len)


def _is_other_type(error: ValidationError) -> bool:
    return error.validator == "type" and not error.relative_path


def _has_other_tag(error: ValidationError) -> bool:
    return error.validator == "enum" and len(error.relative_path) == 1


def _combined(errors: Sequence[ValidationError]) -> ValidationError:
    """One error that lists what `errors`, all of one keyword at one path, allow together."""
    first = errors[0]
    allowed = [value for error in errors for value in _as_list(error.validator_value)]
    first.validator_value = list(dict.fromkeys(allowed))
    return first


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _problem(error: ValidationError, names: Collection[str]) -> Problem:
    path = [str(step) if isinstance(step, int) or step in names else "*" for step in error.absolute_path]
    keyword = error.validator
    allowed: Any = error.validator_value
    instance: Any = error.instance
    if keyword == "required":
        # The error is about one missing name, but does not hold the name as a value.
        missing = [name for name in allowed if name not in instance]
        return Problem(".".join(path), f"must have {_and(missing)}")
    if keyword == "additionalProperties":
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        extra = sorted(_OTHER_APIS & (set(instance) - set(known)))
        return Problem(
            ".".join(path), f"must not have {_and(extra) or 'a name that the schema does not define'}"
        )
    if keyword == "type":
        rule = f"must be of type {' or '.join(_as_list(allowed))}"
    elif keyword == "enum":
        rule = f"must be one of {', '.join(json.dumps(value) for value in allowed)}"
    elif keyword == "oneOf":
        rule = "must match exactly one of the documented alternatives"
    else:
        rule = _RULES.get(str(keyword), f"breaks the rule {keyword}").format(allowed)
    return Problem(".".join(path), rule)


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def parse_body(schema_name: SchemaName, body: bytes, *, name: str = "body") -> dict[str, Any]:
    """The JSON object in `body`, checked against a published schema.

    Args:
        schema_name: The schema.
        body: The bytes, received or opened.
        name: What findings about the whole body call it.

    Raises:
        EnvelopeError: 400 with the findings by field, and the first one in the message. 413 for too many values.
    """
    if has_too_many_values(body):
        raise EnvelopeError(413, f"The {name} has more than {MAX_JSON_VALUES:,} JSON values")
    try:
        value: dict[str, Any] = json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise EnvelopeError.invalid(name, "is not JSON") from None
    try:
        found = problems(schema_name, value)
    except RecursionError:
        raise EnvelopeError.invalid(name, "is nested too deep") from None
    findings: dict[str, str] = {}
    for path, rule in found:
        place = path or name
        findings[place] = f"{findings[place]}; {rule}" if place in findings else rule
    if findings:
        place, rule = next(iter(findings.items()))
        raise EnvelopeError(400, f"Invalid request: {place} {rule}", validator=findings)
    return value


def _reject_constant(constant: str) -> NoReturn:
    # Python reads NaN and Infinity; JSON has neither.
    raise ValueError(constant)
