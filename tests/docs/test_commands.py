"""The commands that README.md and the pages show: each is one that there is, with options that it has.

The program itself reads each `prem` line, as it would be read on a terminal; what it would do is not done.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.documentation import DOCS, PAGES, ROOT, blocks, name_of, prose_of, section, text_of

import prem_core.cli
from prem_core import _config
from prem_core._apis.routing import Apis
from prem_core.cli.app import application
from prem_core.proxy.app import Proxy

TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"])

#: Programs of others, which are shown beside ours and not looked into.
OTHERS = {"curl", "cut", "head", "jq", "openssl"}

#: Packages of others that pages say to install beside this one.
PACKAGES = {"langchain", "llama-index-retrievers-bm25"}

#: A redirection, at the end of a command.
REDIRECTION = re.compile(r"\s*\d?[<>]\s*\S+$")


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's shell blocks, one by one: pipes taken apart, and lines that go on put together."""
    for block in blocks(page, "bash"):
        for line in re.sub(r"\\\n\s*", " ", block.parsed).splitlines():
            # A pipe inside quotes is none.
            quoted = re.sub(r"'[^']*'|\"[^\"]*\"", lambda text: text[0].replace("|", "\0"), line)
            yield from (part.replace("\0", "|") for part in quoted.split("|") if part.split("#")[0].strip())


def words_of(command: str) -> list[str]:
    """A command's words, without variables set before it, comments and redirections."""
    words = shlex.split(REDIRECTION.sub("", command), comments=True)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return words


SHOWN = [
    pytest.param(words_of(command), id=f"{name_of(page)}: {command.strip()[:60]}")
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md")
    for command in commands(page)
]


def read_by_prem(arguments: list[str]) -> list[str]:
    """The subcommands that `prem` finds in a command line. It complains of what it does not know."""
    command: Any = typer.main.get_command(application())
    path: list[str] = []
    while True:
        context = command.make_context("prem", list(arguments), resilient_parsing=False)
        if not hasattr(command, "resolve_command"):
            return path
        rest = [*context._protected_args, *context.args]
        name, command, arguments = command.resolve_command(context, rest)
        path.append(name)


@pytest.mark.parametrize("words", SHOWN)
def test_every_shown_command_is_valid(words: list[str]) -> None:
    program, *arguments = words
    if program == "prem":
        assert read_by_prem(arguments)
    elif program == "make":
        assert set(arguments) <= TARGETS
    elif program == "pip":
        assert arguments[0] == "install"
        for wanted in arguments[1:]:
            name, _, extras = wanted.rstrip("]").partition("[")
            assert name == PROJECT["name"] or name in PACKAGES
            assert set(filter(None, extras.split(","))) <= EXTRAS
    elif program == "export":
        ((name, _, _),) = (each.partition("=") for each in arguments)
        assert name in {variable for group in _config.VARIABLES.values() for variable in group}
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert program in OTHERS


@pytest.mark.parametrize(
    "arguments",
    [["chat", "--modell", "x"], ["keys", "forge"], ["models", "--type", "poem"], ["transcribe"], ["no"]],
)
def test_an_invalid_command_is_detected(arguments: list[str]) -> None:
    with pytest.raises(Exception, match="(?i)no such|is not one of|missing") as caught:
        read_by_prem(arguments)
    assert type(caught.value).__module__.startswith(("click", "typer"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_and_make_targets_in_the_text_exist(page: Path) -> None:
    spelt = {
        option
        for command in _every_command(typer.main.get_command(application()))
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help"}
    prose = prose_of(page)
    assert set(re.findall(r"`(--[a-z][a-z-]*)", prose)) <= spelt
    assert set(re.findall(r"`make ([a-z]+)", prose)) <= TARGETS
    said = {words.split()[0] for words in re.findall(r"`prem ([a-z]+[^`]*)`", prose)}
    assert said <= set(prem_core.cli.COMMANDS)


def test_the_command_line_page_lists_every_command() -> None:
    page = DOCS / "command-line.md"
    assert sorted(re.findall(r"^## prem (\w+)$", text_of(page), re.MULTILINE)) == sorted(
        prem_core.cli.COMMANDS
    )


def test_the_command_line_page_lists_every_exit_code() -> None:
    page = DOCS / "command-line.md"
    shown = re.findall(r"^\| (\d+) \|", section(page, "Exit codes"), re.MULTILINE)
    assert shown == re.findall(r"^(\d+) {2,}", prem_core.cli.__doc__ or "", re.MULTILINE)


def test_the_proxy_page_lists_every_route() -> None:
    unused: Any = None
    proxy = Proxy(
        apis=Apis(),
        clients=unused,
        log=unused,
        api_key=None,
        body_limit=1,
        strict=False,
        audio_timeout=1,
        retries=False,
        nonce_reuse="warn",
        page_token="token",
    )
    routes = {
        f"{method} {route.path.replace(':path', '')}"
        for route in proxy._router.routes
        for method in route.methods - {"HEAD"}
    } | set(Apis().routes)
    page = DOCS / "proxy.md"
    assert set(re.findall(r"`((?:GET|POST|DELETE) \S+)`", section(page, "Routes"))) == routes


def test_the_install_page_lists_every_extra_and_its_packages() -> None:
    page = DOCS / "install.md"
    table = dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", section(page, "Extras"), re.MULTILINE))
    assert set(table) == EXTRAS
    for extra, wanted in PROJECT["optional-dependencies"].items():
        brought = {re.split(r"[<>=\[]", each)[0] for each in wanted if not each.startswith(PROJECT["name"])}
        assert (
            brought == {name for name in table[extra].replace("`cli`", "").split(", ") if name}
            or extra == "all"
        )


def _every_command(command: Any) -> Iterator[Any]:
    yield command
    for each in getattr(command, "commands", {}).values():
        yield from _every_command(each)
