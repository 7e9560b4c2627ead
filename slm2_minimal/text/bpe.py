"""Byte-level byte-pair encoding, short enough to read in one sitting (report section
2.2).

For teaching: training counts pairs anew for every merge and encoding looks for the best
pair anew for every merge. On the same ranks and pattern it gives exactly tiktoken's
ids, which `text.tokenizer` uses where speed matters.
"""

import itertools
from collections import Counter

import regex

Ranks = dict[bytes, int]  # token -> id; a lower id was merged earlier


def train_bpe(text: str, num_merges: int, pattern: str) -> Ranks:
    """Learn `num_merges` merges on top of the 256 bytes.

    The text is cut into pieces by `pattern`, and merges never cross a cut. Each round
    joins the most frequent adjacent pair; among equals, the one that is first as bytes,
    so that the result does not depend on the order of a dictionary. Training ends early
    when no pair is left.
    """
    ranks: Ranks = {bytes([byte]): byte for byte in range(256)}
    counts = Counter(regex.findall(pattern, text))
    words = {piece: [bytes([byte]) for byte in piece.encode("utf-8")] for piece in counts}
    for _ in range(num_merges):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for piece, parts in words.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[piece]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks[b"".join(best)] = len(ranks)
        words = {piece: _join(parts, best) for piece, parts in words.items()}
    return ranks


def bpe_merge(piece: bytes, ranks: Ranks) -> list[bytes]:
    """Cut one piece into tokens: join the adjacent pair of lowest rank, leftmost first,
    until no pair is a token.
    """
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 1:
        rank, place = min(
            (ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))
        )
        if rank == len(ranks):
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def encode_bpe(text: str, ranks: Ranks, pattern: str) -> list[int]:
    """The ids of a text: cut into pieces, each piece merged on its own."""
    return [
        ranks[token]
        for piece in regex.findall(pattern, text)
        for token in bpe_merge(piece.encode("utf-8"), ranks)
    ]


def _join(parts: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """All occurrences of `pair` joined, from left to right."""
    joined: list[bytes] = []
    i = 0
    while i < len(parts):
        if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
            joined.append(parts[i] + parts[i + 1])
            i += 2
        else:
            joined.append(parts[i])
            i += 1
    return joined
