"""An OpenAI-compatible server on this machine that encrypts requests to Prem and decrypts the responses.

::

    with LocalProxy(port=3000) as proxy:
        client = openai.OpenAI(base_url=proxy.base_url, api_key="sk_live_…")

On the command line it is ``prem proxy``.
"""

from __future__ import annotations

try:
    from prem_core.proxy.local import LocalProxy
    from prem_core.proxy.request_log import RequestLog, RequestRecord, Subscription, WireCapture
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] == "prem_core":
        raise
    raise ImportError(
        f'the proxy needs {missing.name}: pip install "prem-encrypted[proxy]"', name=missing.name
    ) from missing

__all__ = ["LocalProxy", "RequestLog", "RequestRecord", "Subscription", "WireCapture"]
