"""``prem keys``: encryption keys in a file, sealed with your own master key. No secret is ever printed.

Here exit status 1 is: the enclave's key cannot be had, a file cannot be written, or one is damaged, open to others or
does not open; and 2: an option, no KEK, a file that is there already.
"""

from __future__ import annotations

import hashlib
import os
from typing import Annotated

import typer

from prem_core._errors import ConfigurationError, PremError
from prem_core.cli import EXIT_FAILURE, EXIT_USAGE
from prem_core.cli.command import Command
from prem_core.cli.connection import find_kek
from prem_core.cli.errors import exit_with

keys = typer.Typer(
    no_args_is_help=True,
    help="Keep encryption keys in a file, sealed with a KEK.\n\n"
    "The KEK is yours: 32 random bytes, in hex or base64, in CLIENT_KEK or in a file.",
)

KekFile = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="The file that holds the KEK. By default CLIENT_KEK does."),
]


@keys.command(cls=Command)
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

    \b
    Example:
      prem keys generate prem.keys --new-kek prem.kek
    """
    from prem_core import generate_encryption_keys
    from prem_core._crypto import keyfile
    from prem_core._protocol.response_body import parse_public_key

    # Whatever can be refused is refused before the enclave is asked.
    with exit_with(EXIT_USAGE):
        _refuse_overlap(path, kek_file, new_kek)
        kek = keyfile.new_kek() if new_kek else find_kek(kek_file)
        if kek is None:
            raise ConfigurationError("no KEK: set CLIENT_KEK, or give --kek-file or --new-kek")
        if new_kek:
            keyfile.check_not_exists(new_kek)
        if not force and os.path.isfile(path):
            raise ConfigurationError(f"{keyfile.shown(path)} already exists; --force replaces it")
        keyfile.check_not_exists(path, overwrite=force)
        pinned = None if enclave_public_key is None else parse_public_key(enclave_public_key)
    made = generate_encryption_keys(enclave_url=enclave_url, enclave_public_key=pinned)
    with exit_with(EXIT_FAILURE):
        if new_kek:
            keyfile.write_kek(new_kek, kek)
        try:
            keyfile.write(path, made, kek, overwrite=force)
        except PremError:
            if new_kek:  # it seals nothing
                os.unlink(new_kek)
            raise
    typer.echo(f"keys         {keyfile.shown(path)}")
    if new_kek:
        typer.echo(f"KEK          {keyfile.shown(new_kek)}")
    typer.echo(f"enclave key  sha256:{made.enclave_fingerprint}")
    typer.echo(f"cipher text  sha256:{hashlib.sha256(made.cipher_text).hexdigest()}")


@keys.command(cls=Command)
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file of encryption keys.")],
    kek_file: KekFile = None,
) -> None:
    """Show what a file of encryption keys says of itself, and whether the KEK opens it.

    Without the KEK nothing shown is proven. Exit status 1: it is no such file, is damaged, open to others, or does
    not open.

    \b
    Example:
      prem keys inspect prem.keys --kek-file prem.kek
    """
    from prem_core._crypto import keyfile

    with exit_with(EXIT_USAGE):
        kek = find_kek(kek_file)
    with exit_with(EXIT_FAILURE):
        file = keyfile.look(path)
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


def _refuse_overlap(path: str, kek_file: str | None, new_kek: str | None) -> None:
    if kek_file and new_kek:
        raise ConfigurationError("--kek-file and --new-kek: give one of them")
    # With --force the keys would otherwise take the place of the KEK that opens them, and maybe others.
    kek = kek_file or new_kek
    if kek and os.path.realpath(kek) == os.path.realpath(path):
        raise ConfigurationError("PATH and the KEK's file must be two files")
