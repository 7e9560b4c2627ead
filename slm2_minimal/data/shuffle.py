"""A random-looking order of any length that is computed, not stored.

A stored permutation of the full run's half a billion sequences would take gigabytes on
every process. A Feistel network is a bijection of its domain whatever its round
function is, so any place of the order is answered alone, in a few microseconds.
"""

MASK = 2**64 - 1
ROUNDS = 8


class Permutation:
    """A bijection of 0 .. length - 1, chosen by `key`.

    `Permutation(length, *key)[i]` is the i-th number of the shuffled order. The network
    works on an even number of bits, at most four times as many values. One outside is
    sent through again until it falls inside ("cycle walking"): still a bijection.
    """

    def __init__(self, length: int, *key: int) -> None:
        """`key`: any integers, as a seed and an epoch; each changes the whole order."""
        self.length = length
        self.half = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
        state = 0
        for number in key:
            state = mix(state ^ mix(number & MASK))
        self.keys = [mix(state + turn) for turn in range(ROUNDS)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} of an order of {self.length}")
        value = self.network(index)
        while value >= self.length:
            value = self.network(value)
        return value

    def network(self, value: int) -> int:
        """One pass through the network: each round swaps the halves and changes one."""
        left = value >> self.half
        right = value & ((1 << self.half) - 1)
        for key in self.keys:
            left, right = right, left ^ (mix(right ^ key) >> (64 - self.half))
        return left << self.half | right


def mix(value: int) -> int:
    """Spread every bit over all 64: SplitMix64 (Steele, Lea and Flood 2014), its
    golden-ratio step and its finaliser.
    """
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return value ^ value >> 31
