"""The lexical tasks: counts, shares, contents, leaks, and seqio's view of them."""

import collections
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperjax.tasks import lexical, lexical_held_out, lexical_numbers, lexical_task
from hyperjax.tasks.lexical_task import MAX_EXAMPLES, Draws, LexicalTask

# The hash of every example of VERSION. A change of content changes it: raise VERSION with it.
CONTENT = {"1": "cb8d31cefc9a2783779383a68766704606eb2102a389375e48c4802d0a03f827"}
# Pairs that a held-out task may share with all training tasks together.
LEAK_LIMIT = 0.02

HELD_OUT = [lexical.TASKS[name] for name in lexical.HELD_OUT_TASKS]
TRAIN = [lexical.TASKS[name] for name in lexical.TRAIN_TASKS]
CONTENT_SCRIPT = """
import hashlib, json
from hyperjax.tasks import lexical
content = {name: task.examples() for name, task in lexical.TASKS.items()}
print(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
"""


def run_python(script: str, **environment: str) -> str:
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True,
    env={**os.environ, **environment},
  )
  return done.stdout.strip()


def normal(text: str) -> str:
  """Casefolded, without accents, punctuation and extra spaces."""
  text = unicodedata.normalize("NFKD", text.casefold())
  text = "".join(c for c in text if not unicodedata.combining(c))
  return " ".join(re.sub(r"[\W_]+", " ", text).split())


def pairs(task: LexicalTask) -> set[tuple[str, str]]:
  return {(normal(example["input"]), normal(example["output"])) for example in task.examples()}


@pytest.fixture(scope="module")
def trained_pairs() -> set[tuple[str, str]]:
  forward = set().union(*(pairs(task) for task in TRAIN))
  return forward | {(target, source) for source, target in forward}


def test_enough_tasks_in_enough_families():
  families = collections.Counter(task.family for task in lexical.TASKS.values())
  assert len(lexical.TASKS) >= 100
  assert len(families) >= 12
  assert max(families.values()) <= 0.15 * len(lexical.TASKS)
  assert all(re.fullmatch(r"lexical\.\w+\.\w+", name) for name in lexical.TASKS)


def test_held_out_families_are_whole_and_every_name_is_used():
  assert len(lexical_held_out.HELD_OUT_FAMILIES) >= 4
  assert set(lexical_held_out.HELD_OUT_FAMILIES) == {task.family for task in HELD_OUT}
  assert not {task.family for task in TRAIN} & {task.family for task in HELD_OUT}
  assert set(lexical.TRAIN_TASKS) | set(lexical.HELD_OUT_TASKS) == set(lexical.TASKS)
  assert all(lexical_held_out.HELD_OUT_FAMILIES.values()), "each family needs its reason"


@pytest.mark.parametrize("task", lexical.TASKS.values(), ids=lexical.TASKS)
def test_examples_are_well_formed(task):
  examples = task.examples()
  inputs = [example["input"] for example in examples]
  assert 64 <= len(examples) <= MAX_EXAMPLES
  assert len(set(inputs)) == len(inputs)
  for example in examples:
    for text in (example["input"], example["output"]):
      assert text and text == text.strip() and "\n" not in text
      assert text == unicodedata.normalize("NFC", text)
    assert ("options" in example) == task.has_options
    if task.has_options:
      options = example["options"]
      assert example["output"] in options
      assert len(options) >= 2 and len(set(options)) == len(options)
  assert max(len(example["input"]) for example in examples) <= 60
  assert len({example["output"] for example in examples}) >= 2


def test_no_table_is_both_trained_and_held_out():
  held_out = {table for task in HELD_OUT for table in task.tables}
  assert all(task.tables for task in lexical.TASKS.values())
  assert not held_out & {table for task in TRAIN for table in task.tables}


@pytest.mark.parametrize("task", HELD_OUT, ids=lexical.HELD_OUT_TASKS)
def test_held_out_pairs_are_not_trained_on(task, trained_pairs):
  own = pairs(task)
  leaked = own & trained_pairs
  assert len(leaked) <= LEAK_LIMIT * len(own), sorted(leaked)


def test_content_is_that_of_the_version():
  content = {name: task.examples() for name, task in lexical.TASKS.items()}
  digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  assert CONTENT.get(lexical.VERSION) == digest, "content changed: raise VERSION, record its hash"
  # A fresh process with another string hash and another locale draws the same.
  assert run_python(CONTENT_SCRIPT, PYTHONHASHSEED="7", LC_ALL="C.UTF-8") == digest


def test_import_generates_nothing_and_needs_no_library():
  heavy = "babel inflect num2words lemminflect seqio tensorflow jax numpy".split()
  script = f"""
import sys
from hyperjax.tasks import lexical, lexical_task
print(len(lexical.TASKS), lexical_task._examples.cache_info().currsize,
      [name for name in {heavy} if name in sys.modules])
"""
  assert run_python(script) == f"{len(lexical.TASKS)} 0 []"


def test_the_page_shows_the_present_table():
  page = pathlib.Path(__file__).parents[2] / "docs" / "lexical.md"
  assert lexical.table() in page.read_text(encoding="utf-8")


def test_families_weigh_the_same():
  by_family = collections.defaultdict(float)
  for name, rate in lexical_task.family_rates(lexical.TRAIN_TASKS).items():
    by_family[lexical.TASKS[name].family] += rate
  assert all(weight == pytest.approx(1) for weight in by_family.values())


def test_ambiguous_empty_and_repeated_examples_are_left_out():
  rows = [("a", "1"), ("a", "2"), ("b", "3"), ("b", "3"), (" c ", "4 "), ("", "5"), ("d", " ")]
  task = LexicalTask("lexical.x.y", ("t",), lambda: rows)
  assert sorted((e["input"], e["output"]) for e in task.examples()) == [("b", "3"), ("c", "4")]


@given(st.integers(1, 3999))
def test_roman_numerals_read_back(number):
  values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
  digits = [values[letter] for letter in lexical_numbers.roman(number)]
  signed = [-a if a < b else a for a, b in zip(digits, [*digits[1:], 0], strict=True)]
  assert sum(signed) == number


@given(st.text(), st.lists(st.integers(), min_size=1, unique=True), st.data())
def test_draws_are_reproducible_and_distinct(key, items, data):
  size = data.draw(st.integers(0, len(items)))
  sample = Draws(key).sample(items, size)
  assert sample == Draws(key).sample(items, size)
  assert len(set(sample)) == size and set(sample) <= set(items)


def test_seqio_serves_text():
  script = """
from hyperjax.tasks import lexical, lexical_task
lexical.register()
lexical.register()
assert lexical_task._examples.cache_info().currsize == 0
import seqio
def rows(name):
  ds = seqio.get_mixture_or_task(name).get_dataset(None, "train", shuffle=False)
  return list(ds.take(3).as_numpy_iterator())
for name in ("lexical.plurals.plural", "lexical.list_position.first_of_3"):
  examples = lexical.TASKS[name].examples()
  for row, example in zip(rows(name), examples):
    assert row["inputs"].decode() == example["input"]
    assert row["targets"].decode() == example["output"]
    assert [o.decode() for o in row["options"]] == example.get("options", [])
for mixture, names in (("lexical_train", lexical.TRAIN_TASKS),
                       ("lexical_held_out", lexical.HELD_OUT_TASKS)):
  assert {task.name for task in seqio.get_mixture_or_task(mixture).tasks} == set(names)
print("served")
"""
  assert run_python(script).endswith("served")
