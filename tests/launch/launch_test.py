"""Commands started from real gin files in temporary folders; every error message is read."""

import importlib
import os
import pathlib
import subprocess
import sys
import textwrap

import gin
import pytest

from hyperjax import launch, storage
from hyperjax.launch import command_line

TOY = {
  "toy_project/__init__.py": "",
  "toy_project/late.py": """
    import gin

    @gin.configurable
    def late():
      pass
    """,
  "toy_project/model.py": """
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Model:
      width: int
      depth: int = 2
      name: str = "small"

      def __post_init__(self):
        if not isinstance(self.width, int):
          raise ValueError(f"Model.width is {self.width!r}; it must be an int.")
    """,
  "toy_project/train.py": '''
    """A command."""
    import importlib
    import json

    from hyperjax import launch

    CALLS = []

    def train(model, steps: int, model_dir: str, rates=(0.1,), out: str = "", dry_run=False):
      """Trains the toy.

      More words.
      """
      CALLS.append(dict(model=model, steps=steps, model_dir=model_dir, rates=rates, out=out,
                        dry_run=dry_run))
      if steps == 13:
        raise ValueError("steps: 13 brings bad luck.")
      launch.accept()
      if steps == 14:
        json.loads("{")
      if steps == 17:
        raise KeyboardInterrupt
      if steps == 16:
        raise FloatingPointError("step 16: loss nan.")
      if steps == 15:
        open("/nowhere/at/all")
      if steps == 18:
        importlib.import_module("toy_project.late")
      return 3 if steps == 3 else None

    def show(steps=1):
      CALLS.append(steps)

    def quote():
      CALLS.append(launch.current())

    def weigh(toy, loud: bool = False, out: str = ""):
      CALLS.append(dict(toy=toy, loud=loud, out=out))
    ''',
}

MODEL = """
from __gin__ import dynamic_registration
from toy_project import model

MODEL = @model.Model()
WIDTH = 8
model.Model.width = %WIDTH
"""

RUN = """
# Trains the toy.
from __gin__ import dynamic_registration
from toy_project import train

MODEL_DIR = %gin.REQUIRED  # the folder that the run writes to
# Optimizer steps of this run.
TRAIN_STEPS = %gin.REQUIRED

# Commonly overridden:
RATES = (0.5, 1e-3)

train.train:
  model = %MODEL
  steps = %TRAIN_STEPS
  model_dir = %MODEL_DIR
  rates = %RATES
"""


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory):
  """A project that exists under a real module name, as gin needs it."""
  root = tmp_path_factory.mktemp("project")
  for name, text in TOY.items():
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))
  sys.path.insert(0, str(root))
  yield importlib.import_module("toy_project.train")
  sys.path.remove(str(root))


@pytest.fixture
def files(tmp_path, monkeypatch):
  """A folder with gin files, as the working directory."""
  (tmp_path / "model.gin").write_text(MODEL)
  (tmp_path / "run.gin").write_text(RUN)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def start(*argv, function="train", **options):
  return launch.run("toy_project.train", function, list(argv), **options)


def settings(folder="out", steps=5):
  return [
    "--gin_file=model.gin",
    "--gin_file=run.gin",
    f"--gin.MODEL_DIR={folder}",
    f"--gin.TRAIN_STEPS={steps}",
  ]


def refused(capsys, *argv, **options):
  """Returns the message of a command that was refused."""
  assert start(*argv, **options) == 2
  captured = capsys.readouterr()
  assert captured.err.startswith("error: ")
  assert "Traceback" not in captured.err
  return captured.err.removeprefix("error: ").rstrip("\n")


