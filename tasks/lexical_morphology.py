"""Tasks on English word forms: lemminflect's and inflect's tables, and a few spelling rules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from hyperjax.tasks import lexical_words as words
from hyperjax.tasks.lexical_task import Draws, LexicalTask, mapped


@functools.cache
def _inflected(word: str, tag: str) -> str | None:
  """The word's form by Penn tag, where the lexicon has exactly one or a preferred first one."""
  import lemminflect

  forms = lemminflect.getInflection(word, tag=tag, inflect_oov=False)
  return forms[0] if forms else None


@functools.cache
def _engine():
  import inflect

  return inflect.engine()


@functools.cache
def _plural(noun: str) -> str | None:
  plural = _engine().plural_noun(noun)
  return plural if plural != noun else None


def _forms(items, source: str, target: str, render=("{}", "{}")) -> Callable[[], Iterator[tuple]]:
  """Examples from one form of each word to another; "" is the base form."""

  def form(word, tag):
    return _inflected(word, tag) if tag else word

  def generate():
    for word in items:
      pair = form(word, source), form(word, target)
      if all(pair):
        yield tuple(text.format(word) for text, word in zip(render, pair, strict=True))

  return generate


def _plurals(source: str, target: str, backward: bool = False) -> Callable[[], Iterator[tuple]]:
  def generate():
    for noun in words.NOUNS:
      plural = _plural(noun)
      if plural:
        a, b = (plural, noun) if backward else (noun, plural)
        yield source.format(a), target.format(b)

  return generate


def adverb(adjective: str) -> str:
  """The adverb in -ly by the usual spelling rules."""
  if adjective.endswith("y") and len(adjective) > 3:
    return adjective[:-1] + "ily"
  if adjective.endswith("le"):
    return adjective[:-1] + "y"
  if adjective == "true":
    return "truly"
  if adjective.endswith("ll"):
    return adjective + "y"
  if adjective.endswith("ic") and adjective != "public":
    return adjective + "ally"
  return adjective + "ly"


def _agent(verb: str) -> str:
  """bake -> baker, run -> runner: the stem is what the present participle shows."""
  return _inflected(verb, "VBG").removesuffix("ing") + "er"


def _ness(adjective: str) -> str | None:
  if adjective in words.NO_NESS:
    return None
  if adjective.endswith("y") and adjective[-2] not in "aeiou" and adjective not in ("dry", "shy"):
    return adjective[:-1] + "iness"
  return adjective + "ness"


def _article(noun: str) -> str:
  return _engine().a(noun)


def _phrases(key: str) -> list[str]:
  draws = Draws(key)
  pairs = {f"{draws.choice(words.ADJECTIVES)} {draws.choice(words.NOUNS)}" for _ in range(300)}
  return sorted(pairs)


def tasks() -> Iterator[LexicalTask]:
  """All tasks of this module; nothing is generated yet."""

  def task(name, generate, *tables):
    return LexicalTask(f"lexical.{name}", tables, generate)

  for name, generate in (
    ("plural", _plurals("{}", "{}")), ("singular", _plurals("{}", "{}", True)),
    ("two", _plurals("one {}", "two {}")), ("these", _plurals("this {}", "these {}")),
    ("one_of_many", _plurals("many {}", "one {}", True)),
  ):
    yield task(f"plurals.{name}", generate, "inflect.plural")

  for name, source, target, render in (
    ("past", "", "VBD", ("{}", "{}")),
    ("participle", "", "VBN", ("{}", "have {}")),
    ("from_gerund", "VBG", "VBD", ("{}", "{}")),
    ("from_third_person", "VBZ", "VBD", ("she {}", "she {}")),
    ("to_base", "VBD", "", ("{}", "{}")),
  ):
    yield task(f"verb_past.{name}", _forms(words.VERBS, source, target, render), "lemminflect.past")
  for name, source, target, render in (
    ("gerund", "", "VBG", ("{}", "{}")),
    ("third_person", "", "VBZ", ("{}", "{}")),
    ("gerund_to_base", "VBG", "", ("{}", "{}")),
    ("third_person_to_base", "VBZ", "", ("{}", "{}")),
    ("third_person_to_gerund", "VBZ", "VBG", ("{}", "{}")),
    ("he_does", "", "VBZ", ("I {}", "he {}")),
    ("they_are", "", "VBG", ("they {}", "they are {}")),
    ("infinitive", "VBG", "", ("{}", "to {}")),
  ):
    yield task(f"verb_forms.{name}", _forms(words.VERBS, source, target, render),
               "lemminflect.present")
  for name, source, target, render in (
    ("comparative", "", "JJR", ("{}", "{}")), ("superlative", "", "JJS", ("{}", "{}")),
    ("comparative_to_superlative", "JJR", "JJS", ("{}", "{}")),
    ("comparative_to_base", "JJR", "", ("{}", "{}")),
    ("superlative_to_base", "JJS", "", ("the {}", "{}")),
    ("than", "", "JJR", ("{}", "{} than")),
  ):
    yield task(f"degrees.{name}", _forms(words.ADJECTIVES, source, target, render),
               "lemminflect.degree")

  bases = sorted(set(words.ADVERB_BASES))
  yield task("derivation.adverb", mapped(bases, adverb), "rule.adverb")
  yield task("derivation.adverb_to_adjective", lambda: ((adverb(a), a) for a in bases),
             "rule.adverb")
  yield task("derivation.agent", mapped(words.AGENT_VERBS, _agent), "rule.agent")
  yield task("derivation.agent_to_verb", lambda: (
    (_agent(verb), verb) for verb in words.AGENT_VERBS
  ), "rule.agent")
  yield task("derivation.ness", mapped(words.ADJECTIVES, _ness), "rule.ness")

  yield task("noun_phrases.article", mapped(words.NOUNS, _article), "inflect.article")
  yield task("noun_phrases.article_phrase", mapped(_phrases("article"), _article),
             "inflect.article")
  yield task("noun_phrases.possessive", mapped(words.NOUNS, "{}'s".format), "rule.possessive")
  yield task("noun_phrases.my", mapped(words.NOUNS, "my {}".format), "rule.my")
  yield task("noun_phrases.very", mapped(_phrases("very"), "a very {}".format), "rule.very")
  yield task("noun_phrases.whose", lambda: (
    (f"the {noun} of {name}", f"{name}'s {noun}")
    for name, noun in zip(words.FIRST_NAMES * 5, words.NOUNS, strict=False)
  ), "rule.whose")
