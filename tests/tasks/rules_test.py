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

# The hash of VERSION's examples and of what is held out: raise VERSION where it changes.
CONTENT = {"5": "bda22c5da7d160c6e6251593aadec7b41d838d6513b2af069c07264e92b0bb5c"}

spelled = lambda word, x: "".join(word[int(place) - 1] for place in x)
EXPECTED = {
  **{f"rules.{kind}_{n}": (4**n, spelled) for kind in ("spell", "marked") for n in (1, 2, 3)},
  "rules.behind": (60, lambda word, x: spelled(word, x[:2]) + x[2]),
  "rules.before": (60, lambda word, x: x[2] + spelled(word, x[:2])),
  "rules.around": (60, lambda word, x: spelled(word, x[0]) + x[2] + spelled(word, x[1])),
  "rules.always": (26, lambda word, x: x),
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
  count, rule = EXPECTED[family]
  assert len(tasks) == count
  for task in tasks:
    value = task.name.rpartition(".")[2]
    for example in task.examples():
      assert example["output"] == rule(example["input"], value)


def test_every_task_has_enough_words_of_different_letters():
  for task in rules.TASKS.values():
    words = [example["input"] for example in task.examples()]
    assert len(words) > 300 and all(len(set(word)) == len(word) == 4 for word in words)


def test_only_marked_words_tell_a_letters_place():
  places = collections.defaultdict(set)
  for name in ("rules.marked_2.13", "rules.spell_2.13"):
    for example in rules.TASKS[name].examples():
      for place, letter in enumerate(example["input"]):
        places[name, letter].add(place)
  assert all(len(found) == (1 if "marked" in name else 4) for (name, _), found in places.items())


def test_held_out_are_a_whole_family_and_values_of_others():
  held_out, trained = set(rules.HELD_OUT_TASKS), set(rules.TRAIN_TASKS)
  families = lambda names: collections.Counter(rules.TASKS[name].family for name in names)
  seen, asked = families(trained), families(held_out)
  assert asked == {"rules.behind": 12, "rules.before": 12, "rules.around": 13}
  assert not held_out & trained and "rules.around" not in seen
  assert seen["rules.spell_3"] == seen["rules.marked_3"] == 64 and seen["rules.behind"] == 48


def test_the_parts_of_every_held_out_rule_are_trained_on():
  for name in rules.HELD_OUT_TASKS:
    value = name.rpartition(".")[2]
    assert {f"rules.spell_2.{value[:2]}", f"rules.always.{value[2]}"} <= set(rules.TRAIN_TASKS)


def test_held_out_are_rules_of_one_letter_and_of_two():
  for family in ("behind", "before", "around"):
    names = [n for n in rules.HELD_OUT_TASKS if rules.TASKS[n].family == f"rules.{family}"]
    assert min(collections.Counter(map(rules.letters, names)).values()) >= 3


def test_guessing_places():
  assert rules.guessing(["rules.spell_2.33", "rules.behind.12q"]) == (1 / 4 + 1 / 12) / 2
  assert rules.guessing(["rules.spell_3.412"]) == 1 / 24


def test_no_held_out_task_is_answered_by_a_training_tasks_rule():
  trained = [
    (EXPECTED[rules.TASKS[name].family][1], name.rpartition(".")[2]) for name in rules.TRAIN_TASKS
  ]
  for name in rules.HELD_OUT_TASKS:
    examples = rules.TASKS[name].examples()[:20]
    for rule, value in trained:
      assert any(rule(e["input"], value) != e["output"] for e in examples), (name, value)


def test_families_weigh_the_same():
  by_family = collections.Counter()
  for name, rate in family_rates(rules.TRAIN_TASKS).items():
    by_family[rules.TASKS[name].family] += rate
  assert all(weight == pytest.approx(1) for weight in by_family.values())


def test_content_is_the_recorded_one_in_every_process():
  script = """
import hashlib, json
from hyperjax.tasks import rules
content = {name: task.examples() for name, task in rules.TASKS.items()}, rules.HELD_OUT_TASKS
print(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
"""
  content = {name: task.examples() for name, task in rules.TASKS.items()}, rules.HELD_OUT_TASKS
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
