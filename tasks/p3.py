"""p3: P3, the prompted data sets of T0 (Sanh et al. 2022, arXiv 2110.08207), as they were released.

`P3(path)` registers a task `<name>.<data set>.<template>` for every template in the folder, and a
mixture `<name>` over them. Layout and source of the folder: `p3_records`.

    t0_train, t0p_train, t0pp_train    38, 48 and 54 data sets, at T0's rates (T0, T0+ and T0++)
    t0_held_out                        9 data sets that T0 is tested on; T0+ and T0++ train on some

Where T0 is tested, options are ranked on the validation split, and supports are drawn from the
training split, which is in a folder of its own. The three rounds of ANLI are one data set here, so
that a mean over data sets counts them once. Data sets and rates are those of
https://github.com/bigscience-workshop/t-zero. Nothing is read at import.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from hyperjax.data.manifest import did_you_mean, digest, family, set_lists
from hyperjax.tasks import folders
from hyperjax.tasks.p3_records import SCORE_EVAL, Split

HELD_OUT = "t0_held_out"
_T0 = (
  "adversarial_qa_dbert", "adversarial_qa_dbidaf", "adversarial_qa_droberta", "ag_news",
  "amazon_polarity", "app_reviews", "cnn_dailymail_3.0.0", "common_gen", "cos_e_v1.11",
  "cosmos_qa", "dbpedia_14", "dream", "duorc_ParaphraseRC", "duorc_SelfRC", "gigaword",
  "glue_mrpc", "glue_qqp", "imdb", "kilt_tasks_hotpotqa", "multi_news", "paws_labeled_final",
  "qasc", "quail", "quarel", "quartz", "quoref", "ropes", "rotten_tomatoes", "samsum", "sciq",
  "social_i_qa", "trec", "wiki_bio", "wiki_hop_original", "wiki_qa", "wiqa", "xsum",
  "yelp_review_full",
)  # fmt: skip
_T0_PLUS = (
  *_T0, "ai2_arc_ARC_Challenge", "ai2_arc_ARC_Easy", "hellaswag", "openbookqa_main", "piqa",
  "race_high", "race_middle", "squad_v2", "trivia_qa_unfiltered", "web_questions",
)  # fmt: skip
_T0_PLUS_PLUS = (
  *_T0_PLUS, "super_glue_boolq", "super_glue_copa", "super_glue_multirc", "super_glue_record",
  "super_glue_wic", "super_glue_wsc.fixed",
)  # fmt: skip
MIXTURES = {
  "t0_train": _T0,
  "t0p_train": _T0_PLUS,
  "t0pp_train": _T0_PLUS_PLUS,
  HELD_OUT: (
    "anli", "hellaswag", "story_cloze_2016", "super_glue_cb", "super_glue_copa", "super_glue_rte",
    "super_glue_wic", "super_glue_wsc.fixed", "winogrande_winogrande_xl",
  ),
}  # fmt: skip
# T0 leaves out 23 more templates, all of other data sets.
BLACKLIST = ("gigaword_summarize_",)
# T0 sees at most so many examples of a data set, by all its templates together.
CAP = 500_000


@dataclasses.dataclass(frozen=True)
class P3:
  """The templates of one mixture.

  A template has the name of its folder, without `_score_eval` at its end.

  Attributes:
    path: P3's folder `data`.
    mixture: one of `MIXTURES`; what the folder lacks of it is left out.
    include: data sets and templates to take; all, where empty.
    exclude: data sets and templates to leave out.
    name: name of the registered mixture and first part of the tasks' names.
  """

  path: str
  mixture: str = "t0_train"
  include: Sequence[str] = ()
  exclude: Sequence[str] = ()
  name: str = "p3"

  def __post_init__(self):
    if self.mixture not in MIXTURES:
      hint = did_you_mean(self.mixture, MIXTURES)
      raise ValueError(f"P3: mixture is '{self.mixture}', not one of {list(MIXTURES)}.{hint}")
    set_lists(self, "include", "exclude")

  def available(self) -> bool:
    return pathlib.Path(self.path).is_dir()

  def fingerprints(self) -> Mapping[str, str]:
    """Returns {task: hash of its files}, of the templates that are there."""
    return {
      task: digest([task, *(split.fingerprint() for split in splits.values())])
      for task, splits in self.tasks().items()
    }

  def cluster(self, task: str) -> str:
    """Returns a task's data set: its templates ask the same examples."""
    return family(task)

  def register(self) -> None:
    """Registers the tasks and the mixture with seqio."""
    from hyperjax.evaluation import classification
    from hyperjax.tasks import registry

    tasks = self.tasks()
    for task, splits in tasks.items():
      asked = list(splits.values())[-1]
      registry.add_rows(
        task, asked.folder, {name: split.rows for name, split in splits.items()},
        files=[shard for split in splits.values() for shard in split.shards()],
        metric_fns=[classification.rank_classification] if asked.has_options else [],
        counts={name: split.num_examples for name, split in splits.items()},
      )  # fmt: skip
    registry.add_mixture(self.name, self.rates())

  def tasks(self) -> dict[str, dict[str, Split]]:
    """Returns {task: {split: where it is read from}}, the split that is asked last.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a name in include or exclude that is none, or no template is left.
    """
    names = folders.unique((self._task(t, d), t) for t, d in self._chosen().items())
    return {name: self._splits(template) for name, template in names.items()}

  def rates(self) -> dict[str, float]:
    """Returns {task: T0's rate}: the size of the template's data set, or its part of `CAP`."""
    if self.mixture == HELD_OUT:
      return dict.fromkeys(self.tasks(), 1.0)
    found = self._found()
    sizes: dict[str, int] = {}
    for template, dataset in found.items():
      # A template may leave out some examples; the largest one has them all.
      train = self._splits(template)["train"]
      sizes[dataset] = max(sizes.get(dataset, 0), train.num_records)
    rates = t0_rates(found, sizes)
    return {self._task(t, d): rates[d] for t, d in self._chosen().items()}

  def _task(self, template: str, dataset: str) -> str:
    parts = dataset, template.removeprefix(f"{dataset}_")
    return ".".join([self.name, *map(folders.legal, parts)])

  def _splits(self, template: str) -> dict[str, Split]:
    folder = pathlib.Path(self.path) / template
    train = Split(folder, "train")
    if self.mixture == HELD_OUT:
      asked = Split(folder.with_name(template + SCORE_EVAL), "validation")
      splits = [train, asked] if train.exists() else [asked]
    else:
      # A test split's labels are often hidden: it is taken where it is the only one.
      others = (Split(folder, name) for name in ("validation", "test"))
      splits = [train, *[split for split in others if split.exists()][:1]]
    return {split.name: split for split in splits}

  def _chosen(self) -> dict[str, str]:
    """Returns {template: its data set} after include, exclude and the blacklist."""
    found = self._found()
    names = folders.chosen(self, found, f" of '{self.mixture}'", BLACKLIST)
    return {name: found[name] for name in names}

  def _found(self) -> dict[str, str]:
    """Returns {template: its data set}, those of the mixture that are in the folder."""
    found = {}
    for folder in sorted(folders.existing(self.name, pathlib.Path(self.path)).iterdir()):
      if folder.is_dir() and folder.name.endswith(SCORE_EVAL) == (self.mixture == HELD_OUT):
        template = folder.name.removesuffix(SCORE_EVAL)
        for dataset in MIXTURES[self.mixture]:
          if template.startswith(f"{dataset}_"):
            found[template] = dataset
    return found


def t0_rates(datasets: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, float]:
  """Returns {data set: T0's rate of each of its templates}: its size, or its part of `CAP`.

  Args:
    datasets: {template: its data set}.
    sizes: {data set: how many examples it has}.
  """
  count = collections.Counter(datasets.values())
  return {d: float(size if size <= CAP else CAP // count[d]) for d, size in sizes.items()}
