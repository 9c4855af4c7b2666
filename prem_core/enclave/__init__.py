"""An embedded enclave for development and tests: real keys, real sealing, real HTTP, on this machine.

::

    with LocalEnclave() as prem:
        client = Client(**prem.client_options)
"""

from __future__ import annotations

try:
    from prem_core.enclave.gateway import Exchange
    from prem_core.enclave.local import LocalEnclave
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] == "prem_core":
        raise
    raise ImportError(
        f'the embedded enclave needs {missing.name}: pip install "prem-encrypted[enclave]"', name=missing.name
    ) from missing

__all__ = ["Exchange", "LocalEnclave"]
