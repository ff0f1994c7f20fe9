"""Every gin file that comes with hyperjax, in every combination that the README names."""

import ast
import inspect
import itertools
import re
import shlex

import pytest

from hyperjax import launch, train
from hyperjax.core.sharding import MeshConfig
from hyperjax.data import __main__ as data_main
from hyperjax.data.shots import PerClass
from hyperjax.launch import command_line
from tests import tiny as tiny_lib
from tests.models import sizes

GIN = tiny_lib.ROOT / "gin"
FILES = sorted(str(path.relative_to(GIN)) for path in GIN.rglob("*.gin"))
KINDS = {kind: [f for f in FILES if f.startswith(f"{kind}/")]
         for kind in ("models", "systems", "data", "runs", "meshes", "pods", "examples")}
# Which run a data file is for.
CORPORA = ("data/text.gin", "data/c4.gin", "data/c4_tfds.gin", "data/redpajama.gin")
RUN_OF = {data: "runs/hyperpretrain.gin" if data in CORPORA else "runs/mtf.gin"
          for data in KINDS["data"]}  # fmt: skip
FROZEN = {"llama_tiny": 1_597_600, "t5_tiny": 1_622_656, **sizes.LLAMA, **sizes.T5}
# Systems that only one family has; HyperT5's body is a T5, which a Llama cannot lend it.
BOTH = ("llama", "t5")
FAMILIES = {
  **dict.fromkeys(
    ("hyperllama", "hyperllama_full", "hyperllama_lora", "gisting", "few_shot_lora"), BOTH[:1],
  ),
  **dict.fromkeys(
    ("gisting_t5", "gisting_t5_full", "hypert5_prefix", "hypert5_lora", "hypert5_prefix_plus",
     "hypert5_lora_plus"), BOTH[1:],
  ),
}  # fmt: skip
NEEDED = {
  "MODEL_DIR": "no_run", "DATA_DIR": "no_data", "TRAIN_STEPS": "70", "FEWSHOT_DIR": "no_tasks",
  "EVAL_OUTPUT_DIR": "no_report", "TEXT_DIR": "no_text", "NI_DIR": "no_instructions",
  "METAICL_DIR": "no_metaicl", "P3_DIR": "no_p3", "C4_DIR": "no_c4",
  "REDPAJAMA_DIR": "no_redpajama", "PROMPTSOURCE_DIR": "no_promptsource",
}  # fmt: skip
# What a data file's training data is called, where that is not the file's own name.
TITLES = {
  "lexical": "lexical_train", "rules": "rules_train", "function_vectors": "fewshot",
  "c4_tfds": "c4", "p3": "t0_train", "metaicl": "metaicl_hr_to_lr",
  "natural_instructions": "ni_default", "seqio": "the task of no_module",
  "symbol_tuning_instructions": "symbol_tuning",
}  # fmt: skip


def stem(file: str) -> str:
  return file.split("/")[-1].removesuffix(".gin")


def family(model: str) -> str:
  return "t5" if "t5" in stem(model) else "llama"


def uses(files, macro: str) -> bool:
  """Whether a macro is set or used in files or in what they include."""
  text = ""
  waiting = list(files)
  while waiting:
    content = re.sub(r"#.*", "", (GIN / waiting.pop()).read_text())
    waiting += re.findall(r"^include '(.+)'", content, re.M)
    text += content
  return re.search(rf"\b{macro}\b", text) is not None


def arguments(*files: str) -> list[str]:
  given = [f"--gin.{name}={value}" for name, value in NEEDED.items() if uses(files, name)]
  given += ["--gin.TASK_MODULES=['no_module']"] if "data/seqio.gin" in files else []
  given += ["--gin.TRAIN_STEPS=2000"] if {*files} & {*KINDS["pods"]} else []  # a long warm-up
  return [*(f"--gin_file={file}" for file in files), *given]


def counts(out: str) -> tuple[int, int]:
  found = re.search(r"parameters  trained ([\d,]+); frozen ([\d,]+), stored once", out)
  return tuple(int(number.replace(",", "")) for number in found.groups())


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
  """An empty working directory, which stays empty."""
  monkeypatch.chdir(tmp_path)
  yield
  assert not any(tmp_path.iterdir())


