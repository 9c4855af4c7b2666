"""The JSON Schemas in the package are the published ones, byte for byte."""

import hashlib

import pytest
from support.paths import DATA, SCHEMAS

CHECKSUMS = dict(
    reversed(line.split()) for line in (DATA / "published_schemas.sha256").read_text().splitlines()
)
#: Prem publishes no schema for the parameters of a transcription; this one is derived, see the README beside it.
DERIVED = {"audio-transcription-params.schema.json"}


@pytest.mark.parametrize("name", CHECKSUMS)
def test_a_schema_has_the_checksum_of_the_published_file(name):
    assert hashlib.sha256((SCHEMAS / name).read_bytes()).hexdigest() == CHECKSUMS[name]


def test_every_other_schema_is_known_to_be_derived():
    assert {path.name for path in SCHEMAS.glob("*.json")} == CHECKSUMS.keys() | DERIVED
