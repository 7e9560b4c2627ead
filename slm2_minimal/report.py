"""What the report says, as data: Table 1, what a mix costs, the run's own figures, and
the tables of its evaluation.

The head of the data's flow: it says which text to get and how much of it, `mixture` in
which order it is read. The names of Table 1 are confirmed, its other figures are known
at second hand. `contradictions` lets its columns testify against each other.
"""

import math
import numbers
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from slm2_minimal.config import DataError

TOTAL_TOKENS = 2_009_831_803_929  # one pass over the mix: secondary; the whole run makes about two
REPORT_HOURS = 92_000  # of GPUs, in the whole run: confirmed
REPORT_MWH = 30  # energy of the whole run: secondary
PUE = 1.1  # power of the data centre over that of the GPUs: the report's, secondary
KG_CO2_PER_KWH = 0.385  # unverified

STATUS = {  # how well each column of Table 1 is known
    "name": "confirmed",
    "category": "secondary",
    "weight": "secondary",
    "tokens": "secondary",
    "epochs": "secondary",
    "language": "ours: from what the source is known to be",
    "hub": "not checked live",
}


@dataclass(frozen=True)
class Source:
    """One row of Table 1, or of a mix of your own."""

    name: str
    category: str
    language: str  # "mul": many; "und": not known; "code": programs
    weight: float  # as printed, rounded to four decimals
    tokens: int  # read in one pass over the mix, repetitions included
    epochs: float  # how often that pass reads the source; below 1, it reads a part
    hub: str | None  # as `load_corpus` takes it: owner/name or owner/name:configuration
    note: str = ""  # what to know about the copy, why there is none, or a doubt about a figure

    def __post_init__(self) -> None:
        for field in ("tokens", "epochs"):
            value = getattr(self, field)
            if not 0 < value < math.inf:
                raise DataError(
                    f"sources.{self.name}.{field} = {value}: must be positive; leave out what is"
                    " not read"
                )

    @property
    def size(self) -> float:
        """Tokens in the whole source, read once."""
        return self.tokens / self.epochs


# copies on the Hub
PILE = "monology/pile-uncopyrighted"
PILE_OF_LAW = "pile-of-law/pile-of-law"
RED_ARXIV = "togethercomputer/RedPajama-Data-1T:arxiv"
RED_STACK = "togethercomputer/RedPajama-Data-1T:stackexchange"
RED_WIKI = "togethercomputer/RedPajama-Data-1T:wikipedia"
REFINED_WEB = "tiiuae/falcon-refinedweb"
STARCODER = "bigcode/starcoderdata"

# notes on the copies
GATED = "gated: needs a login and consent"
SCRIPT = "script-based: newer versions of `datasets` do not load it"
CONTENT = "its field of text is `content`"
GATED_CONTENT = f"{GATED}; {CONTENT}"
OSCAR = f"{GATED}; of CulturaX, only the part from OSCAR was used"
PART = "stands in, in part, for the Pile, which was removed"
COPY = f"{SCRIPT}; the name fits, whether it is the report's copy is not known"
PG19 = f"its epochs might be 6; {SCRIPT}"
SUCCESSOR = "the successor of S2ORC"
UNRELEASED = "never released"
NO_COPY = "no official copy on the Hub known to us"