class TestValues:
  def test_the_function_gets_what_the_files_say(self, files, toy):
    assert start(*settings()) == 0
    call = toy.CALLS[-1]
    assert (call["model"].width, call["model"].depth) == (8, 2)
    assert call["steps"] == 5 and call["model_dir"] == "out" and call["rates"] == (0.5, 1e-3)
    assert call["dry_run"] is False

  def test_what_is_imported_late_may_register_with_gin(self, files):
    assert start(*settings(steps=18)) == 0
    assert gin.config_is_locked()

  def test_a_later_file_wins_and_the_command_line_wins_last(self, files, toy):
    (files / "wide.gin").write_text("WIDTH = 16\n")
    start(*settings(), "--gin_file", "wide.gin")
    assert toy.CALLS[-1]["model"].width == 16
    start("--gin.WIDTH=32", *settings(), "--gin_file=wide.gin")
    assert toy.CALLS[-1]["model"].width == 32

  @pytest.mark.parametrize(
    ("given", "value"),
    [
      ("/a/b c", "/a/b c"),
      ('"/a"', "/a"),
      ("gs://bucket/run", "gs://bucket/run"),
      ("./here", "./here"),
      ("a#b", "a#b"),
      ("it's", "it's"),
      ("None", None),
      ("7", 7),
    ],
  )
  def test_a_text_needs_no_quotes_if_it_is_no_gin_value(self, files, toy, given, value):
    start(*settings(), f"--gin.train.train.out={given}")
    assert toy.CALLS[-1]["out"] == value

  def test_a_home_folder_is_what_a_shell_makes_of_it(self, files, toy, monkeypatch):
    home = files / "home"
    monkeypatch.setenv("HOME", str(home))
    assert start(*settings("~/out"), "--gin.RATES={'a': '~/b', 'c': ['~/d', ('~/e', 2)]}") == 0
    call = toy.CALLS[-1]
    assert call["model_dir"] == f"{home}/out"
    assert call["rates"] == {"a": f"{home}/b", "c": [f"{home}/d", (f"{home}/e", 2)]}
    assert (home / "out" / "config.gin").exists() and not (files / "~").exists()
    # In a file, and a file itself, in a folder to be searched too.
    (home / "more").mkdir()
    (home / "mine.gin").write_text("RATES = '~/filed'\ninclude 'wide.gin'\n")
    (home / "more" / "wide.gin").write_text("WIDTH = 16\n")
    assert start(*settings(), "--gin_file=~/mine.gin", "--gin_search_paths=none,~/more") == 0
    call = toy.CALLS[-1]
    assert call["rates"] == f"{home}/filed" and call["model"].width == 16

  @pytest.mark.parametrize("text", ["~", "~ 5", "a ~/b", "~nobody_of_this_name/x"])
  def test_a_text_that_names_no_home_folder_stays(self, files, toy, text):
    start(*settings(), f"--gin.train.train.out={text}")
    assert toy.CALLS[-1]["out"] == text

  def test_a_value_may_follow_as_an_argument_of_its_own(self, files, toy):
    start(*settings(), "--gin.train.train.out", "x=y")
    assert toy.CALLS[-1]["out"] == "x=y"

  @pytest.mark.parametrize("given", ["2*16", "[1, 2", "'open", "-3 apples", "%WIDTH + 1"])
  def test_what_only_resembles_a_value_is_refused(self, files, capsys, given):
    message = refused(capsys, *settings(), f"--gin.WIDTH={given}")
    assert message.startswith(f"--gin.WIDTH={given} is not a value that gin knows (a text with ")
    assert message.endswith("Gin has no arithmetic.")

  def test_misspelt_keywords_do_not_become_texts(self, files, capsys):
    assert refused(capsys, *settings(), "--gin.WIDTH=false") == "--gin.WIDTH=false: write False."
    assert refused(capsys, *settings(), "--gin.WIDTH=null") == "--gin.WIDTH=null: write None."

  def test_parameters_of_modules_that_no_file_imports(self, files, toy):
    assert start("--gin.train.show.steps=4", function="show") == 0
    assert toy.CALLS[-1] == 4

  def test_flags_are_parameters_of_the_function(self, files, toy):
    flags = {"out": "where to"}
    start(*settings(), "--out", "12", flags=flags)
    assert toy.CALLS[-1]["out"] == "12"
    start(*settings("other"), flags=flags)
    assert toy.CALLS[-1]["out"] == ""

  def test_a_flag_of_a_number_is_a_number(self, files, toy):
    start("--steps=12", function="show", flags={"steps": "how many"})
    assert toy.CALLS[-1] == 12

  def test_a_command_can_quote_its_command_line_and_configuration(self, files, toy):
    start("--gin.train.show.steps=2", function="quote")
    command, config, _ = toy.CALLS[-1]
    assert command == "python -m toy_project.train --gin.train.show.steps=2"
    assert f"#   {command}\n# To repeat it: python -m toy_project.train --gin_file=" in config
    assert config.endswith("train.show.steps = 2\n")
    with pytest.raises(LookupError, match="no command was started"):
      launch.current()

  def test_status_is_returned(self, files):
    assert start(*settings(steps=3)) == 3

  def test_two_runs_in_one_process_do_not_mix(self, files, toy):
    start(*settings(), "--gin.model.Model.depth=9")
    start(*settings())
    assert toy.CALLS[-1]["model"].depth == 2

  def test_tfds_data_dir_reaches_the_environment(self, files, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "before")
    start(*settings(), "--tfds_data_dir=/data")
    assert os.environ["TFDS_DATA_DIR"] == "/data"


