"""Minimal pairs: a sentence of the corpus, and the same sentence with one fault.

Two faults, by small tables for each language. In one, a determiner and the word after
it change places. In the other, a word takes its form of another gender or number. What
may be right both ways is left out: pronouns, nouns of two genders, nouns that stand for
a man or a woman.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

WORD = re.compile(r"[^\W\d_]+")


class Pair(NamedTuple):
    """A sentence, the same with a fault, and the word that is wrong in it."""

    good: str
    bad: str
    wrong: str


DETERMINERS = {
    "en": "the a an my his its our their every",
    "de": "der die das den dem des eine einen einem einer eines im am zum zur vom beim",
    "es": "el la los las un una del al su sus mi mis",
    "fr": "le la les un une des du au aux son sa ses mon ma mes",
    "it": "il la i gli le un una del della dei delle nel nella al alla dal dalla sul sulla",
    "nl": "de een mijn onze elke",
    "pt": "o os as um uma do da dos das no na nos nas ao à pelo pela",
}
FORMS = {
    "en": "is/are was/were has/have this/these that/those",
    "de": "ein/eine einem/einer dem/der zum/zur kein/keine",
    "es": "un/una el/la los/las",
    "fr": "un/une le/la son/sa mon/ma",
    "it": "un/una del/della nel/nella al/alla dal/dalla sul/sulla",
    "nl": "de/het dit/deze dat/die ons/onze",
    "pt": "um/uma do/da no/na ao/à pelo/pela num/numa",
}
# Forms that are pronouns too: not those after a preposition
PRONOUNS = {
    "en": "this these that those",
    "de": "dem der",
    "es": "la los las",
    "fr": "le la",
    "nl": "de het dit deze dat die ons",
}
PREPOSITIONS = {
    "en": "at behind between by for from in of on over to under with",
    "de": "an auf aus bei gegenüber hinter in mit nach neben seit über unter von vor zu zwischen",
    "es": "a bajo con contra de desde en entre hacia hasta para por sin sobre tras",
    "fr": "à avec chez contre dans de derrière devant entre par pendant sous sur vers",
    "nl": "aan achter bij door in met naar om onder op over tegen tussen uit van voor",
}
# Beside these, both forms or both orders may be right
BOTH_RIGHT = {
    "en": "court that which who would should must could to",
    "de": "",
    "es": "acta agua asa corte demás el la mañana mar mercader parte que quitanieves radio"
    " técnico dos tres cuatro cinco seis ocho once",
    "fr": "page solide tour",
    "it": "collega comune esce fine mercante",
    "nl": "acht afval blik punt stappen vlekken",
    "pt": "caixa chocava colega com corte das dos que repórter rádio sai serve",
}
ENDS_BOTH_RIGHT = {
    "es": r"(ista|nte)s?$",
    "fr": r"(er|ir|re|iste|ant)s?$",  # infinitives: "de le dire"
    "it": r"(ist[aei]|nt[ei])$",
    "nl": r"e$",  # adjectives that may stand alone: "het laatste", "de laatste"
    "pt": r"(ista|nte)s?$",
}


def word_order(sentence: str, language: str) -> Iterator[Pair]:
    """The sentence with a determiner put behind the word after it, each in turn."""
    determiners = DETERMINERS[language].split()
    for _, word, after in _in_threes(sentence, language):
        if word[0] in determiners:
            swapped = f"{after[0]} {word[0]}"
            bad = sentence[: word.start()] + swapped + sentence[after.end() :]
            yield Pair(sentence, bad, word[0])


def agreement(sentence: str, language: str) -> Iterator[Pair]:
    """The sentence with a word in its other form, each in turn."""
    other: dict[str, str] = {}
    for one, two in (forms.split("/") for forms in FORMS[language].split()):
        other |= {one: two, two: one}
    pronouns = PRONOUNS.get(language, "").split()
    prepositions = PREPOSITIONS.get(language, "").split()

    for before, word, _ in _in_threes(sentence, language):
        is_pronoun = word[0] in pronouns and before[0].lower() not in prepositions
        if word[0] in other and not is_pronoun:
            wrong = other[word[0]]
            bad = sentence[: word.start()] + wrong + sentence[word.end() :]
            yield Pair(sentence, bad, wrong)


def _in_threes(
    sentence: str, language: str
) -> Iterator[tuple[re.Match[str], re.Match[str], re.Match[str]]]:
    """Three words in a row that stand alone, where a fault in the second is a fault."""
    both_right = BOTH_RIGHT[language].split()
    ending = re.compile(ENDS_BOTH_RIGHT.get(language, r"^$"))
    words = list(WORD.finditer(sentence))
    for before, word, after in zip(words, words[1:], words[2:], strict=False):
        gaps = sentence[before.end() : word.start()], sentence[word.end() : after.start()]
        joined = sentence[after.end() : after.end() + 1] in ("-", "'", "’")
        if gaps != (" ", " ") or joined or len(after[0]) < 3:
            continue
        # German nouns are capitalised; elsewhere these are names
        if after[0][0].isupper() != (language == "de"):
            continue
        beside = before[0].lower(), after[0].lower()
        if not set(beside) & set(both_right) and not ending.search(after[0]):
            yield before, word, after