_TABLE = (
    Source("Arxiv", "Academic", "en", 0.0079, 15_852_446_656, 0.75, RED_ARXIV, COPY),
    Source("PubMed", "Academic", "en", 0.0120, 24_126_600_626, 1, PILE, PART),
    Source("S2ORC", "Academic", "en", 0.0318, 63_910_567_858, 1, "allenai/peS2o", SUCCESSOR),
    Source("PhilPapers", "Academic", "en", 0.0013, 2_591_115_796, 4, PILE, PART),
    Source("BookCorpusOpen", "Books", "en", 0.0045, 9_135_954_810, 6, None, NO_COPY),
    Source("PG-19", "Books", "en", 0.0091, 18_293_226_468, 4, "deepmind/pg19", PG19),
    Source("FanFics", "Books", "en", 0.0018, 3_644_583_700, 4, None, UNRELEASED),
    Source("CulturaX EN", "Web", "en", 0.2521, 506_625_211_049, 0.72, "uonlp/CulturaX:en", OSCAR),
    Source("CulturaX ES", "Web", "es", 0.0155, 31_241_701_156, 0.4, "uonlp/CulturaX:es", OSCAR),
    Source("CulturaX DE", "Web", "de", 0.0152, 30_628_813_934, 0.32, "uonlp/CulturaX:de", OSCAR),
    Source("CulturaX FR", "Web", "fr", 0.0097, 19_466_611_808, 0.26, "uonlp/CulturaX:fr", OSCAR),
    Source("CulturaX IT", "Web", "it", 0.0096, 19_202_903_491, 0.4, "uonlp/CulturaX:it", OSCAR),
    Source("CulturaX NL", "Web", "nl", 0.0097, 19_511_322_386, 0.62, "uonlp/CulturaX:nl", OSCAR),
    Source("CulturaX PT", "Web", "pt", 0.0100, 20_063_968_694, 0.78, "uonlp/CulturaX:pt", OSCAR),
    Source("C4", "Web", "en", 0.0855, 171_782_178_108, 1, "allenai/c4:en"),
    Source("OpenWebText2", "Web", "en", 0.0130, 26_161_864_434, 3, None, NO_COPY),
    Source("RefinedWeb", "Web", "en", 0.3292, 661_591_178_339, 1.15, REFINED_WEB, CONTENT),
    Source("StackExchange", "Social", "en", 0.0231, 46_302_993_820, 2.5, RED_STACK, COPY),
    Source("HackerNews", "Social", "en", 0.0019, 3_817_060_582, 2, PILE, PART),
    Source("EuroParl", "Law", "mul", 0.0023, 4_678_506_882, 3, PILE, PART),
    Source("FreeLaw", "Law", "en", 0.0088, 17_694_697_577, 1.2, PILE, PART),
    Source("PileOfLaw", "Law", "en", 0.0063, 12_663_061_642, 0.75, PILE_OF_LAW, SCRIPT),
    Source("DM Math", "Math", "en", 0.0066, 13_321_872_138, 3, PILE, PART),
    Source("AMPS", "Math", "en", 0.0011, 2_126_719_278, 6, None, NO_COPY),
    Source("OpenWebMath", "Math", "en", 0.0132, 26_530_341_292, 2, "open-web-math/open-web-math"),
    Source("RedPajama Wiki", "Wiki", "mul", 0.0363, 72_866_870_472, 3, RED_WIKI, SCRIPT),
    Source("Starcoder", "Code", "code", 0.0724, 145_586_775_301, 0.74, STARCODER, GATED_CONTENT),
    Source("Restruct-v1", "Instruction", "und", 0.0102, 20_412_655_632, 3, None, UNRELEASED),
)


def table1() -> tuple[Source, ...]:
    """The 28 sources of the report's Table 1, in its order."""
    return _TABLE


def contradictions(sources: Sequence[Source] = _TABLE) -> list[str]:
    """Where the figures of Table 1 disagree with one another, one line each.

    A printed weight should be tokens / total to four decimals, the printed weights
    should sum to 1, the tokens to `TOTAL_TOKENS`, and what is read a whole number of
    times, 2 or more, should have a token count that divides by it.
    """
    lines = []
    total = sum(source.tokens for source in sources)
    if total != TOTAL_TOKENS:
        lines.append(f"the tokens sum to {total:,}, not {TOTAL_TOKENS:,}")

    for source in sources:
        name, tokens, epochs = source.name, source.tokens, source.epochs
        printed = f"{source.weight:.4f}"
        computed = f"{tokens / total:.4f}"
        if printed != computed:
            lines.append(f"{name}: the printed weight is {printed}, tokens / total is {computed}")
        is_whole = epochs >= 2 and float(epochs).is_integer()
        if is_whole and tokens % epochs:
            lines.append(
                f"{name}: {tokens:,} tokens are no whole multiple of its {epochs:g} epochs"
            )

    weights = f"{math.fsum(source.weight for source in sources):.4f}"
    if weights != "1.0000":
        lines.append(f"the printed weights sum to {weights}, not 1")
    return lines


def shares(
    by: Literal["name", "category", "language"], sources: Sequence[Source] = _TABLE
) -> dict[str, float]:
    """The share of the tokens of every source, category or language, the largest
    first.
    """
    tokens: dict[str, int] = defaultdict(int)
    for source in sources:
        tokens[getattr(source, by)] += source.tokens
    total = sum(tokens.values())
    largest_first = sorted(tokens.items(), key=lambda item: -item[1])
    return {key: count / total for key, count in largest_first}


class Suite(NamedTuple):
    """One table of the report's evaluation, in percent."""

    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]  # by model; where only the mean is known, that alone