def dry_run(capsys, *files: str, command=train) -> str:
  status = command.main([*arguments(*files), "--dry_run"])
  captured = capsys.readouterr()
  assert status == 0, captured.err
  return captured.out


def test_each_model_has_a_size():
  assert set(map(stem, KINDS["models"])) - set(FROZEN) <= {"t5_rules"}  # a size of our own


# Every model with some data, all data with some models: nothing of one depends on the other.
PAIRS = [
  *((model, "data/lexical.gin") for model in KINDS["models"]),
  *((model, data) for model in ("models/llama_tiny.gin", "models/t5_tiny.gin")
    for data in KINDS["data"]),
]  # fmt: skip


@pytest.mark.parametrize("model, data", PAIRS, ids=stem)
def test_models_and_data_combine(capsys, model, data):
  """A dry run prints what would be trained; it draws no array (69 G of them need no memory)."""
  system = "systems/hyperllama.gin" if family(model) == "llama" else "systems/gisting_t5.gin"
  out = dry_run(capsys, model, system, data, RUN_OF[data])
  trained, frozen = counts(out)
  if stem(model) in FROZEN:
    assert frozen == FROZEN[stem(model)]
  assert 0 < trained < frozen / 5
  kind = "CACLM windows of 512 tokens, equal cuts" if data in CORPORA else "10 shots, 8 queries"
  assert f"70, 4 episodes each: {kind}\n" in out and "not built yet" in out
  assert f"{TITLES.get(stem(data), stem(data))} in no_data/train" in out and "GiB" in out


@pytest.mark.parametrize(
  "model, system",
  [(model, system) for model in ("models/smollm2_135m.gin", "models/t5_1_1_small.gin")
   for system in KINDS["systems"] if family(model) in FAMILIES.get(stem(system), BOTH)],
  ids=stem,
)  # fmt: skip
def test_systems_combine_with_their_models(capsys, model, system):
  trained, frozen = counts(dry_run(capsys, model, system, "data/lexical.gin", "runs/mtf.gin"))
  total = FROZEN[stem(model)]
  whole = stem(system) in ("full", "gisting_t5_full") or stem(system).endswith("_plus")
  # A tuned prefix has a length in each layer of each attention, which is not trained.
  lengths = {"llama": 30, "t5": 3 * 8}[family(model)] * (stem(system) == "prefix_tuning")
  assert frozen == (0 if whole else total) + lengths
  assert trained > total / 2 if whole else 0 < trained < 1.5 * total


@pytest.mark.parametrize("model, system", [
  ("models/smollm2_135m.gin", "systems/gisting_t5.gin"),
  ("models/t5_1_1_small.gin", "systems/hyperllama.gin"),
  ("models/smollm2_135m.gin", "systems/hypert5_prefix.gin"),
])  # fmt: skip
def test_a_system_for_another_family_is_refused(capsys, model, system):
  files = arguments(model, system, "data/lexical.gin", "runs/mtf.gin")
  for more in (["--dry_run"], []):
    message = tiny_lib.refused(capsys, train.main([*files, *more]))
    assert re.search(r"is for (decoder|encoder_decoder) models, not|must be a T5Config", message)


def test_distillation_is_refused_where_the_teacher_has_no_prefix(capsys):
  files = arguments("models/t5_tiny.gin", "systems/lora.gin", "data/lexical.gin", "runs/mtf.gin")
  message = tiny_lib.refused(capsys, train.main([*files, "--gin.DISTILLATION=0.5", "--dry_run"]))
  assert "DISTILLATION is 0.5" in message and "set it to 0" in message


def test_the_support_may_stand_in_each_input(capsys):
  for model in ("models/t5_tiny.gin", "models/llama_tiny.gin"):
    out = dry_run(capsys, model, "systems/lora.gin", "data/lexical.gin", "runs/mtf_few_shot.gin")
    assert "10 shots, 8 queries, the support in each query's input\n" in out


