"""Tasks on short sentences made from templates: finding a part, rewriting, judging."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hyperjax.tasks import lexical_words as words
from hyperjax.tasks.lexical_task import Draws, LexicalTask

COUNTRIES = """
Argentina Australia Austria Belgium Brazil Canada Chile China Cuba Denmark Egypt England Finland
France Germany Greece Hungary India Iran Iraq Ireland Israel Italy Japan Kenya Mexico Morocco Norway
Peru Poland Portugal Russia Spain Sweden Turkey Vietnam
""".split()
# Consonant initials and plain plurals only, so that the templates stay grammatical.
PROFESSIONS = [word for word in words.CATEGORIES["profession"] if word[0] not in "aeiou"]
THINGS = [word for word in words.OBJECTS if word[0] not in "aeiou"]
FRUITS = "apples bananas cherries lemons limes mangos melons peaches pears plums".split()
FEELINGS = """
angry busy calm clever cold friendly funny gentle happy hungry kind late lazy lonely lucky mad old
poor proud quick quiet rich rude sad safe shy sick silly slow small smart strong tall thin tidy
tired tough weak young
""".split()
PRONOUNS = (("I", "am"), ("you", "are"), ("he", "is"), ("she", "is"), ("we", "are"),
            ("they", "are"))
COUNT = 320


def _filled(key: str, source: str, target: str) -> Callable[[], Iterator[tuple]]:
  """Draws the slots of both templates: {name} {job} {country} {color} {thing} {number} {fruit}."""

  def generate():
    draws = Draws(key)
    for _ in range(COUNT):
      slots = {
        "name": draws.choice(words.FIRST_NAMES), "job": draws.choice(PROFESSIONS),
        "country": draws.choice(COUNTRIES), "color": draws.choice(words.CATEGORIES["color"]),
        "thing": draws.choice(THINGS), "number": 2 + draws.below(18),
        "fruit": draws.choice(FRUITS), "adjective": draws.choice(FEELINGS),
        "other": draws.choice(words.FIRST_NAMES),
      }
      if slots["name"] != slots["other"]:
        yield source.format(**slots), target.format(**slots)

  return generate


def _about(source: str, target: str, subjects=PRONOUNS) -> Callable[[], Iterator[tuple]]:
  """Every subject with every feeling; `{Subject}` and `{Is}` begin a sentence."""

  def generate():
    for subject, verb in subjects:
      slots = {"subject": subject, "is": verb, "Is": verb.capitalize(),
               "Subject": subject[0].upper() + subject[1:]}
      for feeling in FEELINGS:
        yield tuple(text.format(feeling=feeling, **slots) for text in (source, target))

  return generate


def _judged(template: str) -> Callable[[], Iterator[tuple]]:
  def generate():
    draws = Draws(template)
    for word in (*words.POSITIVE, *words.NEGATIVE):
      for _ in range(1 + 3 * ("{thing}" in template)):
        answer = "positive" if word in words.POSITIVE else "negative"
        text = template.format(word=word, thing=draws.choice(THINGS))
        yield text, answer, ["positive", "negative"]

  return generate


def tasks() -> Iterator[LexicalTask]:
  """All tasks of this module; nothing is generated yet."""

  def task(name, generate, has_options=False):
    return LexicalTask(f"lexical.{name}", (f"rule.{name}",), generate, has_options)

  person = "{name} is a {job} from {country}."
  for name, source, target in (
    ("name", person, "{name}"), ("job", person, "{job}"), ("country", person, "{country}"),
    ("color", "the {color} {thing}", "{color}"),
    ("number", "{name} has {number} {fruit}.", "{number}"),
    ("fruit", "{name} has {number} {fruit}.", "{fruit}"),
    ("giver", "{name} gave {other} a {thing}.", "{name}"),
    ("receiver", "{name} gave {other} a {thing}.", "{other}"),
  ):
    yield task(f"extraction.{name}", _filled(name, source, target))
  for name, generate in (
    ("negation", _about("{Subject} {is} {feeling}.", "{Subject} {is} not {feeling}.")),
    ("question", _about("{Subject} {is} {feeling}.", "{Is} {subject} {feeling}?", PRONOUNS[1:])),
    ("answer", _about("{Is} {subject} {feeling}?", "Yes, {subject} {is}.", PRONOUNS[1:])),
    ("very", _about("{Subject} {is} {feeling}.", "{Subject} {is} very {feeling}.")),
    ("likes", _filled("likes", "{name} likes {fruit}.", "Does {name} like {fruit}?")),
    ("email", _filled("email", "{name} from {country}", "{name}@{country}")),
    ("swap", _filled("swap", "{name} and {other}", "{other} and {name}")),
    ("passive", _filled("passive", "{name} has a {thing}.", "The {thing} belongs to {name}.")),
  ):
    yield task(f"rewriting.{name}", generate)
  yield task("sentiment.word", _judged("{word}"), has_options=True)
  yield task("sentiment.thing", _judged("The {thing} is {word}."), has_options=True)
  yield task("sentiment.exclamation", _judged("How {word}!"), has_options=True)
