"""Keys: the words of a property's name or a form's label in a shape in which the two can be compared."""

from __future__ import annotations

from prem_core.enclave.extractive.words import STOPWORDS, identifier_words, stem

# What forms call by several names. The first of each row stands for all of it.
_SYNONYMS = {
    stem(word): stem(row.split()[0])
    for row in (
        "vendor supplier seller issuer merchant",
        "customer client buyer bill",
        "quantity qty",
        "number no nr num id",
        "email mail",
        "phone telephone tel mobile",
        "price cost",
        "total amount sum",
        "tax vat",
        "description item product article",
        "zip postcode postal plz",
        "birth birthday born",
        "company organization organisation firm",
    )
    for word in row.split()
}


def key(word: str) -> str:
    """The stem of a word, synonyms of forms joined ("qty" and "quantity")."""
    stemmed = stem(word)
    return _SYNONYMS.get(stemmed, stemmed)


def label_keys(text: str) -> frozenset[str]:
    """The keys that identify a label or a property name: no stopwords unless there is nothing else."""
    words = identifier_words(text)
    telling = [word for word in words if word.casefold() not in STOPWORDS]
    return frozenset(key(word) for word in telling or words)


# Stopwords that tell properties apart: from_account, to_account.
_DIRECTIONS = frozenset(("from", "to", "by", "about", "with"))


def property_keys(name: str) -> frozenset[str]:
    """The keys of a property's name, directions included."""
    directions = {word.casefold() for word in identifier_words(name)} & _DIRECTIONS
    return label_keys(name) | directions


def keys(words: str) -> frozenset[str]:
    """The keys of words written one after the other."""
    return frozenset(key(word) for word in words.split())
