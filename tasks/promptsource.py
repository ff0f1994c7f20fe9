"""promptsource: P3's templates (Bach et al. 2022, arXiv 2202.01279) over data of your own.

    super_glue/rte/templates.yaml       promptsource's own, see `promptsource_templates`
    super_glue/rte/train.jsonl          the data set's records, one a line
    super_glue/rte/validation.jsonl

`Templates(path)` registers a task `<name>.<data set>.<template>` for every template that has data
beside it, called as in P3, with the fields and metrics of `p3`, and a mixture `<name>` at T0's
rates. `path` is a copy of the folder `promptsource/templates` of
github.com/bigscience-workshop/promptsource. Records are those that T0 read: what
`datasets.Dataset.to_json` writes, a label being a number. Nothing is read at import.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence

from hyperjax.data import rows
from hyperjax.data.manifest import digest, family, file_digest, set_lists
from hyperjax.tasks import folders, p3
from hyperjax.tasks.promptsource_templates import Renderer, Template, load

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Templates:
  """The templates of a folder that have data beside them.

  Attributes:
    path: the folder.
    include: data sets and templates to take, called as in P3 ('super_glue_rte',
      'super_glue_rte_can_we_infer'); all, where empty.
    exclude: data sets and templates to leave out.
    original_task: only templates that ask what their data set was made for: T0 is tested on those.
    name: name of the mixture and first part of the tasks' names.
  """

  path: str
  include: Sequence[str] = ()
  exclude: Sequence[str] = ()
  original_task: bool = False
  name: str = "promptsource"

  def __post_init__(self):
    set_lists(self, "include", "exclude")

  def available(self) -> bool:
    return pathlib.Path(self.path).is_dir()

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task: hash of its template and its data}."""
    return {
      task: digest(
        [task, t.jinja, t.answer_choices, *map(file_digest, splits(t.file.parent).values())]
      )
      for task, t in self.tasks().items()
    }

  def cluster(self, task: str) -> str:
    """Returns a task's data set: its templates ask the same records."""
    return family(task)

  def register(self) -> None:
    """Registers the tasks and the mixture with seqio.

    Raises:
      ValueError: a template is no Jinja, or as `tasks`.
    """
    from hyperjax.evaluation import classification
    from hyperjax.tasks import registry

    for task, template in self.tasks().items():
      renderer, files = Renderer(template), splits(template.file.parent)
      # As in P3, the options of a training split are never asked.
      ranked = template.answer_choices is not None and list(files) != ["train"]
      registry.add_rows(
        task, template.file,
        {s: functools.partial(renderer.rows, file, s != "train") for s, file in files.items()},
        files=[*files.values()],
        metric_fns=[classification.rank_classification] if ranked else [],
      )  # fmt: skip
    registry.add_mixture(self.name, self.rates())

  def tasks(self) -> dict[str, Template]:
    """Returns {task: its template}.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a name in include or exclude that is none, no template with data, or a broken file
        of templates.
    """
    found = self._found()
    names = folders.chosen(self, {name: t.dataset for name, t in found.items()})
    return folders.unique((self._task(found[name]), found[name]) for name in names)

  def rates(self) -> dict[str, float]:
    """Returns {task: T0's rate}: how many records its data set has, or its part of `p3.CAP`."""
    tasks = self.tasks()
    places = {t.dataset: t.file.parent for t in tasks.values()}
    sizes = {dataset: _size(folder) for dataset, folder in places.items()}
    rates = p3.t0_rates({name: t.dataset for name, t in self._found().items()}, sizes)
    return {task: rates[t.dataset] for task, t in tasks.items()}

  def _task(self, template: Template) -> str:
    parts = template.dataset, _cleaned(template.name)
    return ".".join([self.name, *map(folders.legal, parts)])

  def _found(self) -> dict[str, Template]:
    """Returns {P3's name of a template: the template}, of those that have data."""
    root = folders.existing(self.name, pathlib.Path(self.path))
    files = [*root.glob("*/templates.yaml"), *root.glob("*/*/templates.yaml")]
    known = [file for file in sorted(files) if splits(file.parent)]
    if not known:
      data = ", ".join(f"{split}.jsonl" for split in _SPLITS)
      raise ValueError(
        f"{root}: of its {len(files)} files <data set>/templates.yaml and <data set>/<subset>/"
        f"templates.yaml none has data beside it: one of {data}."
      )
    templates = [
      template
      for file in known
      for template in load(file, _cleaned("_".join(file.parent.relative_to(root).parts)))
    ]
    found = folders.unique((f"{t.dataset}_{_cleaned(t.name)}", t) for t in templates)
    return self._originals(found) if self.original_task else found

  def _originals(self, found: Mapping[str, Template]) -> dict[str, Template]:
    """Returns those that ask what their data set was made for."""
    kept = {name: t for name, t in found.items() if t.original_task}
    names = lambda templates: {*templates, *(t.dataset for t in templates.values())}
    lost = [name for name in self.include if name in names(found) - names(kept)]
    if lost or not kept:
      raise ValueError(
        f"{self.path}: of {', '.join(lost) or 'its data sets'} no template's metadata has "
        "'original_task: true', as those of held-out data sets must: write it into templates.yaml, "
        "or take all (gin: held_out/promptsource.Templates.original_task = False)."
      )
    return kept


def splits(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {split: its file}, those of a data set that are read."""
  found = {split: folder / f"{split}.jsonl" for split in _SPLITS}
  found = {split: file for split, file in found.items() if file.exists()}
  # A test split's labels are often hidden: it is taken where it is the only one.
  return {s: file for s, file in found.items() if s != "test" or "validation" not in found}


def _size(folder: pathlib.Path) -> int:
  """How many records a data set has for training; without such, in its other split."""
  file = next(iter(splits(folder).values()))
  size = sum(bool(line.strip()) for _, line in rows.lines(file))
  if not size:
    raise ValueError(f"{file} holds no rows.")
  return size


def _cleaned(name: str) -> str:
  """A part of a task's name as P3 writes it."""
  return re.sub(r"[^\w.]+", "_", name)