def test_supports_may_hold_so_many_examples_of_each_class(capsys):
  for data in ("symbol_tuning", "symbol_tuning_instructions"):
    files = ("models/llama_tiny.gin", "systems/hyperllama.gin", f"data/{data}.gin",
             "runs/mtf_per_class.gin")  # fmt: skip
    assert ": 2 to 10 shots of each class, 8 queries\n" in dry_run(capsys, *files)
    needed = [f"{macro}={value!r}" for macro, value in NEEDED.items() if uses(files, macro)]
    needed.append("TRAIN_STEPS=7")
    given = launch.arguments(files, "hyperjax.train", "train", bindings=needed)["data"]
    assert given.episodes.num_shots == PerClass((2, 10)) and given.episodes.limit[0] == 2048
    assert given.evaluation.num_shots == PerClass(4)


MESHES = {"data_fsdp": (-1, 16, 1), "fsdp": (1, -1, 1), "fsdp_tensor": (1, -1, 4)}


@pytest.mark.parametrize("mesh", KINDS["meshes"], ids=stem)
def test_a_mesh_file_behind_the_runs_sets_its_mesh(mesh):
  files = ["models/llama_tiny.gin", "systems/hyperllama.gin", "data/lexical.gin", "runs/mtf.gin"]
  needed = ["DATA_DIR='d'", "MODEL_DIR='m'", "TRAIN_STEPS=1"]
  read = lambda *more: launch.arguments(
    [*files, *more], "hyperjax.train", "train", bindings=needed
  )["run"].mesh
  assert read() == MeshConfig()
  assert read(mesh) == MeshConfig(*MESHES[stem(mesh)])


@pytest.mark.parametrize("pod", KINDS["pods"], ids=stem)
def test_a_pods_file_behind_a_data_file_is_a_run(capsys, pod):
  trained, frozen = counts(dry_run(capsys, "data/lexical.gin", pod))
  [model] = re.findall(r"^include 'models/(\w+).gin'", (GIN / pod).read_text(), re.M)
  assert frozen == FROZEN[model]
  assert trained < frozen / 50 if "llama" in model else trained > frozen / 2


def test_the_tuning_file_is_whole():
  given = launch.arguments(
    ["runs/tune.gin"], "hyperjax.tune", "tune",
    bindings=["TUNE_OUTPUT_DIR='o'", "RUN='r'", "SHARED='s'"],
  )  # fmt: skip
  starts = {name: method.start and method.start.run for name, method in given["methods"].items()}
  assert starts == {"random": None, "shared": "s", "generated": "r"}
  assert given["mesh"] == MeshConfig(data=1)  # a task is one episode


def test_the_tuned_baselines_have_few_and_more_examples():
  methods = launch.arguments(
    ["runs/tune_baselines.gin"], "hyperjax.tune", "tune",
    bindings=["TUNE_OUTPUT_DIR='o'", "RUN='r'"],
  )["methods"]  # fmt: skip
  found = {n: (m.num_examples, m.optimizer.schedule.peak) for n, m in methods.items()}
  assert found == {
    "prefix_few": (10, 1e-2), "prefix_more": (64, 1e-2), "lora_few": (10, 2e-3),
    "lora_more": (64, 2e-3), "full_few": (10, 5e-5), "full_more": (64, 5e-5),
  }  # fmt: skip


def test_files_that_are_missing_are_named_by_what_they_set(capsys):
  assert train.main(arguments("models/smollm2_135m.gin", "data/lexical.gin", "runs/mtf.gin")) == 2
  message = capsys.readouterr().err
  place = r"\(\S*/runs/train.gin, line \d+\)"
  files = r"systems/few_shot_lora.gin, systems/full.gin, systems/gisting.gin or \d+ more\.$"
  assert re.search(
    rf"%HYPERMODEL is used {place} but set nowhere\. Name a file that sets it: {files}",
    message, re.MULTILINE,
  )  # fmt: skip
  assert re.search("^%LEARNING_RATE is used .* but set nowhere", message, re.MULTILINE)


def test_a_teacher_that_is_trained_is_refused(capsys):
  files = ("models/llama_tiny.gin", "systems/full.gin", "data/lexical.gin", "runs/mtf.gin")
  assert train.main([*arguments(*files), "--gin.DISTILLATION=1.0", "--dry_run"]) == 2
  assert "its teacher is the downstream model, which FullConfig trains" in capsys.readouterr().err


