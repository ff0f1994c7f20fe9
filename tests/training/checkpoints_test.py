"""Checkpoints on disk: what comes back, what is refused, what half-written and damaged ones are."""

import contextlib
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hyperjax.training.checkpoints import Checkpoints, abstract, enumerate_leaves
from tests.trees import assert_equal

TRAINED = {
  "producer": {"gist": jnp.arange(6.0).reshape(2, 3), "update": {"000": jnp.ones([2, 2, 4])}},
}
OPTIMIZER = optax.adamw(1e-3)


def scaled(factor):
  return jax.tree.map(lambda x: x * factor, TRAINED)


@pytest.fixture
def state():
  """An optimizer's state after an update, so that no leaf is zero by chance."""
  return OPTIMIZER.update(scaled(0.5), OPTIMIZER.init(TRAINED), TRAINED)[1]


@pytest.fixture
def folder(tmp_path, state):
  """A run's folder with checkpoints 1, 2, 3, of which the newest two stay."""
  checkpoints = Checkpoints(tmp_path / "run", "print")
  for step in (1, 2, 3):
    checkpoints.save(step, scaled(step), state)
  checkpoints.close()
  return tmp_path / "run"


def test_what_was_saved_comes_back(folder, state):
  checkpoints = Checkpoints(folder, "print")
  assert checkpoints.latest() == 3
  restored = checkpoints.restore(abstract(TRAINED), OPTIMIZER.init(TRAINED))
  assert restored.step == 3
  assert_equal(restored.trained, scaled(3))
  assert_equal(restored.state, state)
  checkpoints.close()


def test_the_newest_two_stay_and_each_can_be_read(folder):
  assert sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir()) == [
    "2", "3"
  ]  # fmt: skip
  checkpoints = Checkpoints(folder, "print")
  restored = checkpoints.restore(TRAINED, None, step=2)
  assert restored.step == 2 and restored.state is None
  assert_equal(restored.trained, scaled(2))
  checkpoints.close()


def test_the_same_step_is_not_saved_twice(folder, state):
  checkpoints = Checkpoints(folder, "print")
  checkpoints.save(3, scaled(100), state)
  checkpoints.wait()
  assert_equal(checkpoints.restore(TRAINED, None).trained, scaled(3))
  checkpoints.close()


def test_saving_copies_before_it_returns(tmp_path, state):
  """The training step gives its arrays' memory away while they are still being written."""
  trained = {"producer": {"gist": jnp.arange(100_000.0)}}
  checkpoints = Checkpoints(tmp_path, "print")
  checkpoints.save(1, trained, {"count": jnp.zeros([])})
  change = jax.jit(lambda x: jax.tree.map(lambda y: y * 0 - 1, x), donate_argnums=0)
  like = abstract(trained)
  jax.block_until_ready(change(trained))
  checkpoints.wait()
  restored = checkpoints.restore(like, None).trained
  np.testing.assert_array_equal(restored["producer"]["gist"], np.arange(100_000.0))
  checkpoints.close()


def test_a_half_written_checkpoint_is_none(folder, state):
  whole = folder / "checkpoints" / "3"
  shutil.copytree(whole, folder / "checkpoints" / "4.orbax-checkpoint-tmp")
  shutil.rmtree(folder / "checkpoints" / "4.orbax-checkpoint-tmp" / "trained")
  reader = Checkpoints(folder, "print", read_only=True)
  assert reader.latest() == 3 and (folder / "checkpoints" / "4.orbax-checkpoint-tmp").exists()
  reader.close()
  writer = Checkpoints(folder, "print")
  assert writer.latest() == 3
  writer.save(4, scaled(4), state)
  writer.wait()
  assert writer.latest() == 4 and not list((folder / "checkpoints").glob("*tmp*"))
  assert_equal(writer.restore(TRAINED, None).trained, scaled(4))
  writer.close()


