"""promptsource's templates of one data set, and what they make of its records: what P3 is made of.

    dataset: super_glue
    subset: rte
    templates:
      2d0d63da-ffcf-4f6e-941a-b8da922be43e: !Template
        answer_choices: Yes ||| No                    null: the answer is free
        jinja: '{{premise}} So {{hypothesis}}? ||| {{ answer_choices[label] }}'
        metadata: !TemplateMetadata
          original_task: true
        name: does it follow
        ...

Both texts are Jinja, of what is in the record. A record whose text is no input and target, parted
by one "|||", is left out, and so is one with an empty input or target. A value is cut at 2,048
characters where a text shows it, not among the choices; a "|||" in a record's own text parts
nothing. Sources: github.com/bigscience-workshop/promptsource, `templates.py` at 7dab96a, and
`seqio_tasks/utils.py` before 3614e44, which made P3. Unlike there, a missing column is an error.
Templates run in Jinja's sandbox.
"""

import collections
import contextlib
import dataclasses
import pathlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import yaml
from jinja2 import meta, nodes, sandbox

from hyperjax.data import rows
from hyperjax.data.manifest import did_you_mean
from hyperjax.tasks import p3_records

LENGTH = 2048
_BARS = "|||"
# What stands for the bars in a record's texts; as long, so that cuts fall in the same places.
_OWN_BARS = "\ue000\ue001\ue002"
_RANDOM = "_random"  # the variable that has a record's random numbers
_FIELDS = {
  "name": (str, "a text"),
  "jinja": (str, "a text"),
  "answer_choices": (str | None, "a text such as 'Yes ||| No', or null"),
  "metadata": (dict | None, "a mapping"),
}
_WAY_OUT = "Mend the template, or leave it out with exclude."


@dataclasses.dataclass(frozen=True)
class Template:
  """One template.

  Attributes:
    file: the file that it is from.
    dataset: its data set, as P3 calls it.
    name: its own name.
    jinja: the text that gives input and target.
    answer_choices: the text that gives the options; None: the answer is free.
    original_task: whether it asks what the data set was made for.
  """

  file: pathlib.Path
  dataset: str
  name: str
  jinja: str
  answer_choices: str | None
  original_task: bool

  def __str__(self) -> str:
    return f"{self.file}, template '{self.name}'"


def load(file: pathlib.Path, dataset: str) -> list[Template]:
  """Reads one templates.yaml.

  Raises:
    ValueError: names file and line or template, and the field: no YAML, a tag other than
      promptsource's two, or not what promptsource writes.
  """
  text = "".join(line for _, line in rows.lines(file))
  with _named(file, "Take promptsource's own file, or correct this one."):
    values = yaml.load(text, _Loader)
  templates = values.get("templates") if isinstance(values, dict) else None
  if not isinstance(templates, dict):
    raise ValueError(f"{file}: it has no mapping 'templates', as promptsource's files have.")
  return [_template(value, file, dataset, key) for key, value in templates.items()]


class Renderer:
  """A template, compiled.

  Raises:
    ValueError: its text is no Jinja; names file, template, field and line.
  """

  def __init__(self, template: Template):
    self._template = template
    self._text = _Text(_TEXTS, template, "jinja")
    self._choices = template.answer_choices and _Text(_CHOICES, template, "answer_choices")

  def rows(self, file: pathlib.Path, options: bool) -> Iterator[dict[str, Any]]:
    """Yields what the template makes of a file of records.

    Args:
      file: JSONL, a record a line. What a template chooses at random depends on the line alone.
      options: whether the rows have options, which must then be as a ranking needs them.

    Returns:
      Dicts of `inputs`, `targets` and `options` (an empty list where none are).

    Raises:
      ValueError: names the file, the line, the template and what is wrong.
    """
    for number, (where, record) in enumerate(rows.objects(file)):
      if not isinstance(record, dict) or "answer_choices" in record:
        raise ValueError(f"{where}: it is no record: an object, without a field 'answer_choices'.")
      where = f"{where}: {self._template}"
      values = {name.replace("-", "_"): _own(value) for name, value in record.items()}
      more: dict[str, Any] = {_RANDOM: random.Random(number)}
      choices = self._choices and self._choices.parts(values, more, where)
      found = self._text.parts(values, {**more, "answer_choices": choices}, where)
      if len(found) == 2 and all(found):
        chosen = choices if choices and options else []
        texts = (text.replace(_OWN_BARS, _BARS) for text in [*found, *chosen])
        inputs, target, *texts = (rows.text(text, where) for text in texts)
        yield p3_records.row(where, inputs, target, texts)


