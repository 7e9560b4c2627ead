"""Byte-level byte-pair encoding, short enough to read in one sitting.

For teaching: training counts all pairs anew for every merge. On the same ranks and
pattern it gives exactly tiktoken's ids, which `text.arcade` uses where speed matters.
"""

import itertools
from collections import Counter

import regex

from slm2_minimal.text.documents import well_formed

Ranks = dict[bytes, int]  # token -> id; a lower id was merged earlier


def train_bpe(text: str, num_merges: int, pattern: str) -> Ranks:
    """Learn `num_merges` merges on top of the 256 bytes.

    The text is cut into pieces by `pattern`, and merges never cross a cut. Each round
    joins the most frequent adjacent pair; among equals, the one that is first as bytes,
    so that the result does not depend on the order of a dictionary. Training ends early
    when no pair is left.
    """
    ranks: Ranks = {bytes([byte]): byte for byte in range(256)}
    counts = Counter(regex.findall(pattern, well_formed(text)))
    words = {piece: single_bytes(piece.encode()) for piece in counts}

    for _ in range(num_merges):
        # how often each pair stands in the whole text
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for piece, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[piece]
        if not pairs:
            break

        # the best pair becomes a token
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks[b"".join(best)] = len(ranks)
        words = {piece: join(parts, best) for piece, parts in words.items()}
    return ranks


def bpe_merge(piece: bytes, ranks: Ranks) -> list[bytes]:
    """Cut one piece into tokens.

    Joins the adjacent pair of lowest rank, leftmost first, until no pair is a token.
    """
    parts = single_bytes(piece)
    while len(parts) > 1:
        pair_ranks = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        best = min(pair_ranks)
        if best == len(ranks):
            break
        i = pair_ranks.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def encode_bpe(text: str, ranks: Ranks, pattern: str) -> list[int]:
    """The ids of a text: cut into pieces, each piece merged on its own."""
    ids: list[int] = []
    for piece in regex.findall(pattern, well_formed(text)):
        ids += [ranks[token] for token in bpe_merge(piece.encode(), ranks)]
    return ids


def single_bytes(piece: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in piece]


def join(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """All occurrences of `pair` joined, from left to right."""
    joined: list[bytes] = []
    i = 0
    while i < len(parts):
        width = 2 if tuple(parts[i : i + 2]) == pair else 1
        joined.append(b"".join(parts[i : i + width]))
        i += width
    return joined