def test_what_a_data_file_needs_is_listed_with_its_meaning(capsys):
  files = ("models/smollm2_135m.gin", "systems/lora.gin", "data/function_vectors.gin")
  given = [x for x in arguments(*files, "runs/mtf.gin") if "FEWSHOT_DIR" not in x]
  assert train.main(given) == 2
  message = capsys.readouterr().err
  assert "FEWSHOT_DIR must be set, for example --gin.FEWSHOT_DIR=VALUE:" in message
  assert "FEWSHOT_DIR: the folder of task files" in message


def test_gisting_and_hyperllama_train_the_same_kind_and_number(capsys):
  pairs = [
    counts(dry_run(capsys, "models/smollm2_135m.gin", f"systems/{name}.gin", "data/lexical.gin",
                   "runs/mtf.gin"))
    for name in ("hyperllama", "gisting")
  ]  # fmt: skip
  assert pairs[0] == pairs[1]


@pytest.mark.parametrize("model, data", PAIRS, ids=stem)
def test_the_builders_files_combine(capsys, model, data):
  given = [*arguments(model, data, "runs/data.gin"), "--out=nowhere", "--dry_run"]
  status = data_main.main(given)
  captured = capsys.readouterr()
  assert status == 0, captured.err
  assert "mixture_or_task_name" in captured.out


def test_the_builders_configuration_is_the_training_runs():
  """`hyperjax data` beforehand builds what train would: else train refuses the folder."""
  files = ["models/smollm2_135m.gin", "data/lexical.gin"]
  built = launch.arguments(
    [*files, "runs/data.gin"], "hyperjax.data.build", "build_parts", bindings=[]
  )["parts"]
  trained = launch.arguments(
    [*files, "systems/hyperllama.gin", "runs/mtf.gin"], "hyperjax.train", "train",
    bindings=["DATA_DIR='d'", "MODEL_DIR='m'", "TRAIN_STEPS=1"],
  )["data"]  # fmt: skip
  folders = {folder.name: folder.config for folder in (trained.data, trained.held_out)}
  assert built.keys() == folders.keys()
  for name, config in built.items():
    assert config.hash() == folders[name].hash()
    assert config.vocabulary == folders[name].vocabulary


EVALUATIONS = [f for f in FILES if "EVAL_OUTPUT_DIR" in (GIN / f).read_text()]
TRAININGS = [
  f for f in KINDS["examples"] if f not in EVALUATIONS and "runs/evaluate" not in
  (GIN / f).read_text()
]


@pytest.mark.parametrize("example", TRAININGS, ids=stem)
def test_each_training_example_is_whole(capsys, example):
  text = dry_run(capsys, example)
  trained, frozen = counts(text)
  assert trained < frozen


@pytest.mark.parametrize(
  "file", [f for f in FILES if f in EVALUATIONS or (f in KINDS["examples"] and f not in TRAININGS)],
  ids=stem,
)
def test_each_evaluation_file_is_whole(file):
  given = launch.arguments(
    [file], "hyperjax.evaluate", "evaluate",
    bindings=["EVAL_OUTPUT_DIR='o'", "RUNS={'hyperllama': 'r'}"],
  )  # fmt: skip
  assert given["output_dir"] == "o" and given["episodes"].seeds


@pytest.mark.parametrize("name, data", [
  *((name, name) for name in ("p3", "metaicl", "natural_instructions", "symbol_tuning")),
  ("symbol_tuning", "symbol_tuning_instructions"),
])  # fmt: skip
def test_each_protocol_is_whole(name, data):
  """The tasks are those that a training run with the same data file holds out."""
  files = ["models/smollm2_135m.gin", f"data/{data}.gin"]
  needed = [f"{macro}={value!r}" for macro, value in NEEDED.items() if uses(files, macro)]
  given = launch.arguments(
    [*files, f"runs/eval_{name}.gin"], "hyperjax.evaluate", "evaluate",
    bindings=["EVAL_OUTPUT_DIR='o'", "RUNS={'hyperllama': 'r'}", "DATA_DIR='d'", *needed],
  )  # fmt: skip
  trained = launch.arguments(
    [*files, "systems/hyperllama.gin", "runs/mtf.gin"], "hyperjax.train", "train",
    bindings=["DATA_DIR='d'", "MODEL_DIR='m'", "TRAIN_STEPS=1", *needed],
  )  # fmt: skip
  assert given["data"].held_out.config.hash() == trained["data"].held_out.config.hash()
  assert given["data"].held_out.path == trained["data"].held_out.path
  episodes = given["episodes"]
  assert episodes.max_queries in (None, 100)
  shown = {"natural_instructions": 2, "metaicl": None, "symbol_tuning": PerClass(4), "p3": 16}
  assert episodes.num_shots == shown[name]
  seeds = (100, 13, 21, 42, 87)
  assert tuple(episodes.seeds) == (seeds if name == "metaicl" else (0,))
  if name == "metaicl":  # training watches what the same seeds show
    assert tuple(trained["data"].evaluation.seeds) == seeds


