"""Finding it again: a number that stands somewhere in a long text and is asked for at
its end.

A probe is a text that ends where the number comes next. Its greedy continuation is the
number or is not; and the right number is more likely than wrong ones by a margin. What
is found is told by kind, language, length and depth.

- passkey: one number in text.
- needles: the numbers of four people in text, one of them asked for.
- key-value: nothing but words with a number each, one of them asked for.
"""

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from slm2_minimal.config import ConfigError, DataError
from slm2_minimal.evaluate.score import Request, score
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.corpus import LANGUAGES, load_corpus
from slm2_minimal.text.documents import nfc
from slm2_minimal.text.interface import Tokenizer

KINDS = ("passkey", "needles", "key-value")
HAYSTACKS = ("corpus", "filler")
NEEDLES = 4  # numbers in a text of the kind needles
WRONG = 3  # values that the right one is compared with
SHORTEST_KEY = 4  # letters


class Phrases(NamedTuple):
    """How a language says it: what stands before a number, and a text without sense."""

    passkey: str
    needle: str
    filler: str


PHRASES = {
    "en": Phrases(
        "The secret number is",
        "The number of {name} is",
        "The grass is green. The sky is blue. The sun is yellow. There we go and back again.",
    ),
    "de": Phrases(
        "Die geheime Zahl ist",
        "Die Nummer von {name} ist",
        "Das Gras ist grün. Der Himmel ist blau. Die Sonne ist gelb. Wir gehen hin und zurück.",
    ),
    "es": Phrases(
        "El número secreto es",
        "El número de {name} es",
        "La hierba es verde. El cielo es azul. El sol es amarillo. Vamos y volvemos.",
    ),
    "fr": Phrases(
        "Le nombre secret est",
        "Le numéro de {name} est",
        "L'herbe est verte. Le ciel est bleu. Le soleil est jaune. Nous allons et revenons.",
    ),
    "it": Phrases(
        "Il numero segreto è",
        "Il numero di {name} è",
        "L'erba è verde. Il cielo è blu. Il sole è giallo. Andiamo e torniamo.",
    ),
    "nl": Phrases(
        "Het geheime getal is",
        "Het nummer van {name} is",
        "Het gras is groen. De lucht is blauw. De zon is geel. Wij gaan heen en weer.",
    ),
    "pt": Phrases(
        "O número secreto é",
        "O número de {name} é",
        "A relva é verde. O céu é azul. O sol é amarelo. Vamos e voltamos.",
    ),
}
NAMES = (
    "Ada", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Karin",
    "Laura", "Marco", "Nora", "Oscar", "Paula", "Robert", "Sonia", "Tomas", "Vera",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is asked: every kind, language, length and depth, `samples` times each.

    A length is in tokens, of prompt and answer together; a text is shorter by less than
    a word, or a pair of key-value. A depth of 0 puts the number at the beginning, 1
    at the end. Raises ConfigError for what cannot be asked.
    """

    kinds: Sequence[str] = KINDS
    languages: Sequence[str] = LANGUAGES
    lengths: Sequence[int] = (512,)
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = 4
    digits: int = 5
    haystack: str = "corpus"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names("kinds", self.kinds, KINDS)
        _check_names("languages", self.languages, LANGUAGES)
        _check_names("haystack", [self.haystack], HAYSTACKS)
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise ConfigError(f"depths = {depth}: must lie between 0, the beginning, and 1")
        for name in ("samples", "digits"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class Probe:
    """A prompt that ends where a value comes next. The first value is the right one;
    each begins with the space that parts it from the prompt.
    """

    depth: float
    prompt: str
    values: list[str]


class Outcome(NamedTuple):
    """Whether greedy text is the value, and log p(right) - log p(best wrong one) in
    nats; None where no probabilities are to be had.
    """

    exact: bool
    margin: float | None


@dataclass(frozen=True)
class Cell:
    """What was found of one kind, language, length and depth: a list entry a sample."""

    kind: str
    language: str
    length: int
    depth: float
    exact: list[bool]
    margin: list[float | None]


Ask = Callable[[list[Probe]], list[Outcome]]


def measure(ask: Ask, tokenizer: Tokenizer, settings: Settings) -> Iterator[tuple[str, list[Cell]]]:
    """What was asked, as kind, language and length, and its cells, one per depth."""
    groups = itertools.product(settings.kinds, settings.languages, settings.lengths)
    for kind, language, length in groups:
        probes = [
            make_probe(tokenizer, settings, kind, language, length, depth, number)
            for depth in settings.depths
            for number in range(settings.samples)
        ]
        outcomes = ask(probes)

        cells = []
        for place, depth in enumerate(settings.depths):
            own = outcomes[place * settings.samples : (place + 1) * settings.samples]
            exact, margin = [each.exact for each in own], [each.margin for each in own]
            cells.append(Cell(kind, language, length, depth, exact, margin))
        yield f"{kind}, {language}, {length:,} tokens", cells


def score_probes(model: StableLM2, tokenizer: Tokenizer, probes: Sequence[Probe]) -> list[Outcome]:
    """The outcomes of probes by a model's own probabilities."""
    requests = []
    for probe in probes:
        context = tokenizer.encode(probe.prompt)
        requests += [Request(context, tokenizer.encode(value)) for value in probe.values]
    scores = iter(score(model, requests))

    outcomes = []
    for probe in probes:
        right, *wrong = itertools.islice(scores, len(probe.values))
        margin = right.log_prob - max(each.log_prob for each in wrong)
        outcomes.append(Outcome(right.greedy, margin))
    return outcomes


# Making texts


def make_probe(
    tokenizer: Tokenizer,
    settings: Settings,
    kind: str,
    language: str,
    length: int,
    depth: float,
    number: int = 0,
) -> Probe:
    """The probe that these name: the same on every machine.

    Every piece of the text begins with a space, the first one too: so the tokens of the
    pieces add up to those of the whole.

    Raises:
        DataError: the length is too short to ask anything, or longer than there are
        words to be keys.
    """
    rng = random.Random(f"{settings.seed}/{kind}/{language}/{length}/{depth:g}/{number}")
    phrases = PHRASES[language]

    @functools.cache
    def count(piece: str) -> int:
        return len(tokenizer.encode(f" {piece}"))

    def value() -> str:
        return str(rng.randrange(10 ** (settings.digits - 1), 10**settings.digits))

    # what is asked for, and the other statements
    if kind == "key-value":
        leads = [f"{key}:" for key in rng.sample(keys(language), len(keys(language)))]
    elif kind == "needles":
        leads = [phrases.needle.format(name=name) for name in rng.sample(NAMES, NEEDLES)]
    else:
        leads = [phrases.passkey]
    asked, *rest = leads
    right = value()
    statement = f"{asked} {right}."
    others = (f"{lead} {value()}." for lead in rest)

    # the text: as many of the others as fit, or all of them in a haystack
    told = [] if kind == "key-value" else list(others)
    room = length - sum(map(count, [statement, f"{asked} {right}", *told]))
    if room < 0:
        raise DataError(
            f"lengths = {length}: what {kind} tells and asks needs {-room} tokens more; give larger"
        )
    if kind == "key-value":
        pieces = told = _fill(others, room, count)
    else:
        text = haystack(settings.haystack, language, rng)
        pieces = _fill(text, room, count, cut=True)
        for other in told:
            pieces.insert(rng.randint(0, len(pieces)), other)

    # the statement, between the two pieces that are nearest to its depth
    begins = list(itertools.accumulate(map(count, pieces), initial=0))
    place = min(range(len(begins)), key=lambda i: abs(begins[i] - depth * begins[-1]))
    whole = [*pieces[:place], statement, *pieces[place:], asked]

    # wrong values: those of the text first
    near = [other.removesuffix(".").rpartition(" ")[2] for other in told]
    values = dict.fromkeys([right, *near, *(value() for _ in range(10 * WRONG))])
    chosen = itertools.islice(values, 1 + WRONG)
    return Probe(depth, "".join(f" {piece}" for piece in whole), [f" {each}" for each in chosen])


def _fill(
    pieces: Iterable[str], room: int, count: Callable[[str], int], *, cut: bool = False
) -> list[str]:
    """The first pieces, up to `room` tokens. With `cut`, before them what fits of the
    end of the next one, as where a window begins within a sentence.
    """
    kept: list[str] = []
    for piece in pieces:
        if count(piece) <= room:
            kept.append(piece)
            room -= count(piece)
            continue
        words = piece.split(" ") if cut else []
        while words and count(" ".join(words)) > room:
            words.pop(0)
        return [" ".join(words), *kept] if words else kept
    raise DataError(f"lengths: key-value has no more than {len(kept):,} keys; give shorter ones")


def haystack(name: str, language: str, rng: random.Random) -> Iterator[str]:
    """Sentences without end: the corpus's documents in an order drawn anew each time,
    or the filler.
    """
    if name == "filler":
        yield from itertools.cycle(_sentences(PHRASES[language].filler))
    texts = _texts(language)
    while True:
        for text in rng.sample(texts, len(texts)):
            yield from _sentences(text)


@functools.cache
def keys(language: str) -> list[str]:
    """The language's words for key-value: those of the corpus in small letters."""
    words = {word for text in _texts(language) for word in re.findall(r"[^\W\d_]+", text)}
    return sorted(word for word in words if word.islower() and len(word) >= SHORTEST_KEY)


@functools.cache
def _texts(language: str) -> list[str]:
    return [nfc(document.text) for document in load_corpus(languages=[language])]


def _sentences(text: str) -> list[str]:
    """With single spaces inside."""
    return re.split(r"(?<=[.!?]) (?=\S)", " ".join(text.split()))


def _check_names(field: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{field} = {name!r}: unknown; choose among {', '.join(known)}")
