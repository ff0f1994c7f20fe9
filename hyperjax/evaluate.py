"""`hyperjax evaluate`: all methods on the same held-out episodes, and a report.

    hyperjax evaluate --gin_file=runs/evaluate.gin --gin.EVAL_OUTPUT_DIR=runs/mine/eval \\
      --gin.RUNS="{'hyperllama': 'runs/mine/hyperllama', 'gisting': 'runs/mine/gisting'}"
"""

import contextlib
import dataclasses
import gc
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
from flax import nnx
from jax.sharding import Mesh

from hyperjax import adapters, answers, launch, progress, runs, storage, systems
from hyperjax.answers import Method, Scorer
from hyperjax.core import sharding
from hyperjax.data import eval_episodes, eval_sets, vocabularies
from hyperjax.data.eval_sets import EvalConfig
from hyperjax.data.manifest import Manifest
from hyperjax.evaluation import figures, plots, report, scores
from hyperjax.hypermodels.in_context import InContext
from hyperjax.hypermodels.tuned import NoPhi, TunedPhi
from hyperjax.models import families
from hyperjax.training import metrics_writer

# How a method is made, and the rows of the report that it is asked for: {name: Method.control}.
Asked = tuple[Callable[[], Method], dict[str, dict[str, bool]]]


@dataclasses.dataclass(frozen=True)
class EvalData:
  """Held-out tasks that are not those of the hypermodel's own run.

  Attributes:
    held_out: the tasks.
    architecture: of the model in whose tokens they are; the runs' model must have it.
  """

  held_out: runs.DataFolder
  architecture: families.Config