# By the name of their group in evaluate/tasks/report.
SUITES_STATUS = "confirmed: model cards and the authors' own result files"
SUITES = {
    # the authors' own run; shots: 25, 10, 5, 0, 5, 5
    "report_leaderboard": Suite(
        ("mean", "ARC", "HellaSwag", "MMLU", "TruthfulQA", "Winogrande", "GSM8K"),
        {
            "stablelm-2-1_6b": (45.54, 43.43, 70.49, 38.93, 36.65, 65.90, 17.82),
            "stablelm-2-zephyr-1_6b": (49.89,),
            "phi-2": (61.32,),
            "phi-1_5": (47.69,),
            "Qwen-1.8B": (44.75,),
            "TinyLlama-1.1B-3T": (36.40,),
            "falcon-rw-1b": (37.07,),
        },
    ),
    # zero-shot means by language; the first is of the 33 cells of task and language
    "report_multilingual": Suite(
        ("mean", "en", "de", "es", "fr", "it", "nl", "pt"),
        {
            "stablelm-2-zephyr-1_6b": (40.1, 49.5, 37.1, 36.2, 39.3, 39.0, 39.6, 40.1),
            "stablelm-2-1_6b": (39.0, 49.2, 35.7, 35.2, 38.8, 38.1, 37.7, 37.9),
            "gemma-2b": (38.6, 48.6, 35.5, 37.4, 38.4, 36.5, 35.2, 37.8),
            "phi-2": (34.9, 55.8, 28.5, 33.1, 32.5, 29.3, 29.9, 34.1),
            "Qwen1.5-1.8B": (34.3, 46.3, 31.0, 30.8, 33.5, 32.1, 31.8, 34.2),
            "TinyLlama-1.1B-3T": (33.9, 42.4, 30.9, 32.7, 34.0, 32.2, 31.6, 33.1),
        },
    ),
}


class Cost(NamedTuple):
    """What a mix takes from one source."""

    name: str
    share: float
    tokens: int
    epochs: float  # how often it is read
    warning: str  # empty where that is not too often


def cost(tokens: float, sources: Sequence[Source] = _TABLE, max_epochs: float = 4.0) -> list[Cost]:
    """What the mix of `sources` would take from each of them in a run of `tokens`.

    Proportions are those of the sources' own token counts. A source of `size` tokens
    with the share w is read w * tokens / size times. A row warns where that is more
    than `max_epochs`; lower its weight then, add text, or shorten the run.

    Raises DataError where `tokens` is no number or below 1, `max_epochs` is not
    positive, or there are no sources.
    """
    if not isinstance(tokens, numbers.Real) or not 1 <= tokens < math.inf:
        raise DataError(
            f"tokens = {tokens!r}: must be a number of tokens, 1 or more; Table 1 as printed is"
            f" {TOTAL_TOKENS:,}"
        )
    if not isinstance(max_epochs, numbers.Real) or not max_epochs > 0:
        raise DataError(
            f"max_epochs = {max_epochs!r}: must be a positive number; use inf for no warning"
        )
    if not sources:
        raise DataError("sources = (): nothing to read; give some rows of table1()")

    budget = int(tokens)
    total = sum(source.tokens for source in sources)
    rows = []
    begin = 0  # of the source's stretch of the mix, whose ends are rounded to the budget
    for source in sources:
        end = begin + source.tokens
        taken = end * budget // total - begin * budget // total
        begin = end
        epochs = source.epochs * budget / total
        warning = f"more than {max_epochs:g} epochs" if epochs > max_epochs else ""
        rows.append(Cost(source.name, source.tokens / total, taken, epochs, warning))
    return rows


def cost_table(rows: Sequence[Cost]) -> str:
    """The rows as aligned text, with a line for the sum."""
    table = [("source", "share", "tokens", "epochs", "")]
    for row in rows:
        epochs = f"{row.epochs:.2f}"
        table.append((row.name, f"{row.share:.2%}", f"{row.tokens:,}", epochs, row.warning))
    share = sum(row.share for row in rows)
    tokens = sum(row.tokens for row in rows)
    table.append(("sum", f"{share:.2%}", f"{tokens:,}", "", ""))

    w, x, y, z, _ = (max(map(len, column)) for column in zip(*table, strict=True))
    lines = [f"{a:{w}}  {b:>{x}}  {c:>{y}}  {d:>{z}}  {e}" for a, b, c, d, e in table]
    return "\n".join(line.rstrip() for line in lines)
