"""The builder: from seqio tasks to a data folder; what training does without TensorFlow."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types
from unittest.mock import Mock

import pytest
import seqio
import tensorflow as tf

from hyperjax import storage
from hyperjax.data import build as build_lib
from hyperjax.data import building, encode, registering, task_rows, vocabularies
from hyperjax.data import store as store_lib
from hyperjax.data.build import build_parts
from hyperjax.data.building import ensure
from hyperjax.data.caclm import CaclmConfig, CaclmStream
from hyperjax.data.episodes import EpisodeConfig, TrainStream
from hyperjax.data.loader import Loader
from hyperjax.data.manifest import DataConfig, Manifest
from hyperjax.data.rows_source import FEATURES
from hyperjax.data.store import Store
from hyperjax.tasks import c4, fewshot, text
from tests.data.fakes import PROMPT, Bytes

SENTENCEPIECE = (
  pathlib.Path(seqio.__file__).parent / "test_data/sentencepiece/sentencepiece.model"
)
WORDS = {"one": "un", "two": "deux", "three": "trois", "four": "quatre", "five": "cinq"}


def write_tasks(folder, **tasks):
  folder.mkdir(exist_ok=True)
  for name, rows in tasks.items():
    (folder / f"{name}.json").write_text(json.dumps(rows))
  return folder


def words(**extra):
  return [{"input": a, "output": b, **extra} for a, b in WORDS.items()]


@pytest.fixture
def source(tmp_path):
  return write_tasks(tmp_path / "tasks", plain=words(), choice=words(options=[*WORDS.values()]))


def config(source, name, **options):
  folder = fewshot.Folder(str(source), name=name)
  return DataConfig(name, "bytes", prompt=PROMPT, sources=[folder], **options)


def build(config, out):
  return build_lib.build(config, out, vocabulary=Bytes())


def decoded(store, i):
  return Bytes().decode(store.input(i)), Bytes().decode(store.target(i))


@pytest.fixture
def registered():
  """Registers a seqio task under a name and takes it out again."""
  names = []

  def add(name, rows, *, preprocessors=(), features, splits=("train",)):
    def dataset(split, shuffle_files=False, seed=None):
      del split, shuffle_files, seed
      return tf.data.Dataset.from_tensor_slices(rows)

    seqio.TaskRegistry.add(
      name, seqio.FunctionDataSource(dataset, splits=splits),
      preprocessors=list(preprocessors), output_features=features,
    )  # fmt: skip
    names.append(name)

  yield add
  for name in names:
    seqio.TaskRegistry.remove(name)


def test_a_folder_of_tasks_becomes_stores(source, tmp_path):
  manifest = build(config(source, "one"), tmp_path / "out")
  assert manifest.tasks == ("one.choice", "one.plain")
  assert manifest.rate("one.plain") == 0.5 and manifest.splits("one.plain") == ("train",)
  plain, choice = (manifest.store(task, "train") for task in ("one.plain", "one.choice"))
  assert [decoded(plain, i) for i in range(5)] == [(f"{a}=", f"{b};") for a, b in WORDS.items()]
  assert plain.options(0) is None
  assert [Bytes().decode(o) for o in choice.options(3)] == [f"{b};" for b in WORDS.values()]
  assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_options_that_a_vocabulary_does_not_tell_apart_are_refused(tmp_path):
  """Its own has no token of either: both become <unk>."""
  rows = [{"input": "I am glad.", "output": "\U0001f600", "options": ["\U0001f600", "\U0001f621"]}]
  wanted = config(write_tasks(tmp_path / "tasks", emoji=rows), "alike")
  vocabulary = vocabularies.SentencePieceVocabulary(SENTENCEPIECE)
  with pytest.raises(ValueError, match="^alike.emoji train, example 0: its options "
                     "'\U0001f600' and '\U0001f621' have the same tokens in this vocabulary"):
    build_lib.build(wanted, tmp_path / "out", vocabulary=vocabulary)
  build(wanted, tmp_path / "bytes")


def test_targets_that_no_answer_can_be_are_counted_and_remarked_on(tmp_path, capsys):
  rows = [{"input": "a", "output": "b;c"}, {"input": "b", "output": "b"}]
  folder = write_tasks(tmp_path / "tasks", lines=rows, plain=words())
  for kept in (0, 2):
    manifest = build(config(folder, "early"), tmp_path / "out")
    assert manifest.split("early.lines", "train")["ends_early"] == 1
    assert manifest.split("early.plain", "train")["ends_early"] == 0
    last = " ".join(capsys.readouterr().err.split())
    assert f"{kept} kept). " in last and last.endswith(
      "No answer can be 1 of the targets, which hold what ends an answer, ';': 1 of early.lines "
      "train; a format that ends with EOS has no such limit (gin: PROMPT='qa_eos')."
    )


def test_a_copied_folder_is_the_same_data(source, tmp_path):
  wanted = config(source, "two")
  build(wanted, tmp_path / "out")
  (tmp_path / "out").rename(tmp_path / "elsewhere")
  shutil.rmtree(source)
  manifest = ensure(wanted, tmp_path / "elsewhere", build=False)
  stream = TrainStream(manifest, EpisodeConfig(num_shots=2), seed=0, batch_size=2)
  with Loader(stream, stop_step=1) as loader:
    assert len(list(loader)) == 1


def test_an_interrupted_build_goes_on(source, tmp_path, monkeypatch):
  wanted, out = config(source, "three"), tmp_path / "out"
  write = build_lib._Job.write

  def interrupted(job, *rest):
    if job.task.name == "three.plain":
      raise KeyboardInterrupt
    write(job, *rest)

  monkeypatch.setattr(build_lib._Job, "write", interrupted)
  with pytest.raises(KeyboardInterrupt):
    build(wanted, out)
  assert not (out / "manifest.json").exists() and len(list((out / "stores").iterdir())) == 1
  written = []
  monkeypatch.setattr(build_lib._Job, "write", lambda job, *rest: (
    written.append(job.task.name), write(job, *rest)))  # fmt: skip
  build(wanted, out)
  assert written == ["three.plain"]


def corpus(tmp_path, name, count=200):
  """A source of one task of documents."""
  folder = tmp_path / name
  folder.mkdir(exist_ok=True)
  lines = [json.dumps({"text": f"document {i} " * (i % 7 + 1)}) for i in range(count)]
  (folder / "a.jsonl").write_text("\n".join(lines))
  return c4.Corpus(str(folder), name)


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


@dataclasses.dataclass(frozen=True)
class Versions(fewshot.Folder):
  """A folder whose tasks are versions of one, all but one."""

  def cluster(self, task):
    return task if task.endswith("alone") else f"{self.name}.all"


def test_what_a_task_is_a_version_of_stands_in_the_manifest_and_names_nothing(tmp_path):
  """Not in what stores and stored answers are named by: those of older data folders stay valid."""
  folder = str(write_tasks(tmp_path / "tasks", a=words(), alone=words(), b=words()))
  entries = []
  for kind in (fewshot.Folder, Versions):
    wanted = DataConfig("versions", "bytes", prompt=PROMPT, sources=[kind(folder, name="versions")])
    manifest = build(wanted, tmp_path / kind.__name__)
    entries.append(manifest.values["tasks"])
  assert entries[0] == entries[1]
  assert [manifest.cluster(task) for task in manifest.tasks] == [
    "versions.all", "versions.alone", "versions.all"
  ]  # fmt: skip
  older = {name: value for name, value in manifest.values.items() if name != "clusters"}
  (manifest.folder / "manifest.json").write_text(json.dumps(older))
  older = ensure(wanted, manifest.folder, build=False)
  assert [older.cluster(task) for task in older.tasks] == list(older.tasks)
  with pytest.raises(ValueError, match="no task 'versions.c'"):
    older.cluster("versions.c")


def test_processes_build_the_same_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr(store_lib, "_SHARD_TOKENS", 2000)
  monkeypatch.setattr(build_lib, "_CHUNK", 7)
  rows = [{"input": f"{i % 50} times", "output": f"{i % 3}", "options": list("012")}
          for i in range(60)]  # fmt: skip
  tasks = write_tasks(tmp_path / "tasks", **{f"task_{i}": rows[i:] for i in range(4)})
  sources = [fewshot.Folder(str(tasks), name="many"), corpus(tmp_path, "docs")]
  for name in ("many", "docs"):
    wanted = DataConfig(name, "bytes", prompt=PROMPT, sources=sources)
    monkeypatch.setattr(encode, "_FEW", 2**40)
    build(wanted, tmp_path / "serial" / name)
    monkeypatch.setattr(encode, "_FEW", 0)
    build(wanted, tmp_path / "parallel" / name)
    found = contents(tmp_path / "parallel" / name)
    assert found == contents(tmp_path / "serial" / name)
  shards = [file for file in found if file.endswith("tokens.bin")]
  assert len(shards) == 5


def test_a_killed_build_goes_on_at_its_shards(tmp_path, monkeypatch):
  """Killed, with the processes that tokenise; those end too, and nothing is written twice."""
  source = corpus(tmp_path, "killed")
  script = f"""
    if __name__ == "__main__":
      import multiprocessing, os, signal
      from hyperjax.data import build, encode, store
      from hyperjax.data.manifest import DataConfig
      from hyperjax.tasks import c4
      from tests.data.fakes import PROMPT, Bytes

      def writing(path, **options):
        if path.name == "00003":
          print(*(child.pid for child in multiprocessing.active_children()), flush=True)
          os.kill(os.getpid(), signal.SIGKILL)
        return write(path, **options)

      write, store.writing = store.writing, writing
      store._SHARD_TOKENS, build._CHUNK, encode._FEW = 2000, 7, 0
      source = c4.Corpus({source.path!r}, "killed")
      build.build(
        DataConfig("killed", "bytes", prompt=PROMPT, sources=[source]), {str(tmp_path / "out")!r},
        vocabulary=Bytes(),
      )
  """
  (tmp_path / "script.py").write_text(textwrap.dedent(script))
  done = subprocess.run(
    [sys.executable, str(tmp_path / "script.py")], stdout=subprocess.PIPE, text=True,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
  )  # fmt: skip
  assert done.returncode == -signal.SIGKILL
  (store,) = (tmp_path / "out" / "stores").iterdir()
  shards = {path.name: path.stat().st_ino for path in store.iterdir()}
  assert sorted(shards) == ["00000", "00001", "00002"] and done.stdout.split()
  deadline = time.monotonic() + 20
  while any(map(alive, done.stdout.split())):
    assert time.monotonic() < deadline
    time.sleep(0.1)

  monkeypatch.setattr(store_lib, "_SHARD_TOKENS", 2000)
  monkeypatch.setattr(build_lib, "_CHUNK", 7)
  wanted = DataConfig("killed", "bytes", prompt=PROMPT, sources=[source])
  build(wanted, tmp_path / "out")
  build(wanted, tmp_path / "whole")
  assert contents(tmp_path / "out") == contents(tmp_path / "whole")
  assert shards.items() <= {path.name: path.stat().st_ino for path in store.iterdir()}.items()


def alive(pid: str) -> bool:
  state = pathlib.Path("/proc", pid, "stat")
  return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_error_leaves_what_precedes_it(source, tmp_path):
  write_tasks(source, zero=[{"input": "a", "output": " "}])
  with pytest.raises(ValueError, match="zero.json, row 1: the output is empty"):
    build(config(source, "zeros"), tmp_path / "out")
  assert len(list(tmp_path.glob("out/stores/*"))) == 2


@pytest.mark.parametrize("documents", [False, True])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, documents):
  read = task_rows.texts

  def changed(task, *rest):
    rows = list(read(task, *rest))
    file.write_text(file.read_text() + " ")
    yield from rows

  if documents:
    source = corpus(tmp_path, "moving")
    file = tmp_path / "moving" / "a.jsonl"
    wanted = DataConfig("moving", "bytes", sources=[source])
  else:
    folder = write_tasks(tmp_path / "tasks", plain=words())
    file = folder / "plain.json"
    wanted = config(folder, "stirred")
  build(wanted, tmp_path / "out")
  before = contents(tmp_path / "out")
  for path in (tmp_path / "out", tmp_path / "new"):
    file.write_text(file.read_text() + "\n")
    with monkeypatch.context() as patch:
      patch.setattr(task_rows, "texts", changed)
      with pytest.raises(ValueError, match=f"{file.name}: it changed while it was read"):
        build(wanted, path)
  assert contents(tmp_path / "out") == before and not contents(tmp_path / "new")


def test_a_changed_source_names_the_command(source, tmp_path):
  wanted, out = config(source, "four"), tmp_path / "out"
  build(wanted, out)
  assert ensure(wanted, out).tasks == ("four.choice", "four.plain")
  write_tasks(source, plain=[*words(), {"input": "six", "output": "six"}])
  with pytest.raises(ValueError, match="the source of task 'four.plain' has changed. Name another "
                     "DATA_DIR, or rebuild it: hyperjax data --config_json .*out.config.json --out "
                     ".*out"):
    ensure(wanted, out)
  assert len(build(wanted, out).store("four.plain", "train")) == 6
  ensure(wanted, out)
  write_tasks(source, more=words())
  with pytest.raises(ValueError, match=r"tasks of source 'four' have changed: \['four.more'\]"):
    ensure(wanted, out)


def test_a_folder_that_may_not_be_written_to_still_says_what_differs(source, tmp_path, monkeypatch):
  build(config(source, "fifteen"), tmp_path / "out")
  monkeypatch.setattr(storage, "write_whole", Mock(side_effect=PermissionError(13, "read-only")))
  with pytest.raises(ValueError, match="max_examples is 3, was None.*not be written: read-only"):
    ensure(config(source, "fifteen", max_examples=3), tmp_path / "out")


def test_another_configuration_is_named(source, tmp_path):
  build(config(source, "five"), tmp_path / "out")
  with pytest.raises(ValueError, match="another configuration: max_examples is 3, was None"):
    ensure(config(source, "five", max_examples=3), tmp_path / "out")


def test_without_seqio_the_command_is_printed(source, tmp_path, monkeypatch):
  monkeypatch.setattr(building.importlib_util, "find_spec", lambda name: None)
  with pytest.raises(FileNotFoundError, match="seqio is not installed here. Build it: hyper"):
    ensure(config(source, "six"), tmp_path / "out")
  with pytest.raises(FileNotFoundError, match="this run does not build data. Build it:"):
    ensure(config(source, "six"), tmp_path / "out", build=False)


def test_ensure_builds_in_a_process_of_its_own(source, tmp_path):
  """Also: the process that asks for the data imports neither TensorFlow nor seqio."""
  tokenizer = tmp_path / "tokenizer"
  tokenizer.mkdir()
  _word_tokenizer(tokenizer)
  script = f"""
    import sys
    from hyperjax.data.building import ensure
    from hyperjax.data.manifest import DataConfig
    from hyperjax.tasks import fewshot
    folder = fewshot.Folder({str(source)!r}, name="seven")
    config = DataConfig("seven", {str(tokenizer)!r}, sources=[folder])
    assert ensure(config, {str(tmp_path / "out")!r}).tasks == ("seven.choice", "seven.plain")
    assert not {{"tensorflow", "seqio", "t5"}} & set(sys.modules)
  """
  subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
  assert Manifest.load(tmp_path / "out").prompt.name == "qa"


def test_a_failed_build_says_why_and_how_to_repeat_it(source, tmp_path, capfd):
  (source / "plain.json").write_text('[{"input": "a", "output": " "}]')
  (tmp_path / "tokenizer").mkdir()
  _word_tokenizer(tmp_path / "tokenizer")
  folder = fewshot.Folder(str(source), name="eight")
  config = DataConfig("eight", str(tmp_path / "tokenizer"), sources=[folder])
  with pytest.raises(ValueError, match=r"out failed \(status 2\); repeat it: hyperjax data --con"):
    ensure(config, tmp_path / "out")
  shown = capfd.readouterr().err
  assert "plain.json, row 1: the output is empty" in shown and "Traceback" not in shown
  assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_vocabulary_that_the_model_cannot_hold_is_refused(source, tmp_path):
  (tmp_path / "tokenizer").mkdir()
  _word_tokenizer(tmp_path / "tokenizer")
  config = DataConfig("nine", str(tmp_path / "tokenizer"), sources=[])
  model = types.SimpleNamespace(vocab_size=256)
  with pytest.raises(ValueError, match="has 257 tokens, the model mine only 256 embeddings"):
    build_parts(parts={"train": config}, out=str(tmp_path / "out"), model=model, source="mine")
  assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_the_last_part_is_said_before_the_first_is_built(
  source, tmp_path, monkeypatch
):
  monkeypatch.setattr(build_lib.vocabularies, "load", lambda name: Bytes())
  parts = {"train": config(source, "later"), "held_out": config(source, "later", splits=["dev"])}
  with pytest.raises(ValueError, match="'later.choice' has none of .* C4_HELD_OUT_SPLITS"):
    build_parts(parts=parts, out=str(tmp_path / "data"))
  assert not (tmp_path / "data").exists()


def test_data_is_not_built_into_a_bucket(tmp_path, monkeypatch):
  """Refused first: neither is a vocabulary read, nor the local folder './gs:' made."""
  monkeypatch.chdir(tmp_path)
  message = "^--out is gs://mine/data, not a folder: build into a folder, then copy it: gcloud stor"
  with pytest.raises(ValueError, match=message):
    build_parts(parts={"train": DataConfig("ten", "no vocabulary")}, out="gs://mine/data")
  assert not list(tmp_path.iterdir())


def _word_tokenizer(folder):
  """Saves a byte-level tokenizer as transformers would."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: i for i, token in enumerate(["</s>", *alphabet])}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens(["</s>"])
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))


