"""``prem keys``: encryption keys in a file, sealed with your own master key. No secret is ever printed.

Exit status: 0, done; 1, the enclave's key cannot be had, a file cannot be written, or one is damaged, open to
others or does not open; 2, it cannot run as called: an option, no KEK, a file that is there already.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from prem_core._errors import ConfigurationError, PremError
from prem_core.cli import USAGE_ERROR

#: Exit status of a command that ran and failed.
FAILURE: Final = 1

keys = typer.Typer(
    no_args_is_help=True,
    help="Keep encryption keys in a file, sealed with your KEK (CLIENT_KEK: 32 bytes, hex or base64).",
)

KekFile = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="The file that holds the KEK. By default CLIENT_KEK does."),
]


@keys.command()
def generate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The file to write.")],
    enclave_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The enclave to ask for its key. By default PREM_ENCLAVE_URL, or Prem's."
        ),
    ] = None,
    enclave_public_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Its key, in hex or base64: nothing is fetched then."),
    ] = None,
    kek_file: KekFile = None,
    new_kek: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Draw a new KEK and keep it in this file, which must not be there yet."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace PATH where it is there.")] = False,
) -> None:
    """Make encryption keys for an enclave, and keep them in PATH.

    Exit status: 1 if the enclave's key cannot be had or a file cannot be written; 2 if it cannot run as called.
    """
    from prem_core import _keyfile, generate_encryption_keys
    from prem_core._envelope import parse_public_key

    # Whatever can be refused is refused before the enclave is asked.
    with _ended("generate", USAGE_ERROR):
        _refuse_overlap(path, kek_file, new_kek)
        kek = _keyfile.new_kek() if new_kek else _kek(kek_file)
        if kek is None:
            raise ConfigurationError("no KEK: set CLIENT_KEK, or give --kek-file or --new-kek")
        if new_kek:
            _keyfile.check_free(new_kek)
        _keyfile.check_free(path, overwrite=force)
        pinned = None if enclave_public_key is None else parse_public_key(enclave_public_key)
    with _ended("generate"):
        made = generate_encryption_keys(enclave_url=enclave_url, enclave_public_key=pinned)
    with _ended("generate", FAILURE):
        if new_kek:
            _keyfile.write_kek(new_kek, kek)
        try:
            _keyfile.write(path, made, kek, overwrite=force)
        except PremError:
            if new_kek:  # it seals nothing
                os.unlink(new_kek)
            raise
    typer.echo(f"keys         {_keyfile.shown(path)}")
    if new_kek:
        typer.echo(f"KEK          {_keyfile.shown(new_kek)}")
    typer.echo(f"enclave key  sha256:{made.enclave_fingerprint}")
    typer.echo(f"cipher text  sha256:{hashlib.sha256(made.cipher_text).hexdigest()}")


@keys.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file of encryption keys.")],
    kek_file: KekFile = None,
) -> None:
    """Show what a file of encryption keys says of itself, and whether the KEK opens it.

    Without the KEK nothing shown is proven. Exit status: 1 if it is no such file, is damaged, open to others, or
    does not open.
    """
    from prem_core import _keyfile

    with _ended("inspect", USAGE_ERROR):
        kek = _kek(kek_file)
    with _ended("inspect", FAILURE):
        file = _keyfile.look(path)
        typer.echo(f"version      {file.version}")
        typer.echo(f"created      {file.created.isoformat()}")
        known = file.enclave_fingerprint
        typer.echo(f"enclave key  {f'sha256:{known}' if known else 'unknown'}")
        typer.echo(f"cipher text  sha256:{hashlib.sha256(file.cipher_text).hexdigest()}")
        typer.echo(f"mode         {file.mode:04o}")
        try:
            if kek is not None:
                file.open(kek)
        except ConfigurationError:
            typer.echo("opens        no")
            raise
        typer.echo(f"opens        {'not tried: no KEK' if kek is None else 'yes'}")
        file.check_mode()


def _kek(path: str | None) -> bytes | None:
    """The KEK of the file, else of the environment; None where neither is given."""
    from prem_core import _config, _keyfile

    if path:
        return _keyfile.read_kek(path)
    return _config.resolve_kek() if os.environ.get(_config.KEK_VARIABLE, "").strip() else None


def _refuse_overlap(path: str, kek_file: str | None, new_kek: str | None) -> None:
    if kek_file and new_kek:
        raise ConfigurationError("--kek-file and --new-kek: give one of them")
    # With --force the keys would otherwise take the place of the KEK that opens them, and maybe others.
    kek = kek_file or new_kek
    if kek and os.path.realpath(kek) == os.path.realpath(path):
        raise ConfigurationError("PATH and the KEK's file must be two files")


@contextlib.contextmanager
def _ended(command: str, status: int | None = None) -> Iterator[None]:
    """End on an error with its text on one line; a wrong setting is a wrong call, unless `status` is given."""
    try:
        yield
    except PremError as error:
        # The service's own words may be in it: no line break or escape of theirs reaches the terminal.
        text = "".join(char if char.isprintable() else " " for char in str(error))
        typer.echo(f"prem keys {command}: {text}", err=True)
        wrong = USAGE_ERROR if isinstance(error, ConfigurationError) else FAILURE
        raise typer.Exit(wrong if status is None else status) from None