def evaluate(
  *,
  output_dir: str,
  runs_by_method: Mapping[str, str],
  episodes: EvalConfig,
  hypermodel: str = "hyperllama",
  task_metrics: Mapping[str, str] | None = None,
  data: EvalData | None = None,
  mesh: sharding.MeshConfig = sharding.MeshConfig(),
  dry_run: bool = False,
) -> int:
  """Scores zero-shot, in-context, every run or adapter and the controls; writes a report.

  The control "another task's support" is left out where there is one task only. Answers are stored
  part by part as they are made: the same command goes on where it was stopped. All runs are checked
  first; the parameters of each are read when it is asked, and let go of.

  Args:
    output_dir: where records, results.json, report.md and plots go.
    runs_by_method: {name in the report: folder of a training run, or of an adapter}.
    episodes: which queries and supports.
    hypermodel: the method whose recovery is the headline, whose model is used, and to which the
      controls belong if it is a run.
    task_metrics: {a task, or the front part of some tasks' names: metric}, in place of the metric
      that the tasks' source names.
    data: the held-out tasks; those of the hypermodel's own run where None.
    mesh: the devices, and what is sharded over them; answers do not depend on it.
    dry_run: print what would be done.

  Raises:
    ValueError: a method is for another model, prompt format or vocabulary than the others or the
      data, or trained weights that are in few bits here, or bears the name of one that is always
      there; there is no data; or the devices cannot share out the episodes of a batch.
  """
  own = (*figures.NEEDED, *figures.CONTROLS)
  for name in sorted(set(own) & set(runs_by_method)):
    raise ValueError(
      f"RUNS calls {runs_by_method[name]} {name!r}, as the evaluation calls a method of its own: "
      f"give it another name than {', '.join(own)}"
    )
  if hypermodel not in runs_by_method:
    raise ValueError(
      f"hypermodel {hypermodel!r} is none of the runs {sorted(runs_by_method)}: name its folder in "
      "RUNS, or set evaluate.evaluate.hypermodel"
    )
  model, own_data = _subject(runs_by_method[hypermodel])
  if data and data.architecture != model.architecture:
    raise ValueError(
      f"the runs' model is {model.architecture}, not {data.architecture}: name its file of "
      "gin/models"
    )
  held_out = data.held_out if data else own_data
  if held_out is None:
    raise ValueError(
      f"{runs_by_method[hypermodel]} names no held-out tasks, like all adapters and runs on "
      "running text: name a data file and runs/evaluate_on.gin, or another run as "
      "evaluate.evaluate.hypermodel"
    )
  for folder in runs_by_method.values():
    if not adapters.is_adapter(folder) and (note := runs.remark_on_run(folder, model)):
      print(note, file=sys.stderr)
  devices = mesh.planned() if dry_run else mesh.build()
  sharding.check_batch(episodes.batch_size, devices)
  if dry_run:
    # An adapter reads no support, so only the model that reads it itself has a control.
    alone = adapters.is_adapter(runs_by_method[hypermodel])
    controls = "1 control" if alone else f"{len(figures.CONTROLS)} controls"
    print(f"devices    {progress.in_words(devices)}")
    print(f"methods    {', '.join([*figures.NEEDED, *runs_by_method, controls])}")
    print(f"data       {held_out.config.title} in {held_out.path}")
    print(f"episodes   {episodes}")
    return 0

  progress.say_devices(devices)
  vocabulary = vocabularies.load(held_out.config.vocabulary)
  manifest = held_out.open(vocabulary)
  tasks = manifest.select(episodes.include, episodes.exclude)
  chosen = scores.choose(
    {task: manifest.metrics(task) for task in tasks}, task_metrics,
    with_options=[task for task in tasks if eval_episodes.have_options(manifest, task)],
  )  # fmt: skip
  left_out = eval_sets.count_left_out(manifest, episodes)
  if remark := eval_sets.remark(manifest, episodes):
    print(f"note: {remark}", file=sys.stderr)
  methods = list(_methods(runs_by_method, hypermodel, model, manifest, devices))
  context = families.context_length(model.source)
  scorer = Scorer(model.architecture.layout, vocabulary, manifest, episodes, context)
  folder = pathlib.Path(output_dir)
  (folder / "answers").mkdir(parents=True, exist_ok=True)
  if len(tasks) == 1:  # there is no other task
    for _, controls in methods:
      controls.pop(figures.OTHER_TASK, None)
  launch.accept()
  records: dict[str, list[answers.Record]] = {
    name: [] for _, controls in methods for name in controls
  }
  with progress.counter() as bar, _only_new_garbage():
    for load, controls in methods:
      method = load()
      with jax.set_mesh(devices):
        for (name, control), seed in itertools.product(controls.items(), episodes.seeds):
          asked = method.under(**control)
          draw = seed if method.reads_support else episodes.seeds[0]
          found = answers.collect(folder / "answers", name, asked, draw, scorer, bar)
          # All methods were asked the same inputs: each is kept once.
          records[name] += [
            {**record, "seed": seed, "input": sys.intern(record["input"])} for record in found
          ]
      # The devices may have no room for the next one beside it. Merging modules, Flax leaves cycles
      # that hold their arrays.
      del method, asked
      gc.collect()
  run = launch.current()
  report.write(
    folder, records, hypermodel=hypermodel,
    about={"command": run.command, "config": run.config, "base": model.dtypes()},
    curve=_curves(runs_by_method) or None,
    task_metrics=chosen, left_out=left_out,
    clusters={task: manifest.cluster(task) for task in tasks},
  )  # fmt: skip
  return 0


@contextlib.contextmanager
def _only_new_garbage() -> Iterator[None]:
  """Lets `gc.collect` look through what comes into being in here only: the rest takes seconds."""
  gc.freeze()
  try:
    yield
  finally:
    gc.unfreeze()