def test_an_ordinary_seqio_task_serves_as_it_is(tmp_path, registered):
  """seqio's own preprocessors and its SentencePiece vocabulary; t5's preprocessors before them."""
  from t5.data import preprocessors as t5_preprocessors

  vocabulary = seqio.SentencePieceVocabulary(str(SENTENCEPIECE))
  registered(
    "ordinary_sst",
    {"sentence": ["good", "bad", "fine"], "label": [1, 0, 1], "idx": [0, 1, 2]},
    preprocessors=[
      functools.partial(
        t5_preprocessors.glue, benchmark_name="sst2", label_names=["negative", "positive"]
      ),
      seqio.preprocessors.tokenize,
      seqio.CacheDatasetPlaceholder(),
      seqio.preprocessors.append_eos,
    ],
    features={name: seqio.Feature(vocabulary) for name in ("inputs", "targets")},
    splits=("train", "validation"),
  )
  manifest = build(DataConfig("ordinary_sst", "bytes", prompt=PROMPT), tmp_path / "out")
  assert manifest.splits("ordinary_sst") == ("train", "validation")
  store = manifest.store("ordinary_sst", "validation")
  assert decoded(store, 1) == ("sst2 sentence: bad=", "negative;")


def test_a_mixture_keeps_its_rates(tmp_path, registered):
  feature = seqio.Feature(seqio.ByteVocabulary())
  for name, count in (("rate_a", 3), ("rate_b", 4)):
    registered(
      name,
      {"inputs": [f"{name}{i}" for i in range(count)], "targets": ["x"] * count},
      preprocessors=[seqio.preprocessors.tokenize],
      features={"inputs": feature, "targets": feature},
    )
  seqio.MixtureRegistry.add("rate_mixture", [("rate_a", 3), ("rate_b", 1)])
  manifest = build(DataConfig("rate_mixture", "bytes", prompt=PROMPT), tmp_path / "out")
  assert [manifest.rate(task) for task in manifest.tasks] == [0.75, 0.25]


