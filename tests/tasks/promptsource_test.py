"""promptsource: templates in their public layout over records, and errors for what is wrong."""

import random

import pytest
import seqio

from hyperjax.data import build as build_lib
from hyperjax.data import eval_episodes, registering
from hyperjax.data.manifest import DataConfig, family
from hyperjax.launch import command_line
from hyperjax.tasks import p3
from hyperjax.tasks.promptsource import Templates
from hyperjax.tasks.promptsource_templates import Renderer
from tests.data.fakes import PROMPT, Bytes
from tests.tasks import promptsource_files as files


def rendered(path, template="mine_a_name", split="validation", options=True):
  """The rows of one template of a folder, called as in P3."""
  (found,) = Templates(str(path), include=[template]).tasks().values()
  return list(Renderer(found).rows(found.file.parent / f"{split}.jsonl", options))


def made(path, jinja, *values, **fields):
  """(input, target) of each record that one template takes."""
  files.one(path, jinja, values, **fields)
  return [(row["inputs"], row["targets"]) for row in rendered(path)]


# ---- What a template makes of a record -----------------------------------------------------------


def test_a_record_becomes_an_input_a_target_and_options(tmp_path):
  files.rte(tmp_path)
  assert rendered(tmp_path, "super_glue_rte_does_it_follow_") == [
    {"inputs": 'All are. From this alone, is it true that "One is."? Yes or no?',
     "targets": "Yes", "options": ["Yes", "No"]},
    {"inputs": 'One is. From this alone, is it true that "All are."? Yes or no?',
     "targets": "No", "options": ["Yes", "No"]},
  ]  # fmt: skip
  assert rendered(tmp_path, "super_glue_rte_generate_consequence") == [
    {"inputs": 'What follows from "All are."?', "targets": "One is.", "options": []}
  ]


def test_options_may_be_a_records_own(tmp_path):
  files.copa(tmp_path)
  name = "super_glue_copa__why_C1_or_C2"
  assert rendered(tmp_path, name)[1] == {
    "inputs": 'a1 Why, "c1" or "d1"?', "targets": "d1", "options": ["c1", "d1"]
  }
  assert [row["options"] for row in rendered(tmp_path, name, "train", options=False)] == [[]] * 4


def test_what_is_no_input_and_target_is_left_out(tmp_path):
  jinja = "{% if x %}{{ x }}?{% endif %}{% if y != 0 %}|||{{ y }}{% endif %}{{ z }}"
  records = [
    {"x": "a", "y": "b", "z": ""}, {"x": "a", "y": " \n", "z": ""}, {"x": "", "y": "b", "z": ""},
    {"x": "a", "y": 0, "z": ""}, {"x": "c", "y": "d", "z": " "},
  ]  # fmt: skip
  assert made(tmp_path, jinja, *records) == [("a?", "b"), ("c?", "d")]
  assert made(tmp_path / "2", "{{ x }} ||| a ||| b", {"x": "a"}) == []


def test_bars_in_a_records_text_part_nothing(tmp_path):
  record = {"x": "p ||| q", "a": "r|||s", "b": "t"}
  fields = {"answer_choices": "{{ a }} ||| {{ b }}"}
  files.one(tmp_path, "{{ x }}? ||| {{ answer_choices[0] }}", [record], **fields)
  assert rendered(tmp_path) == [
    {"inputs": "p ||| q?", "targets": "r|||s", "options": ["r|||s", "t"]}
  ]


def test_values_are_cut_where_p3_cuts_them_but_not_among_choices(tmp_path):
  """409 words with a space behind each are 2,045 characters, and three dots make it 2,048."""
  words, options = "word " * 600, [f"{i:0>100}" for i in range(40)]
  record = {"x": words, "options": options, "exact": "y" * 2048}
  jinja = "{{ x }} {{ exact }} ||| {{ answer_choices[39] }}"
  files.one(tmp_path, jinja, [record], answer_choices='{{ options | join("|||") }}')
  (row,) = rendered(tmp_path)
  assert row["inputs"] == " ".join(["word"] * 409) + "... " + "y" * 2048
  assert row["options"] == options and row["targets"] == options[39]


def test_a_choice_depends_on_the_number_of_the_record_alone(tmp_path):
  records = [{"x": ["a", "b", "c"]}] * 60
  jinja = "{{ x | choice }} {{ ['d', 'e'] | random }} ||| t"
  found = [inputs for inputs, _ in made(tmp_path, jinja, *records)]
  draws = [random.Random(number) for number in range(60)]
  assert found == [f"{draw.choice('abc')} {draw.choice('de')}" for draw in draws]
  assert len(set(found)) == 6 and [row["inputs"] for row in rendered(tmp_path)] == found


