"""Answers of made-up methods on a made-up data folder, against every query by itself."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from hyperjax import answers
from hyperjax.answers import Method, Scorer
from hyperjax.data import continuations, eval_sets, loader
from hyperjax.evaluation import scoring
from hyperjax.hypermodels.in_context import InContext
from hyperjax.hypermodels.tuned import NoPhi, TunedPhi
from hyperjax.progress import compilations
from tests.data.fakes import Bytes, numbered, write_folder
from tests.models import tiny, tiny_t5

CONFIG = eval_sets.EvalConfig(
  num_shots=2, num_queries=6, max_queries=13, seeds=(0, 1), batch_size=2, max_shapes=1,
  max_new_tokens=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
  """Inputs of many lengths; options in all queries of a task, in some, and in none."""
  options = ["a", "a longer one", "no"]
  mixed = [
    {"input": f"{i}" + "x" * (i % 13), "output": options[i % 3]}
    | ({"options": options[: 2 + i % 2]} if i % 4 else {})
    for i in range(30)
  ]
  chosen = [{**row, "options": options} for row in mixed]
  return write_folder(
    tmp_path_factory.mktemp("data"), {"chosen": chosen, "mixed": mixed, "plain": numbered(30)}
  )


def methods() -> dict[str, tuple[str, Method]]:
  """{name: (layout, method)}."""
  llama, t5 = tiny.llama(vocab_size=Bytes.size), tiny_t5.t5(vocab_size=Bytes.size)
  shared = TunedPhi(t5.phi_spec(["embed"], prefix_length=2), rngs=nnx.Rngs(0))
  return {
    "zero-shot": ("decoder", Method(NoPhi(), llama, "", reads_support=False)),
    "in-context": ("decoder", Method(InContext(), llama, "")),
    "one phi": ("encoder_decoder", Method(shared, t5, "", reads_support=False)),
    "inline": ("encoder_decoder", Method(NoPhi(), t5, "", {"inline": True})),
  }


def scored(scorer: Scorer, method: Method, seed: int = 1) -> list[answers.Record]:
  return [r for part in scorer.parts(method, seed) for r in scorer.score(method, part)]


@pytest.mark.parametrize("name", methods())
def test_continuations_are_scored_as_one_by_one(manifest, name, monkeypatch):
  """Packed in several shapes and parts; the reference asks one query with one text at a time."""
  monkeypatch.setattr(continuations, "_PROGRAM_TOKENS", 0)
  monkeypatch.setattr(continuations, "_LANE_TOKENS", (8, 8))  # options in lanes of one and of two
  monkeypatch.setattr(answers, "_PART_BATCHES", 2)
  layout, method = methods()[name]
  scorer = Scorer(layout, Bytes(), manifest, CONFIG)
  [group] = eval_sets.groups(manifest, CONFIG, 1, layout=layout, **method.control)
  assert len(group.continuations) > 2
  shape = dataclasses.replace(group.shape, queries=1)
  found = {(r["task"], r["query_id"]): r for r in scored(scorer, method)}
  assert len(found) == 3 * 13
  ranked = 0
  for episode in group.episodes:
    for query in episode.queries:
      totals = []
      for ids in (query.target, *(query.options or ())):
        one = dataclasses.replace(
          episode, queries=(dataclasses.replace(query, target=ids),)
        )
        batch, counts = loader.to_batch([one], shape, group.layout)
        assert counts.targets_cut == counts.inputs_cut == counts.shots_dropped == 0
        phi = scoring.produce(method.producer, method.downstream, batch.support)
        totals.append(float(scoring.teacher_forced(method.downstream, phi, batch)[0][0, 0]))
      record = found[episode.task, query.id]
      assert record["log_likelihood"] == pytest.approx(totals[0], rel=1e-5)
      assert ("option_correct" in record) == bool(query.options)
      if query.options:
        best = query.options[int(np.argmax(totals[1:]))]
        assert record["option_correct"] == np.array_equal(best, query.target)
        by_token = [total / len(o) for total, o in zip(totals[1:], query.options, strict=True)]
        text = Bytes().decode(query.options[int(np.argmax(by_token))][:-1])
        assert record["option_by_token"] == text
        ranked += 1
  assert ranked > 10


def test_an_answer_that_goes_on_behind_an_eos_is_read_up_to_it_and_is_no_match(manifest):
  scorer = Scorer("decoder", Bytes(), manifest, CONFIG)
  query = eval_sets.groups(manifest, CONFIG, 0)[0].episodes[0].queries[0]
  target, end = query.target.tolist(), manifest.prompt.terminator_ids(Bytes())
  text = Bytes().decode(target[:-1])
  right = {"target": text, "prediction": text, "exact_match": 1}
  assert scorer._compare(target, query, end) == right
  for behind in ("", "more", "more;"):
    answer = [*target[:-1], Bytes.eos_id, *Bytes().encode_batch([behind])[0]]
    assert scorer._compare(answer, query, end) == {**right, "exact_match": 0}


def test_how_long_an_answer_may_be_does_not_depend_on_the_tasks_beside_it(manifest):
  """Of the task itself it does: its longest target or option, terminator included."""
  config = dataclasses.replace(CONFIG, max_new_tokens=None, seeds=(0,), max_queries=7)
  _, method = methods()["zero-shot"]

  def answered(**which) -> dict[tuple[str, int], str]:
    scorer = Scorer("decoder", Bytes(), manifest, dataclasses.replace(config, **which))
    return {(r["task"], r["query_id"]): r["prediction"] for r in scored(scorer, method, 0)}

  together = answered()
  assert together == answered(include=("chosen", "mixed")) | answered(include=("plain",))
  longest = {task: max(len(p) for (t, _), p in together.items() if t == task)
             for task in ("chosen", "plain")}  # fmt: skip
  assert longest["plain"] < longest["chosen"] <= len("a longer one") + 1


def test_nothing_compiles_for_the_next_seeds_and_parts(manifest, monkeypatch):
  monkeypatch.setattr(continuations, "_PROGRAM_TOKENS", 0)
  monkeypatch.setattr(answers, "_PART_BATCHES", 2)
  _, method = methods()["in-context"]
  scorer = Scorer("decoder", Bytes(), manifest, CONFIG)
  parts = scorer.parts(method, 0)
  assert [len(part.batches) for part in parts] == [2, 2, 1]
  first = scored(scorer, method, 0)
  before = compilations()
  second = scored(scorer, method, 1)
  assert compilations() == before
  assert [r["log_likelihood"] for r in first] != [r["log_likelihood"] for r in second]


def test_a_part_holds_fewer_batches_where_phis_are_large(manifest, monkeypatch):
  _, method = methods()["in-context"]
  scorer = Scorer("decoder", Bytes(), manifest, CONFIG)
  sizes = lambda: [len(part.batches) for part in scorer.parts(method, 0)]
  assert sizes() == [5]
  support, _ = eval_sets.supports(scorer.parts(method, 0)[0].group, 2, 0)
  phi = scoring.produce(method.producer, method.downstream, support)
  monkeypatch.setattr(answers, "_PHI_BYTES", sum(x.nbytes for x in jax.tree.leaves(phi)) * 2)
  assert sizes() == [2, 2, 1]
  monkeypatch.setattr(answers, "_PHI_BYTES", 0)
  assert sizes() == [1] * 5


def test_what_goes_beyond_a_models_context_is_remarked_on_once(manifest, capsys):
  _, method = methods()["zero-shot"]
  tokens = eval_sets.plan(manifest, CONFIG).tokens
  shortest, middle, longest = sorted(tokens, key=tokens.get)
  for context, names in (
    (tokens[middle], longest), (tokens[middle] - 1, f"{longest}, {middle}"),
    (tokens[longest], None), (None, None),
  ):  # fmt: skip
    scorer = Scorer("decoder", Bytes(), manifest, CONFIG, context)
    scorer.parts(method, 0)
    scorer.parts(method.under(other_support=True), 1)
    expected = "" if names is None else (
      f"note: a support and a query of {names} have up to {tokens[longest]} tokens together, the "
      f"model was trained for {context}: answers may be worse; NUM_SHOTS asks for fewer examples\n"
    )
    assert capsys.readouterr().err == expected


def test_a_remark_names_few_of_many_tasks():
  note = answers.remark({f"t{number}": 10 + number for number in range(9)}, 11)
  assert note.startswith("note: a support and a query of t8, t7, t6 and 4 more tasks have up to 18")


def test_parts_of_other_episodes_have_other_names(manifest, monkeypatch):
  monkeypatch.setattr(answers, "_PART_BATCHES", 2)
  _, method = methods()["zero-shot"]
  names = lambda config: [
    part.name for part in Scorer("decoder", Bytes(), manifest, config).parts(method, 0)
  ]
  one = names(CONFIG)
  assert len(set(one)) == len(one) > 1 and names(CONFIG) == one
  assert not set(one) & set(names(dataclasses.replace(CONFIG, max_shapes=2)))