def test_features_that_hold_no_text_are_listed(tmp_path, registered):
  registered(
    "only_ids",
    {"inputs": [[1, 2]], "targets": [[3, 4]]},
    features={
      name: seqio.Feature(seqio.PassThroughVocabulary(9), add_eos=False)
      for name in ("inputs", "targets")
    },
  )
  with pytest.raises(ValueError, match=r"'only_ids' has no text.*its features are \{'inputs': "
                     r"'int32"):
    build(DataConfig("only_ids", "bytes"), tmp_path / "out")


def test_empty_targets_and_unknown_names_are_errors(tmp_path, registered):
  feature = seqio.Feature(seqio.ByteVocabulary())
  registered(
    "hollow",
    {"inputs": ["a", "b"], "targets": ["x", " "]},
    preprocessors=[seqio.preprocessors.tokenize],
    features={"inputs": feature, "targets": feature},
  )
  with pytest.raises(ValueError, match="hollow train, example 1: its target is empty"):
    build(DataConfig("hollow", "bytes"), tmp_path / "out")
  with pytest.raises(ValueError, match="No task or mixture 'hollo' is registered. Did you mean "
                     "'hollow'"):
    build(DataConfig("hollo", "bytes"), tmp_path / "out")
  with pytest.raises(ValueError, match=r"'hollow' has none of the splits \['dev'\]: \['train'\]"):
    build(DataConfig("hollow", "bytes", splits=["dev"]), tmp_path / "out")
  assert not list(tmp_path.glob("out/stores/*"))