@pytest.mark.parametrize("jinja, record, expected", [
  ("{{ x | most_frequent | join(' ') }}", {"x": ["a", "b", "c", "b", "c"]}, "b c"),
  ("{{ x | most_frequent }}!", {"x": []}, "None!"),
  ("{% for a, b in zip(x, y) %}{{ a }}{{ b }} {% endfor %}", {"x": "ab", "y": [1, 2]}, "a1 b2"),
  ("{% set n = namespace(v=[]) %}{% for a in x %}{{ n.v.append(a * 2) or '' }}{% endfor %}"
   "{{ n.v }}", {"x": [1, 2]}, "[2, 4]"),
  ("{{ a_b }} {{ nested.text[0] }}", {"a-b": 1, "nested": {"text": ["t"]}}, "1 t"),
  ("{{ nested.gone }}{{ x[7] }}!", {"nested": {}, "x": []}, "!"),
  ("{% if x %}{% set y = 1 %}{% endif %}{{ y }}!", {"x": 0}, "!"),
])  # fmt: skip
def test_what_promptsources_templates_use(tmp_path, jinja, record, expected):
  assert made(tmp_path, f"{jinja} ||| t", record) == [(expected, "t")]


# ---- Tasks ---------------------------------------------------------------------------------------


def test_tasks_are_called_as_in_p3(tmp_path):
  files.rte(tmp_path)
  files.copa(tmp_path)
  files.put(tmp_path, "wiki.qa", files.RTE, {"test": files.RTE_RECORDS["train"]})
  files.put(tmp_path, "glue/no data", "never read", {})
  tasks = Templates(str(tmp_path)).tasks()
  assert list(tasks) == [
    "promptsource.super_glue_copa._why_C1_or_C2", "promptsource.super_glue_rte.does_it_follow_",
    "promptsource.super_glue_rte.generate_consequence", "promptsource.wiki_qa.does_it_follow_",
    "promptsource.wiki_qa.generate_consequence",
  ]  # fmt: skip
  assert {template.dataset for template in tasks.values()} == {
    "super_glue_copa", "super_glue_rte", "wiki.qa"
  }  # fmt: skip
  assert {Templates(str(tmp_path)).cluster(task) for task in tasks} == set(map(family, tasks)) == {
    "promptsource.super_glue_copa", "promptsource.super_glue_rte", "promptsource.wiki_qa"
  }  # fmt: skip


def test_data_sets_and_templates_are_chosen_by_p3s_names(tmp_path):
  files.rte(tmp_path)
  files.copa(tmp_path)
  names = lambda **chosen: [
    name.partition(".")[2] for name in Templates(str(tmp_path), **chosen).tasks()
  ]
  assert names(exclude=["super_glue_rte"]) == ["super_glue_copa._why_C1_or_C2"]
  only = {"include": ["super_glue_rte"], "exclude": ["super_glue_rte_does_it_follow_"]}
  assert names(**only) == ["super_glue_rte.generate_consequence"]
  assert names(original_task=True) == [
    "super_glue_copa._why_C1_or_C2", "super_glue_rte.does_it_follow_"
  ]  # fmt: skip
  with pytest.raises(ValueError, match="include names 'super_glue_rt', which is no data set or "
                                       "template there.*mean 'super_glue_rte'"):  # fmt: skip
    names(include=["super_glue_rt"])
  with pytest.raises(ValueError, match="no template that include and exclude leave"):
    names(exclude=["super_glue_rte", "super_glue_copa"])
  with pytest.raises(ValueError, match="Templates: include must be a list, not 'super_glue_rte'"):
    names(include="super_glue_rte")


def test_held_out_data_sets_without_an_original_task_are_named(tmp_path):
  """They are there, so that it is not their names that are wrong."""
  files.copa(tmp_path)
  files.put(tmp_path, "mine", files.RTE.replace("original_task: true", "original_task: false"),
            {"train": []})  # fmt: skip
  message = r": of {} no template's metadata has 'original_task: true'.*original_task = False\)"
  for held_out in ("mine", "mine_does_it_follow_"):
    with pytest.raises(ValueError, match=message.format(held_out)):
      Templates(str(tmp_path), include=["super_glue_copa", held_out], original_task=True).tasks()
  (tmp_path / "super_glue" / "copa" / "templates.yaml").unlink()
  with pytest.raises(ValueError, match=message.format("its data sets")):
    Templates(str(tmp_path), original_task=True).tasks()