class _Text:
  """One field of a template, compiled; it knows the columns that it reads."""

  def __init__(self, environment: jinja2.Environment, template: Template, field: str):
    self._field, text = field, getattr(template, field)
    with _named(f"{template}: {field}"):
      tree = environment.parse(text)
      names = meta.find_undeclared_variables(tree)
      self._compiled = environment.from_string(text)
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"}
    self._columns = names - own - {*environment.globals, "answer_choices"}

  def parts(self, values: Mapping[str, Any], more: Mapping[str, Any], where: str) -> list[str]:
    """Returns its parts for a record's values, and what else it is given."""
    for column in sorted(self._columns - values.keys()):
      raise ValueError(
        f"{where}: {self._field} reads the column '{column}', which the record lacks."
        f"{did_you_mean(column, values)} Add it, or leave the template out with exclude."
      )
    with _named(f"{where}: {self._field}"):
      text = self._compiled.render({**values, **more})
    return [part.strip() for part in text.split(_BARS)]


class _Loader(yaml.SafeLoader):
  """Plain YAML and promptsource's tags, both of mappings; any other tag is an error."""

  yaml_constructors = {
    **yaml.SafeLoader.yaml_constructors,
    **dict.fromkeys(
      ("!Template", "!TemplateMetadata"),
      lambda loader, node: loader.construct_mapping(node, deep=True),
    ),
  }


def _template(value: Any, file: pathlib.Path, dataset: str, key: Any) -> Template:
  if not isinstance(value, dict):
    raise ValueError(f"{file}, template {key}: it must be a mapping, not {value!r:.60}.")
  for field, (kind, what) in _FIELDS.items():
    if not isinstance(value.get(field), kind):
      raise ValueError(
        f"{file}, template {key}: {field} must be {what}, not {value.get(field)!r:.60}."
      )
  choices, metadata = value.get("answer_choices") or "", value.get("metadata") or {}
  original = metadata.get("original_task") is True
  return Template(
    file, dataset, value["name"], value["jinja"], choices if choices.strip() else None, original
  )


def _own(value: Any) -> Any:
  """A column's value, its bars being no bars of the template's."""
  return value.replace(_BARS, _OWN_BARS) if isinstance(value, str) else value


@contextlib.contextmanager
def _named(place: Any, way_out: str = _WAY_OUT) -> Iterator[None]:
  """Makes one error, which names its place, of all that a file of others may do wrong."""
  try:
    yield
  except Exception as e:  # expressions and YAML's constructors raise whatever Python does
    mark = getattr(e, "problem_mark", None)
    line = mark.line + 1 if mark else getattr(e, "lineno", None)
    reason = getattr(e, "problem", None) or getattr(e, "message", None) or e
    reason = " ".join(str(reason).split()).rstrip(".")
    at = f", line {line}" if line else ""
    raise ValueError(f"{place}{at}: {type(e).__name__}: {reason}. {way_out}") from e


@jinja2.pass_context  # so that Jinja does not make one choice for all records as it compiles
def _choice(context: jinja2.runtime.Context, items: Any) -> Any:
  return context[_RANDOM].choice(items)


def _most_frequent(items: Any) -> list[Any] | None:
  """The items that occur most often, in order of appearance."""
  count = collections.Counter(items or ())
  most = max(count.values(), default=0)
  return [item for item, times in count.items() if times == most] or None


@jinja2.pass_environment
def _cut(environment: jinja2.Environment, value: Any) -> str:
  return environment.filters["truncate"](environment, str(value), LENGTH)


def _environment() -> jinja2.Environment:
  environment = sandbox.SandboxedEnvironment()
  environment.globals["zip"] = zip
  del environment.globals["lipsum"]  # random
  environment.filters |= {"choice": _choice, "random": _choice, "most_frequent": _most_frequent}
  return environment


_CHOICES = _environment()
_TEXTS = _CHOICES.overlay(finalize=_cut)
