"""One HTML page that holds everything: tables to sort and to filter, pictures, configurations.

It loads nothing, and says so to the browser. Without JavaScript it is the same page, unsorted.
"""

import base64
import html
from collections.abc import Mapping, Sequence

import hyperjax
from hyperjax.evaluation import report, tables

_STYLE = """\
:root { color-scheme: light dark; --line: #d0d0d0; --shade: #f3f3f3; --link: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --shade: #262626; --link: #56b4e9; } }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 80rem;
  overflow-wrap: break-word; padding: 1rem; }
h1, h2 { line-height: 1.2; }
h2 { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1rem; }
img { background: white; border-radius: 4px; height: auto; max-width: 100%; }
pre { background: var(--shade); overflow-x: auto; padding: 0.75rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.6rem; text-align: left;
  white-space: nowrap; }
td[data-value] { text-align: right; }
th { background: var(--shade); padding: 0; vertical-align: bottom; }
th button { background: none; border: 0; color: inherit; cursor: pointer; font: inherit;
  font-weight: bold; padding: 0.4rem 0.6rem; text-align: left; width: 100%; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
:focus-visible { outline: 2px solid var(--link); outline-offset: -2px; }
#search { background: Canvas; padding: 0.5rem 0; position: sticky; top: 0; }
#search input { box-sizing: border-box; font: inherit; max-width: 100%; padding: 0.3rem; }
summary { cursor: pointer; padding: 0.3rem 0; }
"""

# A cell's own number goes before its text, and an empty one is last in both directions.
_SCRIPT = """\
"use strict";
const words = new Intl.Collator(undefined, {numeric: true});
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const value = ({cells}) => cells[column].dataset.value ?? cells[column].textContent;
    const order = (a, b) =>
      (a === "") - (b === "") || sign * (a - b || words.compare(a, b));
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => order(value(a), value(b)));
    table.tBodies[0].append(...rows);
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  }));
}
const search = document.getElementById("search");
const rows = [...document.querySelectorAll("tbody tr")];
search.hidden = false;
search.addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase().split(/\\s+/);
  for (const row of rows) {
    const text = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join("\\n");
    row.hidden = !wanted.every((word) => text.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  search.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
});
"""

_HEAD = f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>hyperjax: evaluations</title>
<style>
{_STYLE}</style>
</head>
<body>
<h1>Evaluations</h1>
"""

_SEARCH = """\
<div id="search" hidden><label>Show rows with
<input type="search" placeholder="words"></label> <output></output></div>
"""


def html_page(
  runs: tables.Runs, shown: Sequence[tables.Table], images: Mapping[str, bytes]
) -> str:
  """Returns the page.

  Args:
    runs: the evaluations.
    shown: tables, from top to bottom; those without rows are left out.
    images: {what it shows: PNG}.
  """
  parts = [_HEAD, "<ul>\n"]
  for run, results in runs.items():
    parts.append(f"<li><b>{_text(run)}</b>: {_text(report.headline(results))}</li>\n")
  parts += ["</ul>\n", _SEARCH]
  sections = [_table(table) for table in shown if table.rows]
  pictures = [_image(title, image) for title, image in images.items()]
  parts += [sections[0], *pictures, *sections[1:], "<h2>How this was made</h2>\n"]
  parts += [_origin(run, results) for run, results in runs.items()]
  parts.append(f"<p>Page by hyperjax {hyperjax.__version__}, <code>hyperjax report</code>.</p>\n")
  parts.append(f"<script>\n{_SCRIPT}</script>\n</body>\n</html>\n")
  return "".join(parts)


def _text(given: object) -> str:
  return html.escape(str(given))


def _table(table: tables.Table) -> str:
  title = _text(table.title)
  head = "".join(
    f'<th scope="col"><button type="button">{_text(name)}</button></th>' for name in table.header
  )
  rows = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
  return (
    f"<section>\n<h2>{title}</h2>\n<p>{_text(table.note)}</p>\n"
    f'<div class="wide" role="region" aria-label="{title}" tabindex="0">\n'
    f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
    "</section>\n"
  )


def _cell(cell: tables.Cell) -> str:
  """A cell; what is no text carries the number that it is sorted by."""
  if isinstance(cell, str):
    return f"<td>{_text(cell)}</td>"
  value = cell["mean"] if isinstance(cell, Mapping) else cell
  return f'<td data-value="{"" if value is None else value}">{_text(tables.text(cell))}</td>'


def _image(title: str, image: bytes) -> str:
  source = base64.b64encode(image).decode()
  return (
    f"<h2>{_text(title)}</h2>\n"
    f'<img alt="{_text(title)}" src="data:image/png;base64,{source}">\n'
  )


def _origin(run: str, results: tables.Results) -> str:
  versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
  size = f"{results['num_queries']} queries; seeds {', '.join(map(str, results['seeds']))}"
  return (
    f"<details>\n<summary>{_text(run)}: command and configuration</summary>\n"
    f"<pre>{_text(results['command'])}</pre>\n<pre>{_text(results['config'])}</pre>\n"
    f"<p>{_text(size)}. {_text(versions)}.</p>\n</details>\n"
  )
