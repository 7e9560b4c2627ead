"""Table 1 of the report as data: what the model read, and what a mix of these sources
costs (report section 2.1).

The head of the data's flow: it says which text to get and how much of it; `mixture`
says in which order it is read. The names are confirmed, every other figure is known at
second hand. `contradictions` lets the columns testify against each other.
"""

import math
import numbers
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slm2_minimal.config import DataError

TOTAL_TOKENS = 2_009_831_803_929  # one pass over the mix; the whole run makes about two
STATUS = {  # how well each column is known
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
            if not 0 < getattr(self, field) < math.inf:
                raise DataError(
                    f"sources.{self.name}.{field} = {getattr(self, field)}: must be positive; leave"
                    " out what is not read"
                )

    @property
    def size(self) -> float:
        """Tokens in the whole source, read once."""
        return self.tokens / self.epochs


GATED = "gated: needs a login and consent"
SCRIPT = "script-based: newer versions of `datasets` do not load it"
PILE = "stands in, in part, for the Pile, which was removed"
REDPAJAMA = f"{SCRIPT}; the name fits, whether it is the report's copy is not known"
CULTURAX = f"{GATED}; of CulturaX, only the part from OSCAR was used"
CONTENT = "its field of text is `content`"
UNRELEASED = "never released"
NO_COPY = "no official copy on the Hub known to us"

# fmt: off
_TABLE = (
    Source("Arxiv", "Academic", "en", 0.0079, 15_852_446_656, 0.75, "togethercomputer/RedPajama-Data-1T:arxiv", REDPAJAMA),
    Source("PubMed", "Academic", "en", 0.0120, 24_126_600_626, 1, "monology/pile-uncopyrighted", PILE),
    Source("S2ORC", "Academic", "en", 0.0318, 63_910_567_858, 1, "allenai/peS2o", "the successor of S2ORC"),
    Source("PhilPapers", "Academic", "en", 0.0013, 2_591_115_796, 4, "monology/pile-uncopyrighted", PILE),
    Source("BookCorpusOpen", "Books", "en", 0.0045, 9_135_954_810, 6, None, NO_COPY),
    Source("PG-19", "Books", "en", 0.0091, 18_293_226_468, 4, "deepmind/pg19", f"its epochs might be 6; {SCRIPT}"),
    Source("FanFics", "Books", "en", 0.0018, 3_644_583_700, 4, None, UNRELEASED),
    Source("CulturaX EN", "Web", "en", 0.2521, 506_625_211_049, 0.72, "uonlp/CulturaX:en", CULTURAX),
    Source("CulturaX ES", "Web", "es", 0.0155, 31_241_701_156, 0.4, "uonlp/CulturaX:es", CULTURAX),
    Source("CulturaX DE", "Web", "de", 0.0152, 30_628_813_934, 0.32, "uonlp/CulturaX:de", CULTURAX),
    Source("CulturaX FR", "Web", "fr", 0.0097, 19_466_611_808, 0.26, "uonlp/CulturaX:fr", CULTURAX),
    Source("CulturaX IT", "Web", "it", 0.0096, 19_202_903_491, 0.4, "uonlp/CulturaX:it", CULTURAX),
    Source("CulturaX NL", "Web", "nl", 0.0097, 19_511_322_386, 0.62, "uonlp/CulturaX:nl", CULTURAX),
    Source("CulturaX PT", "Web", "pt", 0.0100, 20_063_968_694, 0.78, "uonlp/CulturaX:pt", CULTURAX),
    Source("C4", "Web", "en", 0.0855, 171_782_178_108, 1, "allenai/c4:en"),
    Source("OpenWebText2", "Web", "en", 0.0130, 26_161_864_434, 3, None, NO_COPY),
    Source("RefinedWeb", "Web", "en", 0.3292, 661_591_178_339, 1.15, "tiiuae/falcon-refinedweb", CONTENT),
    Source("StackExchange", "Social", "en", 0.0231, 46_302_993_820, 2.5, "togethercomputer/RedPajama-Data-1T:stackexchange", REDPAJAMA),
    Source("HackerNews", "Social", "en", 0.0019, 3_817_060_582, 2, "monology/pile-uncopyrighted", PILE),
    Source("EuroParl", "Law", "mul", 0.0023, 4_678_506_882, 3, "monology/pile-uncopyrighted", PILE),
    Source("FreeLaw", "Law", "en", 0.0088, 17_694_697_577, 1.2, "monology/pile-uncopyrighted", PILE),
    Source("PileOfLaw", "Law", "en", 0.0063, 12_663_061_642, 0.75, "pile-of-law/pile-of-law", SCRIPT),
    Source("DM Math", "Math", "en", 0.0066, 13_321_872_138, 3, "monology/pile-uncopyrighted", PILE),
    Source("AMPS", "Math", "en", 0.0011, 2_126_719_278, 6, None, NO_COPY),
    Source("OpenWebMath", "Math", "en", 0.0132, 26_530_341_292, 2, "open-web-math/open-web-math"),
    Source("RedPajama Wiki", "Wiki", "mul", 0.0363, 72_866_870_472, 3, "togethercomputer/RedPajama-Data-1T:wikipedia", SCRIPT),
    Source("Starcoder", "Code", "code", 0.0724, 145_586_775_301, 0.74, "bigcode/starcoderdata", f"{GATED}; {CONTENT}"),
    Source("Restruct-v1", "Instruction", "und", 0.0102, 20_412_655_632, 3, None, UNRELEASED),
)
# fmt: on


def table1() -> tuple[Source, ...]:
    """The 28 sources of the report's Table 1, in its order."""
    return _TABLE


def contradictions(sources: Sequence[Source] = _TABLE) -> list[str]:
    """Where the figures of Table 1 disagree with one another, one line each.

    A printed weight should be tokens / total to four decimals, the printed weights
    should sum to 1, the tokens to `TOTAL_TOKENS`, and what is read a whole number of
    times, 2 or more, should have a token count that divides by it.
    """
    found = []
    total = sum(source.tokens for source in sources)
    if total != TOTAL_TOKENS:
        found.append(f"the tokens sum to {total:,}, not {TOTAL_TOKENS:,}")
    for source in sources:
        printed, computed = f"{source.weight:.4f}", f"{source.tokens / total:.4f}"
        if printed != computed:
            found.append(
                f"{source.name}: the printed weight is {printed}, tokens / total is {computed}"
            )
        if (
            source.epochs >= 2
            and source.tokens % source.epochs
            and float(source.epochs).is_integer()
        ):
            found.append(
                f"{source.name}: {source.tokens:,} tokens are no whole multiple of its"
                f" {source.epochs:g} epochs"
            )
    if (weights := f"{math.fsum(source.weight for source in sources):.4f}") != "1.0000":
        found.append(f"the printed weights sum to {weights}, not 1")
    return found


def shares(
    by: Literal["name", "category", "language"], sources: Sequence[Source] = _TABLE
) -> dict[str, float]:
    """The share of the tokens, tokens / total, of every source, category or language,
    the largest first.
    """
    tokens: dict[str, int] = defaultdict(int)
    for source in sources:
        tokens[getattr(source, by)] += source.tokens
    total = sum(tokens.values())
    return {key: count / total for key, count in sorted(tokens.items(), key=lambda item: -item[1])}


@dataclass(frozen=True)
class Cost:
    """What a mix takes from one source: its share, its tokens, how often it is read;
    `warning` is empty where that is not too often.
    """

    name: str
    share: float
    tokens: int
    epochs: float
    warning: str


def cost(tokens: float, sources: Sequence[Source] = _TABLE, max_epochs: float = 4.0) -> list[Cost]:
    """What the mix of `sources` would take from each of them in a run of `tokens`
    tokens.

    Proportions are those of the sources' own token counts. A source of `size` tokens
    with the share w is read w * tokens / size times. A row warns where that is more
    than `max_epochs`; lower its weight then, add text, or shorten the run.

    Raises:
        DataError: `tokens` is no number or below 1, `max_epochs` is not positive, or
        there are no sources.
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
    budget, total, before, rows = int(tokens), sum(source.tokens for source in sources), 0, []
    for source in sources:
        taken = (
            before + source.tokens
        ) * budget // total - before * budget // total  # rounded so that the rows sum to the budget
        before += source.tokens
        epochs = source.epochs * budget / total
        warning = f"more than {max_epochs:g} epochs" if epochs > max_epochs else ""
        rows.append(Cost(source.name, source.tokens / total, taken, epochs, warning))
    return rows


def cost_table(rows: Sequence[Cost]) -> str:
    """The rows as aligned text, with a line for the sum."""
    table = [("source", "share", "tokens", "epochs", "")]
    table += [
        (row.name, f"{row.share:.2%}", f"{row.tokens:,}", f"{row.epochs:.2f}", row.warning)
        for row in rows
    ]
    table.append(
        (
            "sum",
            f"{sum(row.share for row in rows):.2%}",
            f"{sum(row.tokens for row in rows):,}",
            "",
            "",
        )
    )
    name, share, tokens, epochs = (max(len(line[column]) for line in table) for column in range(4))
    return "\n".join(
        f"{a:{name}}  {b:>{share}}  {c:>{tokens}}  {d:>{epochs}}  {e}".rstrip()
        for a, b, c, d, e in table
    )


PUE = 1.1  # power of the data centre over that of the GPUs: the report's (secondary)


KG_CO2_PER_KWH = 0.385  # unverified


REPORT_HOURS, REPORT_MWH = 92_000, 30  # confirmed, secondary