@pytest.mark.parametrize("options, message", [
  ([["x", "y"], ["x", " "]], "example 1: one of its options is empty: ['x', ' ']. {out}"),
  ([["x", "y"], ["y", "z"]], "example 1: its target 'x' is none of its options ['y', 'z']. {out}"),
  ([["x"], ["x"]],
   "example 0: 'x' is its one option: give it at least two, or none at all."),
])  # fmt: skip
def test_options_that_no_ranking_can_use_are_refused(tmp_path, registered, options, message):
  rows = {"inputs": ["a", "b"], "targets": ["x", "x"], "options": options}
  registered("unranked", rows, features={name: FEATURES[name] for name in rows})
  with pytest.raises(ValueError) as error:
    build(DataConfig("unranked", "bytes", prompt=PROMPT), tmp_path / "out")
  out = "Mend it, or leave the task's feature 'options' out."
  assert str(error.value) == f"unranked train, {message.replace('{out}', out)}"


def test_a_text_folder_serves_caclm(tmp_path):
  (tmp_path / "text").mkdir()
  (tmp_path / "text" / "book.txt").write_text("all work and no play\n" * 40)
  folder = text.Folder(str(tmp_path / "text"), name="shelf")
  manifest = build(DataConfig("shelf", "bytes", sources=[folder]), tmp_path / "out")
  stream = CaclmStream(manifest, CaclmConfig(64), seed=0, batch_size=1)
  query = stream.episode(0, 0).queries[0]
  joined = Bytes().decode(query.input) + Bytes().decode(query.target)
  assert len(joined) == 32 and joined in "all work and no play\n" * 40


