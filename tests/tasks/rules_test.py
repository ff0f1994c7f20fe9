"""The rules tasks: what they hold, what is held out, that they are the same everywhere."""

import collections
import hashlib
import json
import os
import subprocess
import sys

import pytest

from hyperjax.tasks import rules
from hyperjax.tasks.lexical_task import family_rates

# The hash of every example of VERSION. A change of content changes it: raise VERSION with it.
CONTENT = {"1": "ec5e49d3cc583b0733cc092a162f24501e764262d6422b124e56241f76c213b0"}
SHOTS = 12

EXPECTED = {
  "rules.suffix": lambda word, x: word + x,
  "rules.prefix": lambda word, x: x + word,
  "rules.wrap": lambda word, x: x[0] + word + x[1],
  "rules.last_tag": lambda word, x: word[-1] + x,
  "rules.second_tag": lambda word, x: word[1] + x,
  "rules.replace": lambda word, x: word.replace(x[0], x[1]),
  "rules.pick_2_suffix": lambda text, x: text.split()[1] + x,
}


def run_python(script: str, **environment: str) -> str:
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True,
    env={**os.environ, **environment},
  )
  return done.stdout.strip()


@pytest.mark.parametrize("family", EXPECTED)
def test_a_familys_outputs_follow_from_its_value(family):
  tasks = [task for task in rules.TASKS.values() if task.family == family]
  assert len(tasks) == 60
  for task in tasks:
    value = task.name.rpartition(".")[2]
    for example in task.examples():
      assert example["output"] == EXPECTED[family](example["input"], value)


def test_every_task_has_enough_short_examples():
  assert len(rules.TASKS) >= 700
  for task in rules.TASKS.values():
    examples = task.examples()
    assert len(examples) > 100 and all(e["input"] and e["output"] for e in examples)
    assert max(len(e["input"]) + len(e["output"]) for e in examples) <= 18


def test_held_out_are_whole_families_and_values_of_others():
  held_out, trained = set(rules.HELD_OUT_TASKS), set(rules.TRAIN_TASKS)
  assert not held_out & trained
  families = lambda names: collections.Counter(rules.TASKS[name].family for name in names)
  seen, asked = families(trained), families(held_out)
  assert not set(rules.HELD_OUT_FAMILIES) & set(seen) and set(rules.HELD_OUT_FAMILIES) < set(asked)
  assert "rules.always" not in asked
  for family in set(asked) - set(rules.HELD_OUT_FAMILIES):
    assert seen[family] == 48 and asked[family] == 12


def test_no_two_tasks_are_the_same_rule():
  """No held-out task is answered by a training task's rule under another name."""
  outputs = collections.Counter()
  for task in rules.TASKS.values():
    outputs[tuple(sorted((e["input"], e["output"]) for e in task.examples()))] += 1
  assert set(outputs.values()) == {1}
  tables = [table for task in rules.TASKS.values() for table in task.tables]
  assert len(set(tables)) == len(tables)


def test_families_weigh_the_same():
  by_family = collections.Counter()
  for name, rate in family_rates(rules.TRAIN_TASKS).items():
    by_family[rules.TASKS[name].family] += rate
  assert all(weight == pytest.approx(1) for weight in by_family.values())


def test_content_is_the_recorded_one_in_every_process():
  script = """
import hashlib, json
from hyperjax.tasks import rules
content = {name: task.examples() for name, task in rules.TASKS.items()}
print(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
"""
  content = {name: task.examples() for name, task in rules.TASKS.items()}
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  assert CONTENT.get(rules.VERSION) == digest, "content changed: raise VERSION, record its hash"
  assert run_python(script, PYTHONHASHSEED="7", LC_ALL="C.UTF-8") == digest


def test_import_generates_nothing_and_needs_no_library():
  script = """
import sys
from hyperjax.tasks import lexical_task, rules
print(lexical_task._examples.cache_info().currsize,
      [name for name in ("seqio", "tensorflow", "jax", "numpy") if name in sys.modules])
"""
  assert run_python(script) == "0 []"


def test_seqio_serves_text():
  script = """
from hyperjax.tasks import rules
rules.register()
rules.register()
import seqio
name = rules.HELD_OUT_TASKS[0]
rows = seqio.get_mixture_or_task(name).get_dataset(None, "train", shuffle=False)
for row, example in zip(rows.take(3).as_numpy_iterator(), rules.TASKS[name].examples()):
  assert row["inputs"].decode() == example["input"]
  assert row["targets"].decode() == example["output"]
mixtures = {"rules_train": rules.TRAIN_TASKS, "rules_held_out": rules.HELD_OUT_TASKS}
for mixture, names in mixtures.items():
  assert {task.name for task in seqio.get_mixture_or_task(mixture).tasks} == set(names)
print("served")
"""
  assert run_python(script).endswith("served")
