import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_gateway import error_text

from prem_core import _config
from prem_core._config import (
    DEFAULT_URLS,
    VARIABLES,
    environment_source,
    from_environment,
    is_loopback,
    not_negative,
    positive,
    resolve_api_key,
    resolve_url,
)
from prem_core._errors import ConfigurationError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for names in VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


def test_the_defaults_are_https():
    assert resolve_url("gateway_url", None) == "https://gateway.prem.io"
    assert resolve_url("enclave_url", None) == "https://conf-engine.prem.io"


@pytest.mark.parametrize("setting", ["gateway_url", "enclave_url"])
@pytest.mark.filterwarnings("ignore:PROXY_URL is used")
def test_arguments_override_the_environment_and_the_environment_the_defaults(setting, monkeypatch):
    assert resolve_url(setting, None) == DEFAULT_URLS[setting]
    for variable in reversed(VARIABLES[setting]):
        monkeypatch.setenv(variable, f"https://{variable.lower()}")
        assert resolve_url(setting, None) == f"https://{variable.lower()}"
        assert environment_source(setting) == variable
    assert resolve_url(setting, "https://argument") == "https://argument"


def test_a_plain_proxy_url_that_wins_is_warned_of_once(monkeypatch):
    monkeypatch.setattr(_config, "_warned_of_proxy_url", False)
    monkeypatch.setenv("PROXY_URL", "https://corporate.example")
    with pytest.warns(UserWarning, match="PROXY_URL is used as Prem's gateway.*set PREM_GATEWAY_URL"):
        assert resolve_url("gateway_url", None) == "https://corporate.example"
    assert resolve_url("gateway_url", None) == "https://corporate.example"


@pytest.mark.filterwarnings("ignore:PROXY_URL is used")
@pytest.mark.parametrize("variable", VARIABLES["gateway_url"])
def test_an_error_names_the_variable_that_a_url_comes_from(variable, monkeypatch):
    monkeypatch.setenv(variable, "http://corporate.example:8080")
    with pytest.raises(ConfigurationError, match=rf"gateway_url \(from {variable}\) is plain http"):
        resolve_url("gateway_url", None)


def test_the_variables_have_the_documented_names():
    assert VARIABLES == {
        "api_key": ("PREM_API_KEY", "PREM_API_KEY_FILE"),
        "gateway_url": ("PREM_GATEWAY_URL", "PREM_PROXY_URL", "PROXY_URL"),
        "enclave_url": ("PREM_ENCLAVE_URL", "ENCLAVE_URL"),
        "nonce_reuse": ("PREM_NONCE_REUSE",),
        "attestation": ("PREM_ATTESTATION",),
        "limits": ("PREM_LIMITS_URL",),
    }


@pytest.mark.parametrize("value", ["", " ", "\n\t"])
def test_an_empty_variable_counts_as_unset(value, monkeypatch):
    monkeypatch.setenv("PREM_API_KEY", value)
    monkeypatch.setenv("PREM_GATEWAY_URL", value)
    monkeypatch.setenv("PREM_PROXY_URL", "https://other")
    assert from_environment("api_key") is None
    assert resolve_url("gateway_url", None) == "https://other"


def test_whitespace_around_a_variable_is_stripped(monkeypatch):
    monkeypatch.setenv("PREM_API_KEY", " sk_live_1\n")
    assert resolve_api_key(None) == "sk_live_1"


def test_the_api_key_argument_overrides_the_environment(monkeypatch):
    monkeypatch.setenv("PREM_API_KEY", "sk_live_env")
    assert resolve_api_key("sk_live_arg") == "sk_live_arg"
    assert resolve_api_key(None) == "sk_live_env"


def test_an_empty_api_key_is_not_replaced_by_the_environments(monkeypatch):
    monkeypatch.setenv("PREM_API_KEY", "sk_live_env")
    with pytest.raises(ConfigurationError, match="no API key"):
        resolve_api_key("")


def test_the_error_for_a_missing_api_key_explains_where_to_set_it():
    with pytest.raises(ConfigurationError, match="PREM_API_KEY"):
        resolve_api_key(None)


@pytest.mark.parametrize(
    "key",
    [
        "sk_live_SECRET\n",
        "sk_live_SECRET\r\nX-Evil: 1",
        "sk_live SECRET",
        " sk_live_SECRET",
        "sk_live_SECRET\0",
    ]
    + ["sk_live_SECRET\x7f", "sk_live_SECRETé", "sk_live_SECRET\t", "sk_live_SECRET\u200b", "\ud800SECRET"],
)
def test_an_api_key_that_is_invalid_in_a_header_is_rejected_without_quoting_it(key):
    with pytest.raises(ConfigurationError) as caught:
        resolve_api_key(key)
    assert "SECRET" not in error_text(caught.value)