def test_a_name_for_two_folders_is_refused(source, tmp_path):
  build(config(source, "eight"), tmp_path / "out")
  other = write_tasks(tmp_path / "other", plain=words())
  with pytest.raises(ValueError, match="'eight.plain' is registered already.*another name"):
    build(config(other, "eight"), tmp_path / "out2")


MY_MODULE = """
import seqio, tensorflow as tf
{version}
def register():
  if "mine" not in seqio.TaskRegistry.names():
    feature = seqio.Feature(seqio.ByteVocabulary())
    dataset = lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
        {{"inputs": ["a"], "targets": [{target!r}]}})
    seqio.TaskRegistry.add("mine", seqio.FunctionDataSource(dataset, splits=["train"]),
                           preprocessors=[seqio.preprocessors.tokenize],
                           output_features={{"inputs": feature, "targets": feature}})
"""
MINE = DataConfig("mine", "bytes", prompt=PROMPT, task_modules=["my_task_module"])


@pytest.fixture
def my_module(tmp_path, monkeypatch):
  """Writes `my_task_module`, which the next build imports as a process of its own would."""
  monkeypatch.syspath_prepend(str(tmp_path))

  def forget():
    sys.modules.pop("my_task_module", None)
    registering._MODULES.pop("my_task_module", None)
    if "mine" in seqio.TaskRegistry.names():
      seqio.TaskRegistry.remove("mine")

  def write(target, version=""):
    forget()
    text = MY_MODULE.format(target=target, version=version)
    (tmp_path / "my_task_module.py").write_text(text)

  yield write
  forget()


