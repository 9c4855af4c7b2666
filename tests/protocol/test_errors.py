import copy
import pickle
import re

import pytest

import prem_core
from prem_core import _errors as errors


def descendants(kind):
    return [kind, *(found for child in kind.__subclasses__() for found in descendants(child))]


# Adapters derive their own from these; the tree is this module's.
EVERY = [kind for kind in descendants(errors.PremError) if kind.__module__ == errors.__name__]

VALUES = {
    errors.InvalidParameterError: {"param": "messages.0.content"},
    errors.APIError: {"type": "t", "code": "c", "support_id": "support_1"},
    errors.APIStatusError: {
        "status_code": 429,
        "param": "p",
        "validator": {"field": ["wrong"]},
        "retry_after": 1.5,
    },
    errors.PermissionDeniedError: {"scope": "chats.completion"},
}


def make(kind):
    values = {}
    for base in kind.__mro__:
        values |= VALUES.get(base, {})
    return kind("what went wrong", **values), values


def drawn_tree():
    """Each class in the docstring's tree, with the one it hangs under."""
    parents, above = {}, {}
    for line in errors.__doc__.splitlines():
        found = re.match(r"^([ │├└─]*)(\w*(?:Error))\b", line)
        if not found:
            continue
        depth = (len(found[1]) - 4) // 4
        above[depth] = found[2]
        parents[found[2]] = above.get(depth - 1)
    return parents


def test_the_error_tree_in_the_docstring_matches_the_classes():
    assert drawn_tree() == {
        kind.__name__: kind.__base__.__name__ if kind is not errors.PremError else None for kind in EVERY
    }


def test_the_statuses_in_the_docstring_match_the_mapping():
    from prem_core._protocol.error_body import status_error

    for name, statuses in re.findall(r"(\w+Error) \(([\dx, ]+)\)", errors.__doc__):
        for status in statuses.replace("5xx", "500, 503, 599").split(", "):
            assert type(status_error(int(status), b"")).__name__ == name


@pytest.mark.parametrize("kind", EVERY)
def test_an_error_is_exported(kind):
    assert getattr(prem_core, kind.__name__) is kind
    assert kind.__name__ in prem_core.__all__


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling_with_its_attributes(kind, protocol):
    error, values = make(kind)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert values.items() <= vars(again).items()


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_an_error_survives_copying_with_its_attributes(kind, duplicate):
    error, values = make(kind)
    again = duplicate(error)
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert values.items() <= vars(again).items()


def test_a_deep_copy_shares_no_mutable_state():
    error = errors.BadRequestError("no", validator={"field": ["wrong"]})
    assert copy.deepcopy(error).validator["field"] is not error.validator["field"]


@pytest.mark.parametrize("kind", EVERY)
def test_the_message_of_an_error_is_its_text(kind):
    error, _ = make(kind)
    assert "what went wrong" in error.message
    assert error.message == str(error)


@pytest.mark.parametrize("kind", EVERY)
def test_an_error_can_be_raised_with_its_text_alone(kind):
    with pytest.raises(kind, match="only this"):
        raise kind("only this")


@pytest.mark.parametrize(
    "kind", [errors.DecryptionError, errors.LengthFinishReasonError, errors.RefusalError]
)
def test_an_error_with_one_meaning_has_a_default_message(kind):
    assert str(kind()) == kind.MESSAGE
    assert str(pickle.loads(pickle.dumps(kind()))) == kind.MESSAGE


def test_the_support_id_is_part_of_the_message():
    assert str(errors.APIError("it failed", support_id="support_7")) == "it failed (support_7)"
    assert str(errors.APIError("it failed")) == "it failed"


@pytest.mark.parametrize("kind", [errors.ConfigurationError, errors.InvalidParameterError])
def test_an_error_of_the_caller_is_a_value_error(kind):
    assert issubclass(kind, ValueError)


@pytest.mark.parametrize("kind", EVERY)
def test_only_errors_of_the_service_or_the_network_are_retryable(kind):
    expected = issubclass(
        kind, errors.APIConnectionError | errors.RateLimitError | errors.InternalServerError
    )
    assert kind.is_retryable is expected


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_every_error_that_is_retried_has_is_retryable_true(status):
    # Retry middleware of the frameworks reads is_retryable; it should not give up where we would go on.
    from prem_core._protocol.error_body import status_error

    error = status_error(status, b"")
    assert error.is_retryable


def test_no_error_keeps_a_request_or_a_response():
    for kind in EVERY:
        error, _ = make(kind)
        assert not {"request", "response", "body", "headers"} & set(dir(error))


def test_the_public_names_are_sorted_and_complete():
    # Uppercase sorts before underscore and lower case, as ruff's RUF022 would have it.
    assert list(prem_core.__all__) == sorted(prem_core.__all__)
    public = {
        name
        for name, value in ((name, getattr(prem_core, name)) for name in dir(prem_core))
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("prem_core.")
    }
    assert set(prem_core.__all__) == public | {"__version__"}