@pytest.mark.parametrize("key", [b"sk_live_SECRET", 5, ["sk_live_SECRET"], object()])
def test_an_api_key_that_is_no_string_is_a_configuration_error(key):
    with pytest.raises(ConfigurationError) as caught:
        resolve_api_key(key)
    assert "SECRET" not in error_text(caught.value)


@given(st.text(max_size=30))
def test_every_accepted_api_key_is_valid_in_a_header(key):
    try:
        found = resolve_api_key(key)
    except ConfigurationError:
        return
    assert found == key
    assert f"Bearer {found}".encode("ascii").isascii()
    assert not set(found) & set(" \t\r\n\0")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://host", "https://host"),
        ("https://host/", "https://host"),
        ("https://host/base/", "https://host/base"),
        ("https://host:8443", "https://host:8443"),
        ("HTTPS://Host", "HTTPS://Host"),
        ("https://[2001:db8::1]:1", "https://[2001:db8::1]:1"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://LOCALHOST", "http://LOCALHOST"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://[::1]:1", "http://[::1]:1"),
    ],
)
def test_the_trailing_slash_of_an_endpoint_is_removed(url, expected):
    assert resolve_url("gateway_url", url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "host",
        "//host",
        "/path",
        "https://",
        "https:host",
        "ftp://host",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://:443",
        "https://[zz]",
        "https://host:99999",
        "https://host:port",
        "https://exa mple.com",
        "https://ho\nst",
        "https://host/a\r\nX: 1",
        "https://ho\0st",
    ],
)
def test_an_invalid_url_is_rejected_by_the_name_of_its_setting(url):
    with pytest.raises(ConfigurationError, match="enclave_url"):
        resolve_url("enclave_url", url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:SECRET@host",
        "https://SECRET@host",
        "https://:SECRET@host",
        "https://host?key=SECRET",
        "https://host/#SECRET",
        "https://host\\@SECRET",
        "https://host?",
        "https://host/?",
        "https://host#",
    ],
)
def test_an_endpoint_with_more_than_a_host_and_a_path_is_rejected_without_quoting_it(url):
    with pytest.raises(ConfigurationError, match="gateway_url") as caught:
        resolve_url("gateway_url", url)
    assert "SECRET" not in error_text(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://gateway.prem.io",
        "HTTP://gateway.prem.io",
        "http://localhost.evil.com",
        "http://127.0.0.1.evil.com",
        "http://evil.com/localhost",
        "http://0.0.0.0",
        "http://10.0.0.1",
        "http://169.254.169.254",
        "http://[::]",
        "http://2130706433",
    ],
)
def test_plain_http_to_another_machine_is_rejected_unless_allowed(url):
    with pytest.raises(ConfigurationError, match="allow_insecure"):
        resolve_url("gateway_url", url)
    assert resolve_url("gateway_url", url, allow_insecure=True) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://router.prem.io",
        "https://router.prem.io/v1",
        "https://ROUTER.prem.io:443/",
        "https://router.prem.io.",
        "https://eu.router.prem.io",
        "https://gateway.prem.io/typesafe",
        "https://gateway.prem.io/typesafe/v1/",
        "https://gateway.prem.io/TypeSafe",
    ],
)
def test_an_api_without_end_to_end_encryption_is_rejected_as_a_gateway(url, monkeypatch):
    expected = "without end-to-end encryption.*use the gateway, https://gateway.prem.io"
    with pytest.raises(ConfigurationError, match=expected):
        resolve_url("gateway_url", url, allow_insecure=True)
    monkeypatch.setenv("PREM_GATEWAY_URL", url)
    with pytest.raises(
        ConfigurationError, match=rf"gateway_url \(from PREM_GATEWAY_URL\) is an API {expected}"
    ):
        resolve_url("gateway_url", None)


@pytest.mark.parametrize(
    "url",
    ["https://gateway.prem.io/typesafer", "https://notrouter.prem.io", "https://router.prem.io.example"]
    + ["https://router.example", "https://host/typesafe"],
)
def test_a_gateway_with_a_similar_name_is_accepted(url):
    assert resolve_url("gateway_url", url) == url


