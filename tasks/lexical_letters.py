"""Tasks on the letters and the spelling of words: rules only, no table of facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hyperjax.tasks import lexical_words as words
from hyperjax.tasks.lexical_task import LexicalTask, mapped

_ALL = sorted({w for w in (*words.NOUNS, *words.VERBS, *words.ADJECTIVES) if 3 <= len(w) <= 8})
# "wolf" -> "WOLF" and "wolf" -> "(wolf)" are one pair once case and punctuation are dropped, so the
# held-out changes of case have every third word for themselves.
CASE_WORDS = _ALL[::3]
WORDS = sorted(set(_ALL) - set(CASE_WORDS))
CASE_PHRASES = [
  f"{adjective} {noun}"
  for adjective, noun in zip(words.ADJECTIVES, words.NOUNS[::-1], strict=False)
]
SHORT = [word for word in WORDS if len(word) <= 5]
VOWELS = "aeiou"


def _yes_no(rule: Callable[[str], bool]) -> Callable[[], Iterator[tuple]]:
  """As many yes as no, so that the more frequent answer is worth nothing."""

  def generate():
    yes = [word for word in WORDS if rule(word)]
    no = [word for word in WORDS if not rule(word)]
    size = min(len(yes), len(no))
    for answer, group in (("yes", yes), ("no", no)):
      # An even stride through the sorted list, so that all initials occur.
      for i in range(size):
        yield group[i * len(group) // size], answer, ["yes", "no"]

  return generate


def tasks() -> Iterator[LexicalTask]:
  """All tasks of this module; nothing is generated yet."""

  def rules(family: str, items: list[str], **named) -> Iterator[LexicalTask]:
    for name, rule in named.items():
      yield LexicalTask(f"lexical.{family}.{name}", (f"rule.{family}.{name}",), mapped(items, rule))

  yield from rules(
    "letter_case", CASE_WORDS,
    upper=str.upper, capitalized=str.capitalize,
  )
  yield from rules(
    "letter_case", CASE_PHRASES, title=str.title, capitalized_phrase=str.capitalize,
  )
  yield LexicalTask("lexical.letter_case.lower", ("rule.letter_case.lower",),
                    lambda: ((w.upper(), w) for w in CASE_WORDS))
  yield from rules(
    "first_letters", WORDS, first=lambda w: w[0], first_upper=lambda w: w[0].upper(),
    first_two=lambda w: w[:2], first_three=lambda w: w[:3],
  )
  yield from rules("first_letters", words.COMPOUNDS,
                   initials=lambda c: "".join(w[0].upper() for w in c.split()))
  yield from rules(
    "last_letters", WORDS, last=lambda w: w[-1], last_two=lambda w: w[-2:],
    last_three=lambda w: w[-3:], last_upper=lambda w: w[-1].upper(),
  )
  yield from rules("inner_letters", WORDS, second=lambda w: w[1], third=lambda w: w[2],
                   first_and_last=lambda w: f"{w[0]} {w[-1]}")
  yield from rules(
    "letter_removal", SHORT, without_first=lambda w: w[1:], without_last=lambda w: w[:-1],
    without_vowels=lambda w: "".join(c for c in w if c not in VOWELS) or None,
    reversed=lambda w: w[::-1],
  )
  yield from rules(
    "spelling", SHORT, spaced=" ".join, hyphenated="-".join, dotted=".".join,
    upper_spaced=lambda w: " ".join(w.upper()),
  )
  yield LexicalTask("lexical.spelling.joined", ("rule.spelling.spaced",),
                    lambda: ((" ".join(w), w) for w in SHORT))
  yield from rules("letter_counts", WORDS, length=lambda w: str(len(w)),
                   vowels=lambda w: str(sum(c in VOWELS for c in w)))
  for name, rule in (
    ("starts_with_vowel", lambda w: w[0] in VOWELS), ("ends_with_e", lambda w: w[-1] == "e"),
    ("longer_than_five", lambda w: len(w) > 5),
  ):
    yield LexicalTask(f"lexical.letter_counts.{name}", (f"rule.letter_counts.{name}",),
                      _yes_no(rule), has_options=True)
  yield from rules(
    "affixes", WORDS, quoted='"{}"'.format, bracketed="({})".format, excited="{}!".format,
    prefix_re="re-{}".format, suffix_like="{}-like".format, twice="{0} {0}".format,
    numbered="1. {}".format, tagged="#{}".format,
  )
  yield from rules(
    "compounds", words.COMPOUNDS, hyphen=lambda c: c.replace(" ", "-"),
    underscore=lambda c: c.replace(" ", "_"), joined=lambda c: c.replace(" ", ""),
    swapped=lambda c: " ".join(c.split()[::-1]), first_word=lambda c: c.split()[0],
    slash=lambda c: c.replace(" ", " / "),
  )
