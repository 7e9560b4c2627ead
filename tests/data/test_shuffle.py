"""The computed order: a bijection for every length, different for every key, and as
even as a shuffled deck.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.data.shuffle import Permutation, mix


@given(length=st.integers(1, 700), key=st.lists(st.integers(0, 2**40), max_size=3))
def test_every_number_comes_exactly_once(length: int, key: list[int]) -> None:
    assert sorted(Permutation(length, *key)) == list(range(length))


def test_the_mixing_function_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 0, as published with the generator.
    assert [mix(n * 0x9E3779B97F4A7C15 & (2**64 - 1)) for n in range(2)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
    ]


@pytest.mark.parametrize(
    "other", [(8, 0, 0), (7, 1, 0), (7, 0, 1)], ids=["seed", "source", "epoch"]
)
def test_each_part_of_the_key_changes_the_order(other: tuple[int, int, int]) -> None:
    ours, theirs = (
        np.asarray(list(Permutation(5_000, 7, 0, 0))),
        np.asarray(list(Permutation(5_000, *other))),
    )
    assert (ours == theirs).sum() < 8, "two independent orders agree in one place on average"


def test_the_same_key_gives_the_same_order_on_any_machine() -> None:
    assert [Permutation(1_000_003, 1234, 2, 5)[i] for i in range(4)] == [
        191508,
        770300,
        114673,
        368812,
    ]


def test_all_orders_of_four_are_about_equally_likely() -> None:
    draws = 24_000
    counts = Counter(tuple(Permutation(4, seed)) for seed in range(draws))
    assert len(counts) == 24
    chi_square = sum((count - draws / 24) ** 2 / (draws / 24) for count in counts.values())
    assert chi_square < 60, "23 degrees of freedom: 60 is passed once in 30,000 times by chance"


def test_neighbours_are_scattered() -> None:
    """Places and numbers are uncorrelated, and so are the numbers at neighbouring
    places.
    """
    order = np.asarray(list(Permutation(20_000, 3)))
    assert abs(np.corrcoef(np.arange(20_000), order)[0, 1]) < 5 / np.sqrt(20_000)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5 / np.sqrt(20_000)


def test_half_a_billion_at_once() -> None:
    order = Permutation(490_000_000, 1234, 0, 0)
    places = [0, 1, 245_000_000, 489_999_999]
    numbers = [order[place] for place in places]
    assert len(set(numbers)) == 4
    assert all(0 <= number < len(order) for number in numbers)


@pytest.mark.parametrize("index", [-1, 5, 6])
def test_a_place_outside_the_order(index: int) -> None:
    with pytest.raises(IndexError, match=r"of an order of 5"):
        Permutation(5)[index]
