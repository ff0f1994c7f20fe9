"""Permutations, block schedules and apportionment: exact, keyed, and random enough."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperjax.data import schedule


@given(st.integers(1, 400), st.integers(0, 2**63))
def test_a_permutation_visits_everything_once(n, seed):
  permutation = schedule.Permutation(n, seed)
  assert sorted(map(permutation, range(n))) == list(range(n))


def test_permutations_of_three_are_about_uniform():
  found = collections.Counter(
    tuple(map(schedule.Permutation(3, seed, "x"), range(3))) for seed in range(3000)
  )
  assert len(found) == 6
  expected = 500
  assert sum((count - expected) ** 2 / expected for count in found.values()) < 25  # p ~ 1e-4


def test_every_element_is_equally_often_first():
  counts = np.bincount([schedule.Permutation(20, seed)(0) for seed in range(4000)], minlength=20)
  assert ((counts - 200) ** 2 / 200).sum() < 50  # 19 degrees of freedom, p ~ 1e-4


def test_a_permutation_refuses_positions_outside():
  with pytest.raises(IndexError, match=r"outside range\(5\)"):
    schedule.Permutation(5, 0)(5)


def test_keys_do_not_depend_on_the_process():
  assert schedule.key(1, "a") == (1657747788580248020, 9108770835516575477)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.integers(0, 100))
def test_blocks_count_visits_and_keep_shares(rates, seed):
  blocks = schedule.Blocks(rates, seed)
  seen = collections.Counter()
  for position in range(min(2 * blocks.size, 1000)):
    choice, visit = blocks(position)
    assert visit == seen[choice]
    seen[choice] += 1
  shares = np.asarray(rates) / sum(rates)
  assert np.abs(blocks.counts / blocks.size - shares).max() <= len(rates) / blocks.size
  later = 7 * blocks.size
  assert blocks(later)[1] == 7 * blocks.counts[blocks(later)[0]]


def test_equal_rates_are_exact():
  assert schedule.Blocks([1.0] * 7, 0).counts.tolist() == [4] * 7


def test_rates_must_be_positive():
  with pytest.raises(ValueError, match="above 0"):
    schedule.Blocks([1.0, 0.0], 0)
