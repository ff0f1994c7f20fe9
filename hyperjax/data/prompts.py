"""Prompt formats: how an example becomes an input piece and a target piece.

Building stores, training, serving and evaluation all tokenise through this file, piece by piece, so
that a text has the same ids everywhere.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

# Between a prompt and its target there is always text; see `_continuations`.
_ANCHOR = ":"
# So many tasks are named in a remark.
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """One way to write an example.

      Q: wolf\\nA:| wolves|\\n        input piece | target text | terminator

  Attributes:
    name: what reports and adapters call it.
    input: template of the input piece; contains `{input}`.
    target: template of the target; contains `{target}`.
    terminator: text that ends every target; "" means the vocabulary's EOS token.
    definition: template of a task's definition, in front of a support; contains `{definition}`.
  """

  name: str = "qa"
  input: str = "Q: {input}\nA:"
  target: str = " {target}"
  terminator: str = "\n"
  definition: str = "{definition}\n"

  def __post_init__(self):
    for field in ("input", "target", "definition"):
      if getattr(self, field).count("{" + field + "}") != 1:
        raise ValueError(
          f"Prompt format '{self.name}': its {field} template must contain {{{field}}} exactly "
          f"once; it is {getattr(self, field)!r}."
        )

  def render_input(self, example: Mapping[str, str] | str) -> str:
    """Returns the input piece's text for an example (with a field `input`) or for its input."""
    text = example if isinstance(example, str) else example["input"]
    return self.input.replace("{input}", text)

  def render_target(self, text: str) -> str:
    """Returns the target's text, with the terminator's text."""
    return self.target.replace("{target}", text) + self.terminator

  def render_definition(self, text: str) -> str:
    """Returns the text that stands in front of a support where its task has a definition."""
    return self.definition.replace("{definition}", text)

  def terminator_ids(self, vocabulary) -> tuple[int, ...]:
    """Returns the token ids that end every target: decoding stops at them.

    Raises:
      ValueError: the vocabulary has none for the terminator's text.
    """
    if self.terminator == "":
      return (vocabulary.eos_id,)
    ids = tuple(_continuations(vocabulary, [self.terminator])[0])
    if not ids:
      with_eos = ", ".join(prompt.name for prompt in FORMATS.values() if prompt.terminator == "")
      raise ValueError(
        f"Prompt format '{self.name}': its terminator {self.terminator!r} has no token in this "
        "vocabulary (as line ends have none in T5's), so no target would have an end; use a format "
        f"that ends with EOS (gin: PROMPT): {with_eos}."
      )
    return ids

  def remark(self, early: Mapping[str, int]) -> str:
    """Returns a sentence on targets that no answer can be; "" where there are none.

    Args:
      early: {task: how many of its targets hold what ends them (see `ends_early`)}.
    """
    early = {task: count for task, count in early.items() if count}
    if not early:
      return ""
    named = [f"{count:,} of {task}" for task, count in early.items()]
    more = f" and {len(named) - _NAMED:,} more tasks" if len(named) > _NAMED else ""
    if self.terminator:
      way_out = "a format that ends with EOS has no such limit (gin: PROMPT='qa_eos')"
    else:
      way_out = "take its text out of them"
    return (
      f"No answer can be {sum(early.values()):,} of the targets, which hold what ends an answer, "
      f"{repr(self.terminator) if self.terminator else 'EOS'}: {', '.join(named[:_NAMED])}{more}; "
      f"{way_out}."
    )

  def encode_inputs(self, vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each input's piece (no BOS: `Episode` puts it where a sequence starts)."""
    return vocabulary.encode_batch([self.render_input(text) for text in texts])

  def encode_targets(self, vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each target's piece, the terminator's ids last.

    The terminator is encoded apart from the target: its ids never depend on what precedes it.
    """
    end = list(self.terminator_ids(vocabulary))
    bodies = [self.target.replace("{target}", text) for text in texts]
    return [ids + end for ids in _continuations(vocabulary, bodies)]

  def encode_definitions(self, vocabulary, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each definition's piece."""
    return vocabulary.encode_batch([self.render_definition(text) for text in texts])

  def to_json(self) -> dict:
    """Returns the format as plain JSON values."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, values: Mapping) -> "PromptFormat":
    """Returns the format that `to_json` wrote; an unknown field is an error."""
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
      raise ValueError(f"Prompt format: unknown field '{unknown[0]}'; allowed: {sorted(known)}.")
    return cls(**values)


FORMATS = {
  prompt.name: prompt
  for prompt in (
    PromptFormat("qa"),
    PromptFormat("qa_blank_line", terminator="\n\n"),
    PromptFormat("newline", input="{input}\n", target="{target}"),
    PromptFormat("arrow", input="{input} ->"),
    PromptFormat("short", input="{input}>", target="{target}", terminator=""),
    PromptFormat("qa_eos", input="Q: {input} A:", terminator=""),
    PromptFormat("eos", input="{input}", target="{target}", terminator=""),
  )
}


def get(name: str) -> PromptFormat:
  """Returns the named format; an unknown name is an error that names the nearest."""
  if name not in FORMATS:
    near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
    raise ValueError(
      f"Unknown prompt format '{name}'. Did you mean '{near}'? Known: {', '.join(FORMATS)}."
    )
  return FORMATS[name]


def ends_early(ids: Sequence[int], end: Sequence[int]) -> bool:
  """Whether a target's ids hold the terminator's before their own end: an answer stops there."""
  size = len(end)
  return end[0] in ids[:-1] and any(
    ids[start : start + size] == end for start in range(len(ids) - size)
  )


def text_of(ids: Sequence[int], end: Sequence[int], vocabulary) -> str:
  """Returns the text of a target or an answer, without white space around it.

  It ends before its terminator, and before an EOS: decoding goes on behind one where the terminator
  is another, but the model has ended its text.

  Args:
    ids: of the target or answer.
    end: the terminator's ids.
    vocabulary: what they are ids of.
  """
  ids, end = list(ids), list(end)
  if ids[-len(end) :] == end:
    ids = ids[: -len(end)]
  if vocabulary.eos_id in ids:
    ids = ids[: ids.index(vocabulary.eos_id)]
  return vocabulary.decode(ids).strip()


def _continuations(vocabulary, texts: Sequence[str]) -> list[list[int]]:
  """Encodes texts as continuations of a prompt.

  SentencePiece puts a space in front of every text that it encodes; a target stands in the middle
  of a sequence and must not get it. So each text is encoded behind an anchor, whose ids are cut
  off. Where the tokenizer joins anchor and text, there is no boundary to cut at: the text is then
  encoded alone.
  """
  anchor, *anchored = vocabulary.encode_batch([_ANCHOR, *(_ANCHOR + text for text in texts)])
  cut = len(anchor)
  joined = [i for i, ids in enumerate(anchored) if ids[:cut] != anchor]
  alone = dict(zip(joined, vocabulary.encode_batch([texts[i] for i in joined]), strict=True))
  return [alone.get(i, ids[cut:]) for i, ids in enumerate(anchored)]