def test_rates_are_t0s(tmp_path, monkeypatch):
  files.rte(tmp_path)
  files.copa(tmp_path)
  source = Templates(str(tmp_path), exclude=["super_glue_rte_generate_consequence"])
  assert list(source.rates().values()) == [4.0, 6.0]
  monkeypatch.setattr(p3, "CAP", 5)
  assert list(source.rates().values()) == [4.0, 2.0]  # 5 // the two templates that there are


@pytest.mark.usefixtures("empty_registry")
def test_splits_and_metrics_are_p3s(tmp_path):
  files.rte(tmp_path)
  files.put(tmp_path, "a", files.RTE, {"train": files.RTE_RECORDS["train"]})
  Templates(str(tmp_path)).register()
  found = {name: seqio.TaskRegistry.get(name) for name in seqio.TaskRegistry.names()}
  assert {name: (*task.splits, *registering.metrics(name)) for name, task in found.items()} == {
    "promptsource.a.does_it_follow_": ("train",),
    "promptsource.a.generate_consequence": ("train",),
    "promptsource.super_glue_rte.does_it_follow_": ("train", "validation", "rank_classification"),
    "promptsource.super_glue_rte.generate_consequence": ("train", "validation"),
  }
  rows = found["promptsource.super_glue_rte.does_it_follow_"].source.rows("train")
  assert [row["options"] for row in rows] == [[]] * 6


@pytest.mark.usefixtures("empty_registry")
def test_episodes_are_made_of_them(tmp_path):
  files.rte(tmp_path / "data")
  source = Templates(str(tmp_path / "data"), original_task=True)
  config = DataConfig(None, "bytes", prompt=PROMPT, sources=[source])
  manifest = build_lib.build(config, tmp_path / "out", vocabulary=Bytes())
  task = "promptsource.super_glue_rte.does_it_follow_"
  assert list(manifest.tasks) == [task]
  (episode,) = eval_episodes.eval_episodes(
    manifest, task, num_shots=2, num_queries=2, max_queries=None, seed=0
  )
  decode = Bytes().decode
  assert sorted(decode(query.target) for query in episode.queries) == ["No;", "Yes;"]
  assert {tuple(map(decode, query.options)) for query in episode.queries} == {("Yes;", "No;")}
  assert all(decode(shot).startswith("p") for shot in episode.shots)


def test_a_fingerprint_follows_the_template_and_the_data_not_their_place(tmp_path):
  folder = files.rte(tmp_path / "data")
  before = Templates(str(tmp_path / "data")).fingerprints()
  (tmp_path / "data").rename(tmp_path / "moved")
  folder = tmp_path / "moved" / "super_glue" / "rte"
  source = Templates(str(tmp_path / "moved"))
  assert source.fingerprints() == before
  (folder / "templates.yaml").write_text(files.RTE.replace("What follows", "What comes"))
  after = source.fingerprints()
  assert [task for task in before if before[task] != after[task]] == [
    "promptsource.super_glue_rte.generate_consequence"
  ]
  files.records(folder, "train", files.RTE_RECORDS["train"][1:])
  assert not set(source.fingerprints().values()) & set(before.values())


# ---- What is wrong -------------------------------------------------------------------------------


def said_in_one_line(error):
  """Whether a command prints it, not a traceback."""
  return command_line.raised_by_us(error, "hyperjax.tasks") and "\n" not in str(error)


X = {"x": "a", "options": ["a", "b"]}
BROKEN = [
  ("{{ x ", {}, X, r"templates\.yaml, template 'a name': jinja, line 1: TemplateSyntaxError: "
   r".*end of print statement.* leave it out with exclude"),
  ("a\n{{ x | gone }}", {}, X, r"jinja, line 2: TemplateAssertionError: No filter named 'gone'"),
  ("{{ x }} ||| a", {"answer_choices": "{% a ||| b"}, X, "answer_choices, line 1: TemplateSyn"),
  ("{{ xs }} ||| a", {}, X, r"validation\.jsonl, line 2: .*/templates\.yaml, template 'a name': "
   r"jinja reads the column 'xs', which the record lacks\. Did you mean 'x'\? Add it, or leave"),
  ("{{ x }} ||| a", {"answer_choices": "{{ option[0] }} ||| b"}, X,
   "line 2: .*answer_choices reads the column 'option', which the record lacks.*mean 'options'"),
  ("{{ x }} ||| c", {"answer_choices": "a ||| b"}, X,
   r"line 2: .*the target 'c' is none of its options \['a', 'b'\]\. Mend it, or leave the templ"),
  ("{{ x }} ||| a", {"answer_choices": "a ||| a"}, X, "line 2: .*option 'a' occurs twice"),
  ("{{ x }} ||| a", {"answer_choices": "a |||"}, X, "line 2: .*an option is empty"),
  ("{{ [] | choice }} ||| a", {}, X, "line 2: .*jinja: IndexError: .* leave it out with exclude"),
  ("{{ x + 1 }} ||| a", {}, X, "line 2: .*jinja: TypeError: "),
  ("{{ x.__class__.__mro__ }} ||| a", {}, X, "line 2: .*jinja: SecurityError: .*__class__"),
  ("{% include 'x' %} ||| a", {}, X, "line 2: .*jinja: TypeError: no loader"),
  ("{{ x }} ||| a", {}, ["x"], r"validation\.jsonl, line 2: it is no record: an object"),
  ("{{ x }} ||| a", {}, {"x": 1, "answer_choices": 1}, "line 2: it is no record: an object, with"),
  ("{{ x }} ||| a", {}, {"x": "\ud800"}, "line 2: .*is not Unicode text"),
  (7, {}, X, "templates.yaml, template 0: jinja must be a text, not 7"),
  ("", {"name": None}, X, "template 0: name must be a text, not None"),
  ("", {"answer_choices": ["Yes", "No"]}, X,
   r"answer_choices must be a text such as 'Yes \|\|\| No', or null, not \['Yes', 'No'\]"),
  ("", {"metadata": "x"}, X, "metadata must be a mapping, not 'x'"),
]  # fmt: skip


