# ruff: noqa: RUF001 - typographic quotes, dashes and full-width stops are what prompts hold.
"""Finding a string for a property in running text, by what the property's name says it is.

Order: what the format demands, what the words around a value say ("named X", "to X", "subject 'X'"), what kind
of thing the property asks for (a place, a company, a date), and for required properties whatever was named.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from prem_core.enclave.extractive import readings
from prem_core.enclave.extractive.keys import key, keys
from prem_core.enclave.extractive.material import Material
from prem_core.enclave.extractive.mentions import CURRENCY_SIGNS
from prem_core.enclave.extractive.nearest import clusters
from prem_core.enclave.extractive.readings import Read
from prem_core.enclave.extractive.words import IMPERATIVES, STOPWORDS, WORD

_PLACE = keys(
    "location city place country town region state where destination origin venue capital departure arrival"
)
_COMPANY = keys("vendor company employer manufacturer brand issuer customer bank publisher")
_DAY = keys("date day when deadline due birthday dob")
_HOUR = keys("time hour clock")
_GENERIC = _DAY | _HOUR | keys("email address url uri link")
_LONG = keys(
    "answer summary explanation reason text content response message reply body overview conclusion note query"
)
_REMAINDER = keys("query question input text prompt message request search content keyword term task command")
_DESCRIPTION = keys("description detail about summary note comment bio")
_ITEM = keys("description name title label")
_FORMULA = keys("expression formula equation calculation")
_NAMED = keys("name person who title author user")

# The preposition that leads to the value of a property with this word in its name.
_PREPOSITIONS = {
    key(word): preposition
    for preposition, words in {
        "from": "from origin departure source start sender",
        "to": "to destination arrival target recipient receiver end",
        "about": "about topic subject theme",
        "by": "by author",
        "with": "with attendee participant guest partner",
        "in": "language",
    }.items()
    for word in words.split()
}
_FORMATS: dict[str, Callable[[Material], Iterable[Read]]] = {
    "date": lambda material: material.dates,
    "date-time": lambda material: readings.date_times(material.text),
    "time": lambda material: readings.times(material.text),
    "email": lambda material: material.emails,
    "uri": lambda material: material.uris,
    "url": lambda material: material.uris,
}
_RELATIVE_DAY = re.compile(
    r"\b(?:(?:next|this|last) (?:week|month|year|weekend)"
    r"|(?:(?:next|this|last|on) )?(?:mon|tues|wednes|thurs|fri|satur|sun)day"
    r"|today|tonight|tomorrow(?: (?:morning|afternoon|evening|night))?|yesterday)\b",
    re.I,
)
_CLOCK = re.compile(r"\b\d{1,2}(?::\d{2}(?::\d{2})?(?:\s?[ap]\.?m\b)?|\s?[ap]\.?m\b)", re.I)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_PHONE = re.compile(r"(?<![\w-])(?:\+|00)?\(?\d[\d ()/.-]{5,22}\d(?![\w-])")
_CURRENCY = re.compile(
    r"\b(?:USD|EUR|GBP|JPY|CHF|CNY|INR|CAD|AUD|SEK|NOK|DKK|PLN|CZK|BRL|MXN|KRW|BTC|ETH)\b|[$€£¥]"
)
_CODE = re.compile(r"(?<![\w-])(?=[\w/-]{0,40}\d)(?=[\w/-]{0,40}[A-Z])[A-Z0-9][\w/-]{1,40}(?![\w-])")
_ARITHMETIC = re.compile(r"[\d(](?:[\d\s.()]{0,200}[-+*/^×÷%]){1,50}[\d\s.()]{0,200}[\d)]")
_DASH = re.compile(r"\s[-–—]\s|:\s")
_CONNECTOR = re.compile(
    r"(?P<strong>\s*(?:[:=]|→|->)\s*"
    r"|(?:\s+(?:number|code|no\.?))?\s+(?:is|was|are|were|equals|named|called|should be|will be|set to)\s+)"
    r"|\s*#?\s*(?:of|to|as)?\s*"
)
_ARTICLE = re.compile(r"(?:the|an?)\s+", re.I)
_PLAIN_END = re.compile(
    r"[,.;:!?\n()]|\s(?:and|with|but|who|which|that|on|at|in|for|from|to|is|was)\s|\s[-–—]\s|$"
)
_MAX_PLAIN_WORDS = 6
_MAX_PLACE_WORDS = 3
_MAX_PLAIN = 120
_QUOTATION_MARKS = frozenset("\"'“«「`‘")
_ASKED_FOR = re.compile(
    r":\s+|\b(?:for|about|that|on|whether)\s+|\b(?=(?:how|what|who|when|where|why)\b)", re.I
)
# What stands between an item and its numbers: "2 x", "at 12.50", "EUR".
_AROUND_ITEM = re.compile(
    r"^[\s\W]*(?:x\b|×|@|of\b|at\b|=)?[\s\W]*|[\s\W]*(?:\b(?:x|at|for|each|is|[A-Z]{3}))?[\s\W]*$"
)
_CLOSE = 20  # characters between a property's words and a value that belongs to them
_PLACE_BEFORE = re.compile(
    r"\b(?:in|at|near|for|to|from|around|of)\s+(?:the\s+(?:city|town)\s+of\s+)?$", re.I
)
_COUNTRY = re.compile(r", [A-ZÀ-ÖØ-Þ][\w'’-]+(?: [A-ZÀ-ÖØ-Þ][\w'’-]+)*")


def find_string(material: Material, words: frozenset[str], form: str, required: bool) -> Read | None:
    """The string in `material` for a property whose name has the keys `words`, not taken yet; None if none fits.

    Only what the words point to is taken for an optional property. The value is as written, but for dates and
    times where `form`, a JSON Schema format, asks for ISO.
    """
    if form in _FORMATS:
        reads = list(_after_words(material, words, _FORMATS[form]))
        # An optional "due date" is not any date; a "date" is.
        if required or material.kind == "clause" or words <= _GENERIC:
            reads += _FORMATS[form](material)
        return _first(material, reads)
    for finder in _finders(material, words, required):
        if found := _first(material, finder(material)):
            return found
    return None


def _first(material: Material, reads: Iterable[Read]) -> Read | None:
    return next((read for read in material.free(reads) if read.value), None)


Finder = Callable[[Material], Iterable[Read]]


def _finders(material: Material, words: frozenset[str], required: bool) -> Iterator[Finder]:
    for kinds, finder in _BY_KEY:
        if words & kinds:
            yield finder
    yield partial(_stated, words=words, required=required)
    for word in sorted(words & _PREPOSITIONS.keys()):
        yield partial(_after_preposition, preposition=_PREPOSITIONS[word])
    if words & _PLACE:
        yield _places
    if words & _COMPANY:
        yield lambda material: material.companies
    if words & _DAY:
        yield lambda material: [
            *_as_written(material, material.dates),
            *_matches(_RELATIVE_DAY, material.text),
        ]
    if words & _HOUR:
        yield partial(_matching, pattern=_CLOCK)
    if words & _FORMULA:
        yield partial(_matching, pattern=_ARITHMETIC)
    if not required:
        return
    if material.kind == "item" and words & _ITEM:
        yield _leftover
    if words & _DESCRIPTION:
        yield _apposition
    if material.kind == "document" and not words & _NAMED:
        return
    yield lambda material: material.quotes
    yield lambda material: material.emails
    if material.kind == "clause" and words & _REMAINDER:
        yield _remainder
    if not words & _LONG or words & _NAMED:
        yield lambda material: material.names


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[Read]:
    for found in pattern.finditer(text):
        yield Read(found[0].strip(), found.start(), found.end())


def _matching(material: Material, pattern: re.Pattern[str]) -> Iterator[Read]:
    return _matches(pattern, material.text)


def _as_written(material: Material, reads: Iterable[Read]) -> list[Read]:
    return [Read(material.text[read.start : read.end], read.start, read.end) for read in reads]


def _currencies(material: Material) -> list[Read]:
    return [
        Read(CURRENCY_SIGNS.get(str(read.value), read.value), read.start, read.end)
        for read in _matches(_CURRENCY, material.text)
    ]


_BY_KEY: tuple[tuple[frozenset[str], Finder], ...] = (
    (keys("email"), lambda material: material.emails),
    (keys("url uri link website homepage webpage"), lambda material: material.uris),
    (keys("iban"), partial(_matching, pattern=_IBAN)),
    (keys("phone fax"), partial(_matching, pattern=_PHONE)),
)


def _after_words(material: Material, words: frozenset[str], reader: Finder) -> Iterator[Read]:
    """Values of a kind that stand close behind the property's words."""
    reads = list(reader(material))
    for share, _, end in clusters(material, words):
        following = bisect.bisect_left(reads, end, key=lambda read: read.start)
        if share > 0.5 and following < len(reads) and reads[following].start - end <= _CLOSE:
            yield reads[following]


