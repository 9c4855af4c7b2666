"""Send a file of requests, however large, and go on where the last run ended.

>>> from prem_core import batch
>>> progress = batch.run("requests.jsonl", "answers.jsonl")  # doctest: +SKIP
>>> print(progress.done, progress.failed)  # doctest: +SKIP

The command line has the same as ``prem batch``.
"""

from prem_core.batch.api import Report, arun, check, read_results, run
from prem_core.batch.cost import Price, read_prices
from prem_core.batch.extraction.documents import Document, read_document, text_document
from prem_core.batch.extraction.extract import (
    aextract,
    aextract_document,
    aread_parts,
    extract,
    extract_document,
    read_parts,
)
from prem_core.batch.extraction.steps import Extraction, ExtractionError, Reply, load_form
from prem_core.batch.lines import InvalidLineError
from prem_core.batch.progress import Progress
from prem_core.batch.runner import BatchStoppedError

__all__ = [
    "BatchStoppedError",
    "Document",
    "Extraction",
    "ExtractionError",
    "InvalidLineError",
    "Price",
    "Progress",
    "Reply",
    "Report",
    "aextract",
    "aextract_document",
    "aread_parts",
    "arun",
    "check",
    "extract",
    "extract_document",
    "load_form",
    "read_document",
    "read_parts",
    "read_prices",
    "read_results",
    "run",
    "text_document",
]