def test_environment_variables_are_validated_like_arguments(monkeypatch):
    monkeypatch.setenv("PREM_GATEWAY_URL", "http://gateway.prem.io")
    with pytest.raises(ConfigurationError, match="gateway_url"):
        resolve_url("gateway_url", None)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.255.254", "::1"])
def test_this_machine_is_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "localhost.", "local", "128.0.0.1", "0.0.0.0", "::2", "::", "example.com", "127.1"]
)
def test_another_machine_is_not_loopback(host):
    assert not is_loopback(host)


@given(st.text(max_size=40))
def test_any_endpoint_string_is_parsed_or_rejected(url):
    try:
        found = resolve_url("gateway_url", f"https://{url}")
    except ConfigurationError:
        return
    assert found.startswith("https://")
    assert not set(found) & set(" \t\r\n\0?#@")


@pytest.mark.parametrize("url", [" https://host", "https://host\n", "\thttps://host/ "])
def test_whitespace_around_an_endpoint_is_stripped_or_rejected(url):
    try:
        assert resolve_url("gateway_url", url) == "https://host"
    except ConfigurationError as error:
        assert "gateway_url" in str(error)


@pytest.mark.parametrize("value", [1, 0.001, 30.0, 10**9])
def test_a_positive_number_is_accepted(value):
    assert positive("timeout", value) == value


@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, math.inf, -math.inf, True, False, "30", None, [1]])
def test_anything_but_a_positive_number_is_rejected_by_name(value):
    with pytest.raises(ConfigurationError, match="timeout"):
        positive("timeout", value)


@pytest.mark.parametrize("value", [0, 1, 100])
def test_an_integer_is_accepted(value):
    assert not_negative("max_retries", value) == value


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, True, "2", None, math.inf])
def test_anything_but_an_integer_is_rejected_by_name(value):
    with pytest.raises(ConfigurationError, match="max_retries"):
        not_negative("max_retries", value)


# --- a file with the API key


@pytest.fixture
def key_file(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.write_text("sk_test_file\n")
    path.chmod(0o600)
    monkeypatch.setenv("PREM_API_KEY_FILE", str(path))
    return path


def test_the_api_key_is_read_from_a_file_unless_it_is_given(key_file, monkeypatch):
    assert resolve_api_key(None) == "sk_test_file"
    monkeypatch.setenv("PREM_API_KEY", "sk_test_variable")
    assert resolve_api_key(None) == "sk_test_variable"
    assert resolve_api_key("sk_test_argument") == "sk_test_argument"


def test_a_link_to_a_file_with_the_api_key_is_followed_as_containers_mount_secrets(
    key_file, tmp_path, monkeypatch
):
    (tmp_path / "link").symlink_to(key_file)
    monkeypatch.setenv("PREM_API_KEY_FILE", str(tmp_path / "link"))
    assert resolve_api_key(None) == "sk_test_file"


@pytest.mark.parametrize("text", ["", " \n", "sk_test\n" * 1000, "sk_t\xe9st"])
def test_a_file_without_an_api_key_is_an_error_that_does_not_show_its_content(key_file, text):
    key_file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        resolve_api_key(None)
    assert "sk_t" not in error_text(caught.value)


def test_a_missing_file_and_a_folder_are_errors_that_name_the_variable(key_file, monkeypatch):
    for path in (key_file.parent / "missing", key_file.parent, "/dev/null", "a\0b"):
        monkeypatch.setattr(_config.os, "environ", {"PREM_API_KEY_FILE": str(path)})
        with pytest.raises(ConfigurationError, match="PREM_API_KEY_FILE"):
            resolve_api_key(None)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(
    ("owner", "mode", "trusted"),
    [(0, 0o444, True), (0, 0o644, True), (0, 0o664, False), (0, 0o646, False), (1234, 0o600, False)],
)
def test_a_file_with_the_api_key_that_others_can_change_is_an_error(key_file, owner, mode, trusted):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    key_file.chmod(mode)
    os.chown(key_file, owner, -1)
    if trusted:
        assert resolve_api_key(None) == "sk_test_file"
        return
    with pytest.raises(ConfigurationError, match="other user|another user"):
        resolve_api_key(None)


def test_the_error_without_an_api_key_says_that_pickles_carry_none_and_names_both_variables():
    with pytest.raises(
        ConfigurationError, match=r"PREM_API_KEY or PREM_API_KEY_FILE .* pickled model has no key"
    ):
        resolve_api_key(None)
