"""``prem keys``: encryption keys in a file, encrypted with the user's own KEK. No secret is printed.

Exit code 1 means that the enclave's key could not be fetched, or that a file could not be written, is damaged, is
readable by other users, or does not open. Exit code 2 means a wrong option, a missing KEK or an existing file.
"""

from __future__ import annotations

import hashlib
import os
from typing import Annotated

import typer

from prem_core._errors import ConfigurationError, PremError
from prem_core.cli import EXIT_FAILURE, EXIT_USAGE
from prem_core.cli.connection import find_kek, parse_enclave_key
from prem_core.cli.errors import exit_with

keys = typer.Typer(
    no_args_is_help=True,
    help="Store encryption keys in a file.\n\n"
    "The file is encrypted with your own KEK (key-encryption key): 32 random bytes in hex or base64, in the "
    "environment variable CLIENT_KEK or in a file.",
)

KekFile = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="File with the KEK (key-encryption key). Default: the variable CLIENT_KEK."
    ),
]


@keys.command()
def generate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The file to write.")],
    enclave_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL from which the enclave's key is fetched. Default: PREM_ENCLAVE_URL, or Prem's enclave.",
        ),
    ] = None,
    enclave_public_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The enclave's public key (hex or base64), instead of fetching it."),
    ] = None,
    kek_file: KekFile = None,
    new_kek: Annotated[
        str | None, typer.Option(metavar="PATH", help="Generate a KEK and store it in this new file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace PATH if it exists.")] = False,
) -> None:
    """Generate encryption keys for an enclave and store them in PATH.

    \b
    Example:
      prem keys generate prem.keys --new-kek prem.kek
    """
    from prem_core import generate_encryption_keys
    from prem_core._crypto import keyfile

    # Check all options before the enclave is contacted.
    with exit_with(EXIT_USAGE):
        _check_paths(path, kek_file, new_kek)
        kek = keyfile.new_kek() if new_kek else find_kek(kek_file)
        if kek is None:
            raise ConfigurationError("no KEK: set CLIENT_KEK, or use --kek-file or --new-kek")
        if new_kek:
            keyfile.check_not_exists(new_kek)
        if not force and os.path.isfile(path):
            raise ConfigurationError(f"{keyfile.quote_path(path)} already exists; --force replaces it")
        keyfile.check_not_exists(path, overwrite=force)
    pinned = parse_enclave_key(enclave_public_key)
    made = generate_encryption_keys(enclave_url=enclave_url, enclave_public_key=pinned)
    with exit_with(EXIT_FAILURE):
        if new_kek:
            keyfile.write_kek(new_kek, kek)
        try:
            made.save(path, kek, overwrite=force)
        except PremError:
            if new_kek:  # no file is encrypted with it
                os.unlink(new_kek)
            raise
    typer.echo(f"keys         {keyfile.quote_path(path)}")
    if new_kek:
        typer.echo(f"KEK          {keyfile.quote_path(new_kek)}")
    typer.echo(f"enclave key  sha256:{made.enclave_fingerprint}")
    typer.echo(f"cipher text  sha256:{hashlib.sha256(made.cipher_text).hexdigest()}")


@keys.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file with encryption keys.")],
    kek_file: KekFile = None,
) -> None:
    """Show the contents of a key file, and whether the KEK opens it.

    Without the KEK, the contents are not verified. Exit code 1 means that the file is not a key file, is damaged, is
    readable by other users, belongs to one, or does not open.

    \b
    Example:
      prem keys inspect prem.keys --kek-file prem.kek
    """
    from prem_core._crypto import keyfile

    with exit_with(EXIT_USAGE):
        kek = find_kek(kek_file)
    with exit_with(EXIT_FAILURE):
        file = keyfile.read_header(path)
        typer.echo(f"version      {file.version}")
        typer.echo(f"created      {file.created.isoformat()}")
        fingerprint = file.enclave_fingerprint
        typer.echo(f"enclave key  {f'sha256:{fingerprint}' if fingerprint else 'unknown'}")
        typer.echo(f"cipher text  sha256:{hashlib.sha256(file.cipher_text).hexdigest()}")
        typer.echo(f"mode         {file.mode:04o}")
        try:
            if kek is not None:
                file.open(kek)
        except ConfigurationError:
            typer.echo("opens        no")
            raise
        typer.echo(f"opens        {'not checked (no KEK)' if kek is None else 'yes'}")
        file.check_access()


def _check_paths(path: str, kek_file: str | None, new_kek: str | None) -> None:
    if kek_file and new_kek:
        raise ConfigurationError("--kek-file and --new-kek cannot be combined")
    # Otherwise --force could replace the KEK by the keys that it opens.
    kek = kek_file or new_kek
    if kek and os.path.realpath(kek) == os.path.realpath(path):
        raise ConfigurationError("PATH and the KEK must be two different files")