def test_every_file_is_tested_here():
  assert FILES == sorted(itertools.chain(*KINDS.values()))
  assert set(KINDS["runs"]) == {
    f"runs/{name}.gin"
    for name in ("train", "mtf", "mtf_few_shot", "mtf_per_class", "hyperpretrain", "data", "stores",
                 "tasks",
                 "held_out", "mesh", "evaluate", "evaluate_on", "eval_p3", "eval_metaicl",
                 "eval_natural_instructions", "eval_symbol_tuning", "tune", "tune_baselines")
  }


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_found_by_its_name(name):
  """And by the path that tab completion gives in a checkout."""
  assert command_line.find(name) == command_line.find(f"gin/{name}") == GIN / name
  assert name in command_line.library_files()


def test_gin_holds_gin_files_only():
  others = [path for path in GIN.rglob("*") if path.is_file() and path.suffix != ".gin"]
  assert not others


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_no_place_of_one_machine(name):
  for number, line in enumerate((GIN / name).read_text().splitlines(), 1):
    code = line.split("#")[0]
    found = re.search(r"""['"](/|~|[A-Za-z]:\\|\.\./)""", code)
    assert not found, f"{name}, line {number}: {line}"


def test_every_macro_that_must_be_set_has_a_meaning():
  ask = {*KINDS["runs"], *KINDS["data"]}
  for name in ask:
    for line in (GIN / name).read_text().splitlines():
      if line.endswith("%gin.REQUIRED") or "%gin.REQUIRED " in line:
        assert re.search(r"%gin.REQUIRED  # \S.{5,}", line), f"{name}: {line}"
  for name in set(FILES) - ask:
    text = (GIN / name).read_text()
    assert "REQUIRED" not in text or name.startswith("examples/"), name


def test_the_held_out_tasks_of_the_example_are_those_of_its_description():
  text = (GIN / "data/function_vectors.gin").read_text()
  names = ast.literal_eval(re.search(r"FEWSHOT_HELD_OUT = (\[.+?\])", text, re.S)[1])
  assert len(names) == len(set(names)) == 10


def commands_of(text: str, name: str) -> list[list[str]]:
  """The arguments of every whole `hyperjax NAME` command in a text."""
  found = re.findall(rf"(?:bin/)?hyperjax {name} ((?:.*\\\n)*.*)", text)
  lines = [re.sub(r"\\\n", " ", command) for command in found if "..." not in command]
  return [shlex.split(line) for line in lines if "--gin_file" in line]


README = (tiny_lib.ROOT / "README.md").read_text()


@pytest.mark.parametrize(
  "command", [*commands_of(README, "train"), *commands_of(inspect.getdoc(train), "train")],
  ids=lambda command: " ".join(command)[-40:],
)
def test_every_training_command_of_the_documents_is_whole(capsys, command):
  status = train.main([*command, "--dry_run"])
  captured = capsys.readouterr()
  assert status == 0, captured.err
  assert counts(captured.out)


@pytest.mark.parametrize("command", commands_of(README, "data"), ids=lambda c: " ".join(c)[-40:])
def test_every_builder_command_of_the_readme_is_whole(capsys, command):
  assert data_main.main([*command, "--dry_run"]) == 0, capsys.readouterr().err


def test_the_readme_shows_training_and_evaluation():
  assert len(commands_of(README, "train")) >= 2
  for command in commands_of(README, "evaluate"):
    files = [a.removeprefix("--gin_file=") for a in command if a.startswith("--gin_file=")]
    bindings = [a.removeprefix("--gin.") for a in command if a.startswith("--gin.")]
    given = launch.arguments(files, "hyperjax.evaluate", "evaluate", bindings=bindings)
    assert given["hypermodel"] if "hypermodel" in given else given["runs_by_method"]