def test_nothing_to_restore(tmp_path):
  checkpoints = Checkpoints(tmp_path, "print")
  assert checkpoints.latest() is None
  with pytest.raises(FileNotFoundError, match=f"{tmp_path}/checkpoints holds no complete"):
    checkpoints.restore(TRAINED, None)
  checkpoints.close()
  with pytest.raises(FileNotFoundError, match="none/checkpoints holds no complete checkpoint"):
    Checkpoints(tmp_path / "none", "print", read_only=True)
  assert not (tmp_path / "none").exists()


def test_another_frozen_model_is_refused(folder):
  checkpoints = Checkpoints(folder, "other")
  with pytest.raises(ValueError) as error:
    checkpoints.restore(TRAINED, None)
  assert str(error.value) == (
    f"the checkpoint {folder}/checkpoints/3 was trained on a frozen model with fingerprint print, "
    "this model's is other: use the model that the run's config.gin names"
  )
  checkpoints.close()


def test_other_data_is_gone_on_from_no_further(tmp_path, state):
  """Who does not train does not care; older checkpoints do not say."""
  for step, data in ((1, None), (2, "words")):
    writer = Checkpoints(tmp_path, "print", data=data)
    writer.save(step, TRAINED, state)
    writer.close()
  for data, step in ((None, 2), ("words", 2), ("other", 1)):
    reader = Checkpoints(tmp_path, "print", data=data)
    assert reader.check(step)[0] == step
    reader.close()
  reader = Checkpoints(tmp_path, "print", data="other")
  with pytest.raises(ValueError, match="checkpoints/2 was trained on other data than lies in DATA"):
    reader.check(2)
  reader.close()


@pytest.mark.parametrize("change, message", [
  (lambda p: {**p, "gist": jnp.ones([5, 3])},
   "trained.producer.gist has shape (2, 3) in the file and (5, 3) in this run"),
  (lambda p: {"gist": p["gist"]},
   "trained.producer.update.000 has shape (2, 2, 4) in the file and none in this run"),
  (lambda p: {**p, "sink": jnp.ones([1])},
   "trained.producer.sink has shape none in the file and (1,) in this run"),
  (lambda p: {**p, "gist": p["gist"].astype(jnp.bfloat16)},
   "trained.producer.gist is float32 in the file and bfloat16 in this run: set DTYPE as it was"),
])
def test_other_shapes_and_dtypes_are_refused(folder, change, message):
  checkpoints = Checkpoints(folder, "print")
  with pytest.raises(ValueError) as error:
    checkpoints.restore({"producer": change(TRAINED["producer"])}, None)
  assert str(error.value) == (
    f"the checkpoint {folder}/checkpoints/3 does not fit this configuration: {message}"
  )
  checkpoints.close()


def test_an_optimizer_of_another_kind_is_refused(folder):
  checkpoints = Checkpoints(folder, "print")
  with pytest.raises(ValueError) as error:
    checkpoints.restore(TRAINED, optax.sgd(1e-3, momentum=0.9).init(TRAINED))
  assert str(error.value) == (
    f"the checkpoint {folder}/checkpoints/3 does not fit this configuration: optimizer.0000 has "
    "shape () in the file and (2, 3) in this run"
  )
  checkpoints.close()


# Where a process writes the numbers of large arrays; and their index, with the small ones' numbers.
NUMBERS, INDEX = "trained/ocdbt.process_0/d", "trained/d"


def largest(folder):
  return max(folder.iterdir(), key=lambda file: file.stat().st_size)