def _stated(material: Material, words: frozenset[str], required: bool) -> Iterator[Read]:
    """ "<name> is X", "<name>: X", "named X", "<name> 'X'", "<name> INV-1042"."""
    named = words | keys("named called") if words & keys("name title") else words
    for share, _, end in clusters(material, words):
        # Half a name is enough only for what must be found: "invoice INV-7" for an invoice_number.
        if share > 0.5 or (required and share == 0.5):
            yield from _value_at(material, end, share)
    if named != words:
        for _, _, end in clusters(material, keys("named called")):
            yield from _value_at(material, end, 1.0)


def _value_at(material: Material, at: int, share: float) -> Iterator[Read]:
    text = material.text
    connector = _CONNECTOR.match(text, at)
    begin = connector.end() if connector else at
    read = material.starting.get(begin) or material.starting.get(at + 1)
    if read and text[read.start] in _QUOTATION_MARKS:
        yield read
        return
    if article := _ARTICLE.match(text, begin):
        begin = article.end()
    if code := _CODE.match(text, begin):
        yield Read(code[0], begin, code.end())
        return
    name = material.starting.get(begin)
    if name and (share >= 1 or (connector and connector["strong"])):
        yield name
        return
    if connector and connector["strong"] and share > 0.5 and text[begin : begin + 1].strip():
        value = _plain(text, begin).strip("\"'")
        if value and len(value.split()) <= _MAX_PLAIN_WORDS and not text[at:begin].count("\n"):
            yield Read(value, begin, begin + len(value))


