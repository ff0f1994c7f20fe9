"""The search for the largest batch, on made-up memory."""

import math

import pytest

from hyperjax.training import largest
from hyperjax.training.largest import Choice


def counted(need):
  """The function, and the list of what it was asked."""
  asked = []

  def ask(n):
    asked.append(n)
    return need(n)

  return ask, asked


@pytest.mark.parametrize("start", [1, 16, 17, 18, 40, 300])
@pytest.mark.parametrize("known", [True, False])
def test_the_largest_number_that_fits(start, known):
  """5 + 0.55 n, of 14.6: 17 fit; what does not fit may have a size or not."""
  line = lambda n: 5 + 0.55 * n
  need, asked = counted(lambda n: line(n) if known or line(n) <= 14.6 else math.inf)
  assert largest.largest(need, 14.6, start) == 17
  assert len(set(asked)) == len(asked) <= (5 if known else 12)


def test_a_curve_is_no_line():
  need, asked = counted(lambda n: 1 + n**1.5 + 3 * (n % 2))
  # Even 130 needs 1,483; 131 needs 1,503; all below fit.
  assert largest.largest(need, 1_485.0, 1) == 130 and len(asked) < 15


def test_nothing_fits():
  assert largest.largest(lambda n: math.inf, 1.0, 4) == 0
  assert largest.choose(lambda choice: math.inf, 1.0, 16, 32, 16) is None


def memory(choice: Choice) -> float:
  """Parameters of 16 over all devices, and what an episode needs; tensor axes share out the most of
  it, but not all."""
  data, fsdp, tensor = choice.mesh
  episode = {"none": 4.0, "dots": 2.0, "full": 1.0}[choice.remat]
  return 16 / (fsdp * tensor) + choice.batch_size / fsdp * episode * (0.4 / tensor + 0.6)


def test_the_mesh_with_the_least_memory_for_an_episode():
  need, asked = counted(memory)
  assert largest.choose(need, 10.5, 16, 32, 16) == Choice(144, (1, 16, 1), "full")
  tensors = [choice for choice in asked if choice.mesh[2] > 1]
  assert [choice.mesh[2] for choice in tensors] == [2, 4, 8], "one step more is tried on each"
  assert all(choice.batch_size > 144 for choice in tensors)
  assert len(set(asked)) == len(asked)


def test_a_tensor_axis_that_has_room_for_more_is_searched():
  shared = lambda choice: 1 + choice.batch_size / math.prod(choice.mesh) / choice.mesh[2]
  assert largest.choose(shared, 3.5, 8, 4, 8) == Choice(80, (1, 2, 4), "none")


def test_of_equal_batches_the_one_that_computes_least_twice():
  """Batches grow in steps of 16, which leave room."""
  found = largest.choose(lambda c: 1.0 if c.batch_size <= 32 else math.inf, 1.0, 16, 1, 16)
  assert found == Choice(32, (1, 16, 1), "none")
  roomy = lambda c: c.batch_size / 16 * {"none": 9, "dots": 1.2, "full": 1}[c.remat]
  assert largest.choose(roomy, 2.5, 16, 1, 16) == Choice(32, (1, 16, 1), "dots")


def test_parts_of_a_batch_are_shared_out_evenly():
  found = largest.choose(lambda c: float(c.batch_size), 100.0, 8, 1, 8, accumulate=3)
  assert found == Choice(96, (1, 8, 1), "none")


def test_a_choice_is_a_command_line():
  assert Choice(64, (1, 16, 4), "full").flags == (
    "--gin.BATCH_SIZE=64 --gin.MESH_DATA=1 --gin.MESH_FSDP=16 --gin.MESH_TENSOR=4 --gin.REMAT=full"
  )