def test_a_changed_module_is_noticed(my_module, tmp_path):
  out = tmp_path / "out"
  my_module("b")
  build(MINE, out)
  assert ensure(MINE, out).tasks == ("mine",)
  my_module("other")
  with pytest.raises(ValueError, match="out: the task module 'my_task_module' has changed. Name "
                     "another DATA_DIR, or rebuild it: hyperjax data --config_json "
                     ".*out.config.json --out .*out"):
    ensure(MINE, out)
  assert decoded(build(MINE, out).store("mine", "train"), 0) == ("a=", "other;")
  assert ensure(MINE, out).tasks == ("mine",)
  (tmp_path / "my_task_module.py").unlink()  # as on a machine that has the data alone
  assert ensure(MINE, out).tasks == ("mine",)
  my_module("third")
  values = json.loads((out / "manifest.json").read_text())
  del values["modules"]  # as older ones
  (out / "manifest.json").write_text(json.dumps(values))
  assert ensure(MINE, out).tasks == ("mine",)


def test_a_modules_register_is_called_once_and_only_as_it_is(my_module, tmp_path):
  """A second call may find the tasks there; one that takes arguments is the module's own."""
  my_module("b")
  file = tmp_path / "my_task_module.py"
  text = file.read_text().replace('if "mine" not in seqio.TaskRegistry.names()', "if True")
  file.write_text(text)
  for name in ("one", "two"):
    assert build(MINE, tmp_path / name).tasks == ("mine",)
  my_module("b")
  file.write_text(text.replace("def register()", "def register(name)"))
  with pytest.raises(ValueError, match="No task or mixture 'mine' is registered"):
    build(MINE, tmp_path / "three")