def _after_preposition(material: Material, preposition: str) -> Iterator[Read]:
    text = material.text
    for found in re.finditer(rf"\b{preposition}\s+", text, re.I):
        begin = found.end()
        if named := material.starting.get(begin):
            yield _with_country(material, named)
            continue
        if article := _ARTICLE.match(text, begin):
            begin = article.end()
        value = _plain(text, begin)
        if value and len(value.split()) <= _MAX_PLAIN_WORDS and value.split()[0].casefold() not in STOPWORDS:
            yield Read(value, begin, begin + len(value))


def _plain(text: str, begin: int) -> str:
    """The words from `begin` to the end of their phrase."""
    reach = text[begin : begin + _MAX_PLAIN]
    end = _PLAIN_END.search(reach)
    return reach[: end.start()].strip() if end else ""


def _with_country(material: Material, name: Read) -> Read:
    country = _COUNTRY.match(material.text, name.end) if material.kind == "clause" else None
    return Read(f"{name.value}{country[0]}", name.start, country.end()) if country else name


def _places(material: Material) -> Iterator[Read]:
    """Names after a preposition of place, "Paris, France" whole; in a request also a name on its own."""
    for name in material.names:
        if _PLACE_BEFORE.search(material.text[max(0, name.start - 24) : name.start]):
            yield _with_country(material, name)
    if material.kind == "clause":
        for found in re.finditer(r"\b(?:in|at|near|for)\s+([^\W\d_][^\s,.;:!?]{1,40})", material.text):
            if found[1].casefold() not in STOPWORDS:
                yield Read(found[1], found.start(1), found.end(1))
        yield from (_with_country(material, name) for name in material.names)
        bare = material.text.strip(" .,;!?\n")
        if len(bare.split()) <= _MAX_PLACE_WORDS and not any(
            word in STOPWORDS for word in bare.lower().split()
        ):
            yield Read(bare, material.text.find(bare), len(material.text))


def _leftover(material: Material) -> Iterator[Read]:
    """What is left of a list item without its numbers: "2 x Steel hammer at 12.50" leaves "Steel hammer"."""
    cuts = [(span.start, span.end) for span in [*material.numbers, *material.dates]]
    start = 0
    runs: list[Read] = []
    for begin, end in [*cuts, (len(material.text), len(material.text))]:
        run = material.text[start:begin]
        bare = _AROUND_ITEM.sub("", run)
        if any(character.isalpha() for character in bare):
            runs.append(Read(bare, start + run.index(bare), start + run.index(bare) + len(bare)))
        start = end
    yield from sorted(runs, key=lambda read: -len(str(read.value)))


def _apposition(material: Material) -> Iterator[Read]:
    """What follows the first dash or colon of a line."""
    at = 0
    for line in material.text.splitlines(keepends=True):
        if dash := _DASH.search(line):
            value = line[dash.end() :].strip().rstrip(".!?")
            yield Read(value, at + line.find(value, dash.end()), at + len(line))
        at += len(line)


def _remainder(material: Material) -> Iterator[Read]:
    """A request without the words that only ask: "Search the web for new ships" leaves "new ships"."""
    text = material.text.strip()
    offset = material.text.find(text)
    if text.endswith("?"):
        yield Read(text, offset, offset + len(text))
        return
    asked = _ASKED_FOR.search(text)
    first = WORD.match(text)
    verb = first.end() if first and first[0].casefold() in STOPWORDS | IMPERATIVES else 0
    start = asked.end() if asked else verb
    value = text[start:].strip().rstrip(".!,;")
    yield Read(value, offset + text.find(value), offset + len(text))


def currency_finder(words: frozenset[str]) -> Finder | None:
    """Currency codes and signs, for properties that ask for a currency."""
    return _currencies if words & keys("currency") else None


def asks_for_text(words: frozenset[str]) -> bool:
    """Whether a property of this name wants prose (an answer, a summary) rather than a name or a code."""
    return bool(words & _LONG)