class TestFiles:
  def test_search_paths_and_includes(self, files, toy, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "models").mkdir()
    (elsewhere / "models" / "big.gin").write_text("include 'models/base.gin'\nWIDTH = 64\n")
    (elsewhere / "models" / "base.gin").write_text(MODEL)
    argv = [a.replace("model.gin", "gin/models/big.gin") for a in settings()]
    assert start(*argv, f"--gin_search_paths=/none,{elsewhere}") == 0
    assert toy.CALLS[-1]["model"].width == 64

  def test_a_file_beside_the_including_file_is_found(self, files, toy):
    (files / "sub").mkdir()
    (files / "sub" / "a.gin").write_text("include 'b.gin'\n")
    (files / "sub" / "b.gin").write_text("WIDTH = 3\n")
    start(*settings(), "--gin_file=sub/a.gin")
    assert toy.CALLS[-1]["model"].width == 3

  def test_files_of_an_installed_package(self, files, toy, monkeypatch, tmp_path):
    package = tmp_path / "site-packages" / "hyperjax"
    (package / "configs" / "models").mkdir(parents=True)
    (package / "configs" / "models" / "carried.gin").write_text(MODEL)
    monkeypatch.setattr(command_line.hyperjax, "__file__", str(package / "__init__.py"))
    assert command_line.library_files() == ["models/carried.gin"]
    for name in ("models/carried.gin", "gin/models/carried.gin"):
      assert start(*[a.replace("model.gin", name) for a in settings()]) == 0

  def test_files_of_a_checkout(self, monkeypatch, tmp_path):
    (tmp_path / "setup.py").write_text("")
    (tmp_path / "gin" / "runs").mkdir(parents=True)
    (tmp_path / "gin" / "runs" / "a.gin").write_text("")
    monkeypatch.setattr(command_line.hyperjax, "__file__", str(tmp_path / "hyperjax" / "x.py"))
    for name in ("runs/a.gin", "gin/runs/a.gin"):
      assert command_line.find(name).resolve() == (tmp_path / "gin/runs/a.gin").resolve()

  def test_a_missing_file_names_the_nearest(self, files, capsys):
    message = refused(capsys, "--gin_file=modle.gin")
    assert message.startswith("gin file 'modle.gin' does not exist. Did you mean 'model.gin'? ")
    assert str(files) in message

  def test_a_file_of_that_name_elsewhere_is_named(self, files, capsys):
    (files / "more" / "models").mkdir(parents=True)
    (files / "more" / "models" / "z.gin").write_text("")
    message = refused(capsys, "--gin_file=runs/z.gin", "--gin_search_paths=more")
    assert "Did you mean 'models/z.gin'?" in message

  def test_a_missing_include_names_the_including_file(self, files, capsys):
    (files / "a.gin").write_text("include 'nothing_like_it.gin'\n")
    message = refused(capsys, "--gin_file=a.gin")
    assert message.startswith(
      "gin file 'nothing_like_it.gin' (included by a.gin) does not exist."
    )

  def test_a_circle_of_includes(self, files, capsys):
    (files / "a.gin").write_text("include 'b.gin'\n")
    (files / "b.gin").write_text("\ninclude 'a.gin'\n")
    assert refused(capsys, "--gin_file=a.gin") == "b.gin, line 2: a.gin includes itself."

  def test_nothing_is_logged_and_a_bare_process_works(self, files, toy):
    script = (
      "from hyperjax import launch; import sys;"
      f"sys.exit(launch.run('toy_project.train', 'train', {settings()!r}))"
    )
    paths = [str(pathlib.Path(toy.__file__).parents[1]), str(pathlib.Path.cwd())]
    paths.append(str(pathlib.Path(launch.__file__).parents[2]))
    result = subprocess.run(
      [sys.executable, "-c", script],
      env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
      capture_output=True,
      text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


class TestRefusals:
  def test_all_that_is_missing_at_once_with_its_meaning(self, files, capsys):
    message = refused(capsys, "--gin_file=model.gin", "--gin_file=run.gin")
    assert message == (
      "MODEL_DIR, TRAIN_STEPS must be set, for example --gin.MODEL_DIR=VALUE:\n"
      "  MODEL_DIR: the folder that the run writes to\n"
      "  TRAIN_STEPS: Optimizer steps of this run."
    )

  def test_a_required_parameter(self, files, capsys):
    (files / "more.gin").write_text(
      "from __gin__ import dynamic_registration\nfrom toy_project import model\n"
      "model.Model.depth = %gin.REQUIRED\n"
    )
    message = refused(capsys, *settings(), "--gin_file=more.gin")
    assert message.startswith("model.Model.depth must be set, for example --gin.model.Model.depth=")

  def test_a_run_file_that_comes_after_a_setting_is_explained(self, files, capsys):
    (files / "steps.gin").write_text("\nTRAIN_STEPS = 4\n")
    argv = ["--gin_file=steps.gin", *settings()[:-1]]
    message = refused(capsys, *argv)
    assert "(set in steps.gin, line 2, but run.gin, line 8, which is read later" in message

  def test_a_wrong_name_on_the_command_line(self, files, capsys):
    message = refused(capsys, *settings(), "--gin.train.train.stepz=1")
    assert message == (
      "--gin.train.train.stepz: train.train has no parameter 'stepz'. Did you mean 'steps'?"
    )

  def test_a_macro_that_nothing_uses(self, files, capsys):
    message = refused(capsys, *settings(), "--gin.TRAIN_STEP=5")
    assert message == (
      "TRAIN_STEP is set (--gin.TRAIN_STEP) but never used. Did you mean 'TRAIN_STEPS'?"
    )

  def test_a_macro_that_nothing_sets(self, files, capsys):
    message = refused(capsys, *settings(), "--gin.train.train.out=%MODEL_DIRS")
    assert message == (
      "%MODEL_DIRS is used (--gin.train.train.out) but set nowhere. Did you mean 'MODEL_DIR'?"
    )

  @pytest.mark.parametrize(
    ("line", "message"),
    [
      ("train.train.stepz = 1", "train.train has no parameter 'stepz'. Did you mean 'steps'?"),
      ("train.trian.steps = 1", "'train.trian': train has no 'trian'. Did you mean 'train'?"),
      ("trian.train.steps = 1", "'trian' is not imported in this file. Did you mean 'train'?"),
      ("train.train.x = @train.shwo()", "'train.shwo': train has no 'shwo'. Did you mean 'show'?"),
      ("train.CALLS.x = 1", "'train.CALLS' is a list, not a function or a class."),
      ("train.tarin:\n  steps = 1", "'train.tarin': train has no 'tarin'. Did you mean 'train'?"),
      ("train.train:\n  stepz = 1", "train.train has no parameter 'stepz'. Did you mean 'steps'?"),
      (
        "from toy_project import modle",
        "cannot import toy_project.modle: No module named 'toy_project.modle'. "
        "Did you mean 'model'?",
      ),
      ("X = 2 * 16", "Expected newline. Read: X = 2 * 16"),
      ("X Y", "Couldn't parse statement, expected ':' or '='. Read: X Y"),
    ],
  )
  def test_a_wrong_line_is_named(self, files, capsys, line, message):
    text = f"from __gin__ import dynamic_registration\nfrom toy_project import train\n{line}\n"
    (files / "bad.gin").write_text(text)
    number = 4 if line == "train.train:\n  stepz = 1" else 3
    assert refused(capsys, "--gin_file=bad.gin") == f"bad.gin, line {number}: {message}"

  def test_an_error_in_an_included_file_is_placed_there_once(self, files, capsys):
    (files / "a.gin").write_text("include 'b.gin'\n")
    (files / "b.gin").write_text("\n\nx.y.z = 1\n")
    assert refused(capsys, "--gin_file=a.gin") == (
      "b.gin, line 3: 'x.y' is unknown: a file that configures functions begins with "
      "'from __gin__ import dynamic_registration' and imports the modules that it names."
    )

  def test_an_unclosed_bracket(self, files, capsys):
    (files / "a.gin").write_text("\nX = [1, 2\n")
    assert refused(capsys, "--gin_file=a.gin").startswith("a.gin, line ")

  @pytest.mark.parametrize(
    ("argument", "message"),
    [
      ("--gin.=3", "'--gin.=3' is not of the form --gin.NAME=VALUE."),
      ("--gin.WIDTH=", "--gin.WIDTH has no value; an empty text is written as \"''\"."),
      ("--gin.WIDTH", "--gin.WIDTH has no value; an empty text is written as \"''\"."),
      ("--gin_fiel=x", "unknown flag '--gin_fiel=x'. Did you mean 'gin_file'? See --help."),
      ("model.gin", "unknown argument 'model.gin'. See --help."),
      ("--gin_file", "argument --gin_file: expected one argument. See --help."),
    ],
  )
  def test_a_wrong_flag(self, files, capsys, argument, message):
    assert refused(capsys, argument) == message

  def test_arguments_that_nothing_sets(self, files, capsys):
    message = refused(capsys, "--gin.train.train.steps=3")
    assert message == (
      "train.train needs model, model_dir: name the gin files that set them, or give "
      "--gin.train.train.model=VALUE. See --help."
    )

  def test_a_folder_that_is_no_text(self, files, capsys):
    assert refused(capsys, *settings(folder="2026")) == (
      "MODEL_DIR is 2026, not a text; quote it: '--gin.MODEL_DIR=\"...\"'."
    )

  def test_a_bucket_is_no_folder(self, files, capsys):
    message = refused(capsys, *settings(folder="gs://mine/run"))
    assert message.startswith("MODEL_DIR is gs://mine/run, not a folder: mount the bucket")
    assert sorted(path.name for path in files.iterdir()) == ["model.gin", "run.gin"]

  @pytest.mark.parametrize("folder", ["run.gin", "run.gin/new", "run.gin/new/er"])
  def test_a_folder_that_cannot_be_made_is_refused_before_the_work(
    self, files, capsys, toy, folder
  ):
    before = len(toy.CALLS)
    assert refused(capsys, *settings(folder=folder)) == (
      f"MODEL_DIR is {folder}, but {files}/run.gin is no folder: name another folder."
    )
    assert len(toy.CALLS) == before

  @pytest.mark.parametrize("folder", ["locked", "locked/new/er"])
  def test_a_folder_that_may_not_be_written_to_is_refused(
    self, files, capsys, monkeypatch, folder
  ):
    (files / "locked").mkdir()
    # By no mode of the folder: root may write to any.
    monkeypatch.setattr(os, "access", lambda path, _: path != files / "locked")
    assert refused(capsys, *settings(folder=folder)) == (
      f"MODEL_DIR is {folder}, but {files}/locked may not be written to: name another folder."
    )

  def test_the_folder_of_another_commands_run_is_refused_before_the_work(
    self, files, capsys, toy
  ):
    (files / "out").mkdir()
    config = files / "out" / "config.gin"
    config.write_text(command_line.header("hyperjax.evaluate", "hyperjax evaluate 'a\nb'"))
    before = len(toy.CALLS), config.read_text()
    assert refused(capsys, *settings()) == (
      "MODEL_DIR is out, the folder of a run of hyperjax evaluate (its config.gin says so): name "
      "another folder, such as out/toy_project.train."
    )
    assert (len(toy.CALLS), config.read_text()) == before
    assert [path.name for path in config.parent.iterdir()] == ["config.gin"]
    config.write_text("A = 1\n")  # whose it is, it does not say
    assert start(*settings()) == 0 == start(*settings())  # its own run goes on
    assert len(toy.CALLS) == before[0] + 2

  def test_runs_of_several_processes_may_be_in_a_bucket_and_nowhere_else(self, files, capsys):
    message = refused(capsys, *settings(folder="s3://mine/run"), distributed=True)
    assert message.startswith("MODEL_DIR is s3://mine/run, not a folder or a gs:// address: mount")

  def test_flags_of_processes_are_for_commands_that_can_use_them(self, files, capsys):
    message = refused(capsys, *settings(), "--num_processes=2")
    assert message.startswith("unknown flag '--num_processes=2'.")
    message = refused(capsys, *settings(), "--num_processes=2", distributed=True)
    assert message.startswith("give --coordinator_address and --process_id too")

  def test_a_constructor_that_lacks_an_argument(self, files, capsys):
    (files / "bare.gin").write_text(MODEL.replace("model.Model.width = %WIDTH", "").replace(
      "WIDTH = 8", ""))
    message = refused(capsys, *[a.replace("model.gin", "bare.gin") for a in settings()])
    assert "'width'" in message and "\n" not in message and "set it in a gin file" in message

  def test_a_constructor_that_refuses(self, files, capsys):
    message = refused(capsys, *settings(), "--gin.WIDTH=wide")
    assert message == "Model.width is 'wide'; it must be an int."

  def test_the_function_refuses_its_input(self, files, capsys):
    assert refused(capsys, *settings(steps=13)) == "steps: 13 brings bad luck."
    assert "No such file" in refused(capsys, *settings(steps=15))

  def test_a_run_that_went_wrong_is_no_wrong_input(self, files, capsys):
    assert start(*settings(steps=16)) == 1
    assert capsys.readouterr().err == "error: step 16: loss nan.\n"

  def test_debug_shows_the_traceback(self, files):
    with pytest.raises(ValueError, match="bad luck"):
      start(*settings(steps=13), "--debug")

  def test_an_error_below_our_code_keeps_its_traceback(self, files):
    with pytest.raises(ValueError, match="Expecting property name"):
      start(*settings(steps=14))


class TestRecords:
  def test_config_repeats_the_run(self, files, toy):
    words = "two\nlines " + " ".join(f"word{i}" for i in range(60))
    start(*settings(), f"--gin.train.train.out={words}", "--gin.model.Model.name=a 'b' \"c\"")
    first = toy.CALLS[-1]
    text = (files / "out" / "config.gin").read_text()
    assert "include" not in text
    assert "--gin_file=model.gin --gin_file=run.gin" in text
    for name in ("model.gin", "run.gin"):
      (files / name).unlink()
    assert start("--gin_file=out/config.gin") == 0
    assert toy.CALLS[-1] == first and first["out"] == words
    again = (files / "out" / "config.gin").read_text()
    assert again.split("\n\n", 1)[1] == text.split("\n\n", 1)[1]

  def test_config_can_be_overridden_again(self, files, toy):
    start(*settings())
    start("--gin_file=out/config.gin", "--gin.TRAIN_STEPS=6", "--gin.MODEL_DIR=next")
    assert toy.CALLS[-1]["steps"] == 6 and (files / "next" / "config.gin").exists()

  def test_a_refused_run_leaves_the_folder_as_it_is(self, files):
    assert start(*settings(steps=13)) == 2
    assert not (files / "out").exists()
    start(*settings(steps=4))
    before = {p.name: p.read_text() for p in (files / "out").iterdir()}
    assert start(*settings(steps=13)) == 2
    assert {p.name: p.read_text() for p in (files / "out").iterdir()} == before

  def test_outside_of_a_run_there_is_nothing_to_accept(self, files):
    launch.accept()
    assert not (files / "out").exists()

  def test_ctrl_c_is_one_line(self, files, capsys):
    assert start(*settings(steps=17)) == 130
    assert capsys.readouterr().err == "interrupted; the same command starts again where it can\n"
    with pytest.raises(KeyboardInterrupt):
      start(*settings(steps=17), "--debug")

  def test_operative_records_defaults_and_is_there_if_the_function_fails(self, files):
    assert start(*settings(steps=16)) == 1
    text = (files / "out" / "config-operative.gin").read_text()
    assert "model.Model.depth = 2" in text and "model.Model.width = %WIDTH" in text
    assert "train.train.out = ''" in text and "train.train.steps = %TRAIN_STEPS" in text

  def test_what_stopped_the_function_is_said_where_its_folder_cannot_be_written_any_more(
    self, files, capsys, monkeypatch
  ):
    write, names = storage.write_whole, []

    def full(path, content):
      names.append(os.path.basename(path))
      if len(names) > 2:
        raise OSError("the disk is full")
      write(path, content)

    monkeypatch.setattr(storage, "write_whole", full)
    assert start(*settings(steps=16)) == 1
    assert capsys.readouterr().err == "error: step 16: loss nan.\n"
    assert names == ["config.gin", "config-operative.gin", "config-operative.gin"]
    names.clear()
    with pytest.raises(OSError, match="the disk is full"):
      start(*settings(steps=5))

  def test_only_whole_files_are_left(self, files):
    start(*settings())
    assert sorted(p.name for p in (files / "out").iterdir()) == [
      "config-operative.gin",
      "config.gin",
    ]

  def test_dry_run_writes_nothing(self, files, toy):
    assert start(*settings(), "--dry_run") == 0
    assert toy.CALLS[-1]["dry_run"] is True and not (files / "out").exists()

  def test_dry_run_of_a_function_that_knows_none_prints_the_configuration(
    self, files, toy, capsys
  ):
    before = len(toy.CALLS)
    assert start("--gin.train.show.steps=4", "--dry_run", function="show") == 0
    assert len(toy.CALLS) == before and "train.show.steps = 4" in capsys.readouterr().out

  def test_another_macro_may_name_the_folder(self, files):
    start(*settings(), "--gin.train.train.out=%EVAL_DIR", "--gin.EVAL_DIR=report",
          folder="EVAL_DIR")
    assert (files / "report" / "config.gin").exists() and not (files / "out").exists()


class TestQueries:
  def test_configured_gives_what_the_run_got(self, files, toy):
    start(*settings())
    given = launch.configured("out", "toy_project.train", "train")
    call = toy.CALLS[-1]
    assert given == {k: call[k] for k in ("model", "steps", "model_dir", "rates")}
    moved = launch.configured("out", "toy_project.train", "train", bindings=["MODEL_DIR='x'"])
    assert moved["model_dir"] == "x"

  def test_configured_refuses_other_folders(self, files):
    with pytest.raises(FileNotFoundError, match="out is not the folder of a run: no config.gin"):
      launch.configured("out", "toy_project.train", "train")

  def test_a_class_can_be_asked_for(self, files):
    given = launch.arguments(["model.gin"], "toy_project.model", "Model", bindings=[
      "model.Model.name=%MODEL_NAME", "MODEL_NAME=mine", "OTHER=%MODEL", "MODEL=%OTHER"])
    assert given == {"name": "mine", "width": 8}

  def test_a_value_that_refers_to_itself(self, files):
    with pytest.raises(ValueError, match="^a value of toy_project.model.Model refers to itself"):
      launch.arguments(["model.gin"], "toy_project.model", "Model",
                       bindings=["model.Model.depth=%MODEL"])

  def test_the_callers_configuration_stays(self, files):
    start(*settings())
    before = gin.config_str(), gin.operative_config_str(), gin.config_is_locked()
    (files / "other.gin").write_text(MODEL.replace("8", "99") + "model.Model.name = %MODEL\n")
    launch.arguments(["other.gin"], "toy_project.train", "show", bindings=["WIDTH=3"])
    with pytest.raises(ValueError, match="never used"):
      launch.arguments(["model.gin"], "toy_project.train", "show")
    assert (gin.config_str(), gin.operative_config_str(), gin.config_is_locked()) == before


class TestHelp:
  def test_help_teaches(self, files, capsys):
    assert start("--help") == 0
    text = capsys.readouterr().out
    assert text.startswith("Trains the toy.")
    for words in ("usage: python -m toy_project.train --gin_file=FILE", "--gin_search_paths",
                  "Example:\n  python -m toy_project.train --gin_file=models/MODEL.gin"):
      assert words in text

  def test_help_with_files_lists_what_to_set(self, files, capsys):
    assert start("--help", "--gin_file=model.gin", "--gin_file=run.gin") == 0
    text = capsys.readouterr().out
    must, may = text.split("Must be set:\n")[1].split("May be set:\n")
    assert "--gin.MODEL_DIR=...\n      the folder that the run writes to" in must
    assert "Optimizer steps of this run." in must
    assert "--gin.RATES=(0.5, 0.001)" in may and "--gin.WIDTH=8" in may
    assert "Commonly" not in may  # a heading, not the meaning of the first macro below it

  def test_help_shows_flags_of_the_command(self, files, capsys):
    start("--help", flags={"out": "where the stores go"})
    assert "--out OUT" in (text := capsys.readouterr().out) and "where the stores go" in text


class TestBorrowed:
  """A command that takes the gin files of another one."""

  UNREAD = {"MODEL_DIR": "nowhere", "*_STEPS": "9"}

  def weigh(self, *argv):
    borrowed = launch.Borrowed("toy_project.train", "train", "toy", self.UNREAD)
    flags = {"loud": "whether to say so", "out": "where to"}
    return start(*argv, function="weigh", flags=flags, borrowed=borrowed)

  def test_it_gets_the_others_arguments_and_leaves_no_folder(self, files, toy):
    before = sorted(files.iterdir())
    assert self.weigh("--gin_file=model.gin", "--gin_file=run.gin", "--out=x") == 0
    call = toy.CALLS[-1]
    assert call["toy"].pop("model").width == 8 and (call["loud"], call["out"]) == (False, "x")
    assert call["toy"] == {"steps": 9, "model_dir": "nowhere", "rates": (0.5, 1e-3)}
    assert sorted(files.iterdir()) == before

  def test_what_is_given_wins_and_is_not_written_to(self, files, toy):
    assert self.weigh(*settings("mine", 4)) == 0
    assert toy.CALLS[-1]["toy"]["steps"] == 4 and toy.CALLS[-1]["toy"]["model_dir"] == "mine"
    assert not (files / "mine").exists()

  def test_a_flag_of_a_bool_takes_no_value(self, files, toy, capsys):
    assert self.weigh("--loud", *settings()) == 0 and toy.CALLS[-1]["loud"] is True
    assert self.weigh("--loud=yes", *settings()) == 2
    assert "--loud: ignored explicit argument 'yes'" in capsys.readouterr().err

  def test_what_the_other_needs_is_named(self, files, capsys):
    assert self.weigh("--gin_file=model.gin") == 2
    assert "MODEL is set (" in capsys.readouterr().err
    assert self.weigh() == 2
    assert "train.train needs model, steps, model_dir" in capsys.readouterr().err