@pytest.mark.parametrize("jinja, fields, record, message", BROKEN)
def test_what_is_wrong_is_named_with_its_place(tmp_path, jinja, fields, record, message):
  files.one(tmp_path, jinja, ["", record], **fields)
  file = tmp_path / "mine" / "validation.jsonl"
  file.write_text(file.read_text().replace('""\n', "\n"))  # a blank line is no record
  with pytest.raises(ValueError, match=message) as error:
    rendered(tmp_path, "mine")
  assert said_in_one_line(error.value)


UNREADABLE = [
  ("Yes ||| No", "!!python/object/apply:os.mkdir [made]", "line 5: ConstructorError: could not "
   "determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.mkdir'. Take pr"),
  ("!Template", "!!python/object:collections.Counter", "line 4: .*tag.*python/object:coll"),
  ("!TemplateMetadata", "!!python/name:os.mkdir", "line 9: .*tag.*python/name:os.mkdir"),
  ("!TemplateMetadata", "!Other", "line 9: ConstructorError: .*for the tag '!Other'"),
  ("!Template\n", "!Template yes\n", "line 5: "),
  ("Yes ||| No", "!!timestamp x", "templates.yaml: AttributeError"),
  ("Yes ||| No", "'Yes", "line 7: ParserError"),
  ("Yes ||| No", "[" * 999, "RecursionError"),
  ("Yes ||| No", "\0", "ReaderError: .*special characters are not allowed"),
  ("templates:", "prompts:", "templates.yaml: it has no mapping 'templates'"),
  ("  2b52", "  more: 1\n  2b52", "template more: it must be a mapping, not 1"),
]  # fmt: skip


@pytest.mark.parametrize("old, new, message", UNREADABLE)
def test_a_file_that_is_not_promptsources(tmp_path, monkeypatch, old, new, message):
  monkeypatch.chdir(tmp_path)
  folder = tmp_path / "rte"
  folder.mkdir()
  files.records(folder, "test", [])
  (folder / "templates.yaml").write_text(files.RTE.replace(old, new, 1))
  with pytest.raises(ValueError, match=message) as error:
    Templates(str(tmp_path)).tasks()
  assert str(error.value).startswith(str(folder / "templates.yaml"))
  assert said_in_one_line(error.value) and list(tmp_path.iterdir()) == [folder]


def test_folders_without_anything_to_read(tmp_path):
  files.put(tmp_path, "rte", files.RTE, {})
  with pytest.raises(ValueError, match="of its 1 files .* none has data beside it: .*train.jsonl"):
    Templates(str(tmp_path)).tasks()
  nowhere = Templates(str(tmp_path / "nowhere"))
  assert not nowhere.available()
  with pytest.raises(FileNotFoundError, match="Source 'promptsource': there is no folder "):
    nowhere.fingerprints()
  files.records(tmp_path / "rte", "train", [])
  with pytest.raises(ValueError, match="rte/train.jsonl holds no rows"):
    Templates(str(tmp_path)).rates()


def test_templates_that_would_be_one_task_are_named(tmp_path):
  files.put(tmp_path, "rte", files.RTE.replace("generate/consequence", "does it_follow!"),
            {"train": []})  # fmt: skip
  with pytest.raises(ValueError, match="template 'does it follow.' and .*template 'does it_follow!'"
                                       ": both would be task 'rte_does_it_follow_'"):  # fmt: skip
    Templates(str(tmp_path)).tasks()
