"""Writes what a folder of promptsource holds, in its public layout, and records beside it."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

RTE = r"""dataset: super_glue
subset: rte
templates:
  2b52a83c-0021-41fe-b44c-5aaa076d71a2: !Template
    answer_choices: Yes ||| No
    id: 2b52a83c-0021-41fe-b44c-5aaa076d71a2
    jinja: '{{premise}} From this alone, is it true that "{{hypothesis}}"? Yes or
      no? ||| {% if label != -1 %}{{ answer_choices[label] }}{% endif %}'
    metadata: !TemplateMetadata
      choices_in_prompt: true
      languages:
      - en
      metrics:
      - Accuracy
      original_task: true
    name: "does it follow\u2026"
    reference: Adapted from nobody's instructions.
  4163e6f1-1a83-4c73-b867-02eb7ac80316: !Template
    answer_choices: null
    id: 4163e6f1-1a83-4c73-b867-02eb7ac80316
    jinja: "{% if label == 0 %} \nWhat follows from \"{{ premise }}\"?\n|||\n{{ hypothesis\
      \ }}\n{% endif %}"
    metadata: !TemplateMetadata
      choices_in_prompt: null
      languages:
      - en
      metrics:
      - BLEU
      - ROUGE
      original_task: false
    name: generate/consequence
    reference: ''
"""
RTE_RECORDS = {
  "train": [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 2} for i in range(6)],
  "validation": [
    {"premise": "All are.", "hypothesis": "One is.", "label": 0, "idx": 0},
    {"premise": "One is.", "hypothesis": "All are.", "label": 1, "idx": 1},
    {"premise": "Who knows.", "hypothesis": "I do.", "label": -1, "idx": 2},
  ],
  "test": [{"premise": "never read"}],
}
# The data set's own records have a number, `label`, for which the tests write the answer itself.
COPA = r"""dataset: super_glue
subset: copa
templates:
  150789fe-e309-47a1-82c9-0a4dc2c6b12b: !Template
    answer_choices: '{{choice1}} ||| {{choice2}}'
    id: 150789fe-e309-47a1-82c9-0a4dc2c6b12b
    jinja: "{% if question == \"cause\" %} \n{{ premise }} Why, \"{{ answer_choices[0]\
      \ }}\" or \"{{ answer_choices[1] }}\"? ||| {{ answer }}\n{% endif %}"
    metadata: !TemplateMetadata
      choices_in_prompt: true
      languages:
      - en
      metrics:
      - Accuracy
      original_task: true
    name: "\u2026why? C1 or C2"
    reference: ''
"""


def records(folder: pathlib.Path, split: str, values: Iterable[Any]) -> pathlib.Path:
  """Writes the records of a split, one a line, as `datasets` does."""
  file = folder / f"{split}.jsonl"
  file.write_text("".join(f"{json.dumps(value)}\n" for value in values))
  return file


def put(
  path: pathlib.Path, dataset: str, text: str, splits: Mapping[str, Iterable[Any]]
) -> pathlib.Path:
  """Writes a data set's templates and records; returns its folder."""
  folder = path / dataset
  folder.mkdir(parents=True)
  (folder / "templates.yaml").write_text(text)
  for split, values in splits.items():
    records(folder, split, values)
  return folder


def rte(path: pathlib.Path) -> pathlib.Path:
  return put(path, "super_glue/rte", RTE, RTE_RECORDS)


def copa(path: pathlib.Path) -> pathlib.Path:
  made = [
    {"premise": f"a{i}", "choice1": f"c{i}", "choice2": f"d{i}", "question": "cause",
     "answer": f"{'cd'[i % 2]}{i}"}
    for i in range(4)
  ]  # fmt: skip
  return put(path, "super_glue/copa", COPA, {"train": made, "validation": made})


def one(path: pathlib.Path, jinja: Any, values: Iterable[Any], **fields: Any) -> pathlib.Path:
  """Writes data set `mine` with one template, 'a name', and its validation split."""
  template = {
    "answer_choices": None, "id": "0", "jinja": jinja, "name": "a name", "reference": "", **fields,
  }  # fmt: skip
  text = yaml.safe_dump({"dataset": "mine", "templates": {"0": template}}, allow_unicode=True)
  return put(path, "mine", text.replace("'0':", "'0': !Template"), {"validation": values})