def test_a_version_vouches_for_a_module(my_module, tmp_path):
  out = tmp_path / "out"
  my_module("b", "VERSION = '3'")
  first = build(MINE, out).split("mine", "train")
  assert first["source"] == "my_task_module:3"
  my_module("other", "VERSION = '3'")
  for manifest in (ensure(MINE, out), build(MINE, out)):
    assert manifest.split("mine", "train") == first
  my_module("other", "VERSION = '40'")
  with pytest.raises(ValueError, match="the task module 'my_task_module' has changed"):
    ensure(MINE, out)
  assert decoded(build(MINE, out).store("mine", "train"), 0) == ("a=", "other;")


def test_a_module_that_registers_nothing_is_watched_beside_the_one_that_does(my_module, tmp_path):
  (tmp_path / "my_rows.py").write_text("VERSION = 1")
  my_module("b", "VERSION = '3'")
  both = dataclasses.replace(MINE, task_modules=["my_task_module", "my_rows"])
  manifest = build(both, tmp_path / "out")
  assert manifest.split("mine", "train")["source"] == "my_task_module:3 my_rows:1"
  (tmp_path / "my_rows.py").write_text("VERSION = 2")
  with pytest.raises(ValueError, match="the task module 'my_rows' has changed"):
    ensure(both, tmp_path / "out")


def test_a_module_that_is_not_there_is_named(tmp_path, monkeypatch):
  (tmp_path / "my_package").mkdir()
  (tmp_path / "my_package" / "tasks.py").write_text("")
  (tmp_path / "my_package" / "broken.py").write_text("import my_package.mising")
  monkeypatch.syspath_prepend(str(tmp_path))
  message = (
    rf"^There is no task module 'my_package.taks' \(gin: TASK_MODULES\): no 'my_package.taks' in "
    rf"{tmp_path}/my_package. Did you mean 'my_package.tasks'\? Give the command in the folder that"
  )
  with pytest.raises(ValueError, match=message):
    build(DataConfig("mine", "bytes", task_modules=["my_package.taks"]), tmp_path / "out")
  with pytest.raises(ValueError, match=rf"'my_pakage.tasks' .*: no 'my_pakage' in {tmp_path}, "):
    registering.load("my_pakage.tasks")
  with pytest.raises(ModuleNotFoundError, match="No module named 'my_package.mising'"):
    registering.load("my_package.broken")


def test_max_examples(source, tmp_path):
  manifest = build(config(source, "nine", max_examples=2), tmp_path / "out")
  assert len(manifest.store("nine.plain", "train")) == 2


def test_json_round_trip_of_a_configuration(source):
  wanted = config(source, "ten", max_examples=2, feature_lengths={"inputs": 9})
  assert DataConfig.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted
  with pytest.raises(ValueError, match="splits must be a list, not 'train'"):
    config(source, "ten", splits="train")
  with pytest.raises(ValueError, match="splits is empty"):
    config(source, "ten", splits=[])


def test_stores_are_named_by_what_they_hold(source, tmp_path):
  entry = lambda **options: build(config(source, "eleven", **options), tmp_path / "out").split(
    "eleven.plain", "train"
  )["store"]  # fmt: skip
  first = entry()
  assert entry() == first != entry(max_examples=2)
  assert len(Store(tmp_path / "out" / first)) == 5
