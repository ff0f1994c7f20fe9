"""The page of a comparison in a browser: the Chromium that kaleido 0.2.1 carries."""

import html.parser
import importlib.util
import json
import pathlib
import re
import subprocess

import pytest

from hyperjax.evaluation import page, tables

# Kaleido hands a "figure" to what it takes for plotly, and prints the "image" that comes back.
BROWSER = """\
window.Plotly = {version: "2.0.0", toImage: ({data: [{page, program, width}]}) => {
  const frame = document.createElement("iframe");
  frame.style.cssText = `border: 0; height: 800px; width: ${width}px`;
  frame.srcdoc = page;
  document.body.append(frame);
  return new Promise((resolve) => frame.addEventListener("load", resolve)).then(
    () => new Function("window", "document", program)(frame.contentWindow, frame.contentDocument));
}};
"""
# The first table's column as it is shown.
COLUMN = """
const shown = (column) => [...document.querySelector("tbody").rows].filter((row) => !row.hidden)
  .map((row) => row.cells[column].textContent);
const buttons = [...document.querySelectorAll("th button")];
"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
  """A function (page, program, width) that returns what the program does in the opened page."""
  folder = pathlib.Path(importlib.util.find_spec("kaleido").origin).parent / "executable"
  script = tmp_path_factory.mktemp("browser") / "browser.js"
  script.write_text(BROWSER)
  command = [folder / "kaleido", "plotly", f"--plotlyjs={script.as_uri()}", "--no-sandbox"]
  command += ["--disable-gpu", "--disable-dev-shm-usage"]

  def run(page, program, width=1000):
    figure = {"data": [{"page": page, "program": program, "width": width}]}
    given = json.dumps({"data": figure}) + "\n"
    # A start in twenty or so gets stuck before it says that it is there.
    for seconds in ("3", "6", "12", "24"):
      limited = ["timeout", "--signal=KILL", seconds, *command]
      done = subprocess.run(limited, input=given, capture_output=True, text=True)
      if done.returncode == 0:
        answer = json.loads(done.stdout.splitlines()[-1])
        assert answer["code"] == 0, answer
        return answer["result"]
    raise TimeoutError(command)

  return run


def interval(mean):
  return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def run(scores, config="X = 1", note="undefined"):
  methods = {
    name: {"exact_match": interval(mean), "log_likelihood": interval(mean * 10 - 12)}
    for name, mean in scores.items()
  }
  recovery = {"mean": None, "low": None, "high": None, "note": note}
  if scores["hyperllama"] > 0.2:
    recovery = interval(scores["hyperllama"])
  tasks = {
    f"x.{family}.{number}": {m: {"exact_match": mean} for m, mean in scores.items()}
    for family in ("fast", "slow")
    for number in range(2)
  }
  return {
    "methods": methods, "tasks": tasks, "families": {"x.fast": tasks["x.fast.0"]},
    "recovery": {"exact_match": recovery}, "hypermodel": "hyperllama",
    "recoveries": {"hyperllama": {"exact_match": recovery}}, "command": "hyperjax evaluate",
    "config": config, "versions": {"jax": "0.0"}, "seeds": [0, 1], "num_queries": 8,
  }  # fmt: skip


EVIL = '"><script>document.title = "evil"</script><img src=x onerror=alert(1)>'


def make(runs):
  groups = [tables.per_group(runs, name) for name in ("families", "tasks")]
  shown = [tables.comparison(runs), tables.published(runs), *groups]
  return page.html_page(runs, shown, {"Score by method": b"\x89PNG", "Score by family": b"\x89PNG"})


@pytest.fixture(scope="module")
def two():
  return {
    "ten": run({"zero_shot": 0.05, "hyperllama": 0.5, "in_context": 0.9}),
    "nine": run({"zero_shot": 0.1, "hyperllama": 0.15, "in_context": 0.12}),
  }


def test_the_page_needs_nothing_else(two):
  text = make(two)
  assert not re.search(r"https?:|//\w+\.|@import|url\(", text)
  assert re.findall(r"<(?:link|iframe|object)|src=\"(?!data:image/png;base64,)", text) == []
  assert text.count("<script>") == 1 and "default-src 'none'" in text
  for words in ("hyperjax evaluate", "X = 1", "jax 0.0", "seeds 0, 1", "8 queries", "tasks, recov"):
    assert words in text


class Tags(html.parser.HTMLParser):
  """Checks that tags are closed in order."""

  def __init__(self):
    super().__init__()
    self.open, self.seen = [], []

  def handle_starttag(self, tag, attrs):
    self.seen.append(tag)
    if tag not in ("meta", "img", "input"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def test_every_text_is_escaped(two, browse):
  hostile = run({EVIL: 0.5, "zero_shot": 0.0, "hyperllama": 0.1, "in_context": 0.0}, EVIL, EVIL)
  hostile |= {"command": EVIL, "versions": {EVIL: EVIL}, "seeds": [EVIL], "metrics": {"t": EVIL}}
  hostile["tasks"] = {f"{EVIL}.{EVIL}": hostile["families"]["x.fast"]}
  hostile["families"] = hostile["tasks"]
  text = make({EVIL: hostile})
  tags = Tags()
  tags.feed(text)
  assert not tags.open
  assert (tags.seen.count("script"), tags.seen.count("img")) == (1, 2)
  title, first = browse(
    text, "return [document.title, document.querySelector('tbody td').textContent]"
  )
  assert (title, first) == ("hyperjax: evaluations", EVIL)


def test_a_header_sorts(two, browse):
  program = COLUMN + """
    const seen = [shown(0)];
    for (const column of [0, 0, 4, 4, 5, 5]) {
      buttons[column].click();
      seen.push([buttons[column].parentNode.getAttribute("aria-sort"), shown(column)]);
    }
    return [...seen, document.querySelectorAll("[aria-sort]").length];
  """
  as_given, up, down, worst, best, least, most, marked = browse(make(two), program)
  assert as_given == ["ten"] * 3 + ["nine"] * 3
  assert up == ["ascending", ["nine"] * 3 + ["ten"] * 3]
  assert down == ["descending", as_given]
  # Log-likelihoods, by their value and not as texts: -12 + 10 times the score.
  means = [0.05, 0.1, 0.12, 0.15, 0.5, 0.9]
  cells = [tables.text(interval(mean * 10 - 12)) for mean in means]
  assert worst == ["ascending", cells] and best == ["descending", cells[::-1]]
  # What has no recovery is last both ways.
  defined = tables.text(interval(0.5))
  for order, rows in (least, most):
    assert order in ("ascending", "descending")
    assert rows[0] == defined and sorted(rows[1:]) == ["", "", "", "", "undefined"]
  assert marked == 1


def test_headers_are_reached_by_keyboard(two, browse):
  """A button that has the focus takes Enter and Space by itself."""
  program = COLUMN + """
    const all = [...document.querySelectorAll("th")];
    buttons[3].focus();
    return [all.every((head) => head.firstChild.tagName === "BUTTON"), buttons[3].tabIndex,
            document.activeElement === buttons[3]];
  """
  assert browse(make(two), program) == [True, 0, True]


def test_words_filter_the_rows_of_every_table(two, browse):
  program = COLUMN + """
    const input = document.querySelector("input");
    const type = (text) => {
      input.value = text;
      input.dispatchEvent(new window.Event("input", {bubbles: true}));
      const rows = [...document.querySelectorAll("tbody tr")].filter((row) => !row.hidden);
      return [rows.length, document.querySelector("output").textContent];
    };
    return [input.closest("div").hidden, type("Ten  hyper"), shown(2), type("fast ten"), type("")];
  """
  hidden, found, methods, fast, all_rows = browse(make(two), program)
  assert hidden is False
  assert found == [1, "1 of 16 rows"] and methods == ["HyperLlama"]
  assert fast == [3, "3 of 16 rows"]  # one of families, two of tasks
  assert all_rows == [16, "16 of 16 rows"]


def test_a_phone_scrolls_tables_and_not_the_page(two, browse):
  long = {"a_run_with_a_name_that_goes_on_" * 4: run(dict.fromkeys(
    ["zero_shot", "hyperllama", "in_context", *(f"method_{i}" for i in range(12))], 0.3))}
  program = """
    const wide = [...document.querySelectorAll(".wide")];
    const {clientWidth, scrollWidth} = document.documentElement;
    return [scrollWidth - clientWidth, wide.some((box) => box.scrollWidth > box.clientWidth)];
  """
  assert browse(make(two | long), program, 360) == [0, True]