def _curves(runs_by_method: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
  """(minutes, exact match) pairs of the runs' training, of those that have kept any."""
  runs_alone = {n: path for n, path in runs_by_method.items() if not adapters.is_adapter(path)}
  files = {name: storage.folder(path) / "metrics.jsonl" for name, path in runs_alone.items()}
  curves = {
    name: plots.over_minutes(metrics_writer.read(file))
    for name, file in files.items()
    if file.exists()  # else the run was copied without
  }
  return {name: pairs for name, pairs in curves.items() if pairs}


def _subject(folder: str) -> tuple[runs.ModelConfig, runs.DataFolder | None]:
  """The model that a run or an adapter is for, and a run's held-out tasks."""
  if not adapters.is_adapter(folder):
    given = runs.configured(folder)
    return given["model"], runs.held_out(given)
  source = adapters.recorded_source(folder)
  if source is None:
    raise ValueError(
      f"{folder} does not say which model it is for: name a run as evaluate.evaluate.hypermodel"
    )
  return runs.ModelConfig(families.read_config(source), source), None


def _methods(
  runs_by_method: Mapping[str, str], hypermodel: str, given: runs.ModelConfig, manifest: Manifest,
  mesh: Mesh,
) -> Iterator[Asked]:  # fmt: skip
  """All methods, none of which is made yet; of runs nothing large is read."""
  model, fingerprint = given.load(mesh)
  base = adapters.Base(
    given.source, given.architecture, fingerprint, manifest.vocabulary["fingerprint"]
  )
  identity = f"{fingerprint} {given.dtypes()}"
  zero_shot = Method(NoPhi(), model, identity, reads_support=False)
  yield (lambda: zero_shot), {figures.ZERO_SHOT: {}}
  # A decoder's queries can share the support's keys and values; an encoder reads both at once.
  one_way = model.config.layout == "decoder"
  go_on = {"continued": True} if manifest.vocabulary["adds_bos"] else {}  # without a second BOS
  reader, place = (InContext(), go_on) if one_way else (NoPhi(), {"inline": True})
  in_context = Method(reader, model, identity, place)
  yield (lambda: in_context), {figures.IN_CONTEXT: {}}
  for name, folder in runs_by_method.items():
    if adapters.is_adapter(folder):
      adapter = _adapter(folder, given, base, manifest)
      yield partial(_adapted, adapter, model, base, identity), {name: {}}
      continue
    runs.check(folder, fingerprint, manifest)
    controls: dict[str, dict[str, bool]] = {name: {}}
    if name == hypermodel:
      controls[figures.OTHER_TASK] = {"other_support": True}
      controls[figures.SHUFFLED] = {"shuffle_outputs": True}
    yield partial(_trained, folder, (model, fingerprint), mesh, identity), controls
  # What shuffling does to the model that reads the support itself: the control's own measure.
  yield (lambda: in_context), {figures.IN_CONTEXT_SHUFFLED: {"shuffle_outputs": True}}


def _trained(
  folder: str, loaded: tuple[families.Model, str], mesh: Mesh, identity: str
) -> Method:
  """A training run as a method."""
  run = runs.load(folder, loaded=loaded, mesh=mesh)
  place = {"inline": True} if run.inline else {}
  reads = run.inline or systems.reads_support(runs.configured(folder)["hypermodel"])
  return Method(run.producer, run.downstream, f"{identity} {run.trained_hash}", place, reads)


def _adapter(
  folder: str, given: runs.ModelConfig, base: adapters.Base, manifest: Manifest
) -> adapters.Adapter:
  """An adapter that reads texts as the data has them; says what there is to say of it."""
  adapter = adapters.load(folder, base)
  if adapter.verified:
    runs.check_reads(folder, adapter.prompt, base.vocabulary_fingerprint, manifest)
  if note := runs.remark(folder, adapter, given):
    print(note, file=sys.stderr)
  return adapter


def _adapted(
  adapter: adapters.Adapter, model: nnx.Module, base: adapters.Base, identity: str
) -> Method:
  """An adapter as a method: the frozen model under one phi for all tasks."""
  spec = adapters.phi_spec(base.config, adapter.phi)
  producer = TunedPhi.starting_from(adapter.phi, spec)
  return Method(
    producer, model, f"{identity} {runs.digest(adapter.phi)} {spec}", reads_support=False
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `hyperjax evaluate`."""
  return launch.run("hyperjax.evaluate", "evaluate", argv, folder="EVAL_OUTPUT_DIR")


if __name__ == "__main__":
  sys.exit(main())