def cut(step):
  file = largest(step / NUMBERS)
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(step, part=NUMBERS):
  file = largest(step / part)
  contents = bytearray(file.read_bytes())
  contents[len(contents) // 2] ^= 1
  file.write_bytes(contents)


def exchange(step):
  """As if other numbers than these had been summed up."""
  file = step / "about" / "metadata"
  about = json.loads(file.read_text())
  about["checksums"]["trained.producer.gist"] ^= 1
  file.write_text(json.dumps(about))


DAMAGES = {
  "a changed number": (flip, "trained.producer.gist is not what was saved"),
  "a changed index": (lambda step: flip(step, INDEX), "says of trained"),
  "other numbers": (exchange, "trained.producer.gist is not what was saved"),
  "a file cut short": (cut, ""),
  "no metadata": (lambda step: (step / "trained" / "_METADATA").unlink(), "says of trained"),
  "no numbers": (lambda step: shutil.rmtree(step / "optimizer"), "optimizer"),
  "no description": (lambda step: (step / "about" / "metadata").write_text("{"), "JSONDecodeError"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used_when_asked(tmp_path, damage):
  change, reason = DAMAGES[damage]
  state = {"count": jnp.ones([])}
  # Nothing that could be compressed: a byte of the file is one of a number.
  noise = lambda step: np.random.default_rng(step).integers(2**32, size=[64, 64], dtype=np.uint32)
  trained = lambda step: {"producer": {"gist": jnp.asarray(noise(step))}}
  first = Checkpoints(tmp_path, "print")
  for step in (1, 2):
    first.save(step, trained(step), state)
  first.close()
  change(tmp_path / "checkpoints" / "2")

  second = Checkpoints(tmp_path, "print")
  with pytest.raises(ValueError) as error:
    second.restore(trained(1), state)
  message = str(error.value)
  assert message.startswith(f"the checkpoint {tmp_path}/checkpoints/2 is damaged or out of reach (")
  assert reason in message and message.endswith("give --gin.RESUME_STEP=1")
  restored = second.resume(trained(1), state, 1)
  assert restored.step == 1
  assert_equal(restored.trained, trained(1))
  second.save(2, trained(5), state)
  second.close()

  # The same command again keeps what it has made since, unless that is damaged too.
  third = Checkpoints(tmp_path, "print")
  assert_equal(third.resume(trained(1), state, 1).trained, trained(5))
  with pytest.raises(FileNotFoundError, match=r"has no checkpoint of step 7 .*: it has \[1, 2\]"):
    third.resume(trained(1), state, 7)
  third.close()
  exchange(tmp_path / "checkpoints" / "2")
  fourth = Checkpoints(tmp_path, "print")
  assert fourth.resume(trained(1), state, 1).step == 1 and fourth.latest() == 1
  fourth.close()


def test_nothing_is_removed_where_the_step_to_go_back_to_does_not_fit(tmp_path, state):
  trained = {"gist": jnp.ones([4])}
  first = Checkpoints(tmp_path, "print")
  for step in (1, 2):
    first.save(step, trained, state)
  first.close()
  for fingerprint, shape, message in (("other", 4, "fingerprint"), ("print", 5, "has shape")):
    again = Checkpoints(tmp_path, fingerprint)
    with pytest.raises(ValueError, match=message):
      again.resume({"gist": jnp.ones([shape])}, state, 1)
    assert again.latest() == 2
    again.close()


@contextlib.contextmanager
def longest_file(size: int):
  """As a full disk: writing beyond that is an error."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_what_cannot_be_written_is_said_and_the_last_checkpoint_stays(tmp_path, state):
  noise = jnp.asarray(np.random.default_rng(0).normal(size=[100, 100]))
  checkpoints = Checkpoints(tmp_path, "print")
  checkpoints.save(1, {"gist": noise}, state)
  checkpoints.wait()
  with longest_file(8192), pytest.raises(OSError) as error:
    checkpoints.save(2, {"gist": noise * 2}, state)
    checkpoints.wait()
  message = str(error.value)
  assert message.startswith(f"a checkpoint could not be written to {tmp_path}/checkpoints (")
  assert "the newest whole one is of step 1" in message
  again = Checkpoints(tmp_path, "print")
  assert again.latest() == 1
  assert_equal(again.restore({"gist": noise}, state).trained, {"gist": noise})
  again.save(2, {"gist": noise * 2}, state)
  again.close()
  assert Checkpoints(tmp_path, "print", read_only=True).latest() == 2


def test_leaves_have_names_that_sort_by_position():
  names = [name for name, _ in enumerate_leaves([jnp.zeros([])] * 120)]
  assert names == sorted(names) and len(set(names)) == 120
