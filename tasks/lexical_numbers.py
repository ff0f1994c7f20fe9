"""Tasks on numbers, dates and times: num2words, inflect, babel, and plain arithmetic."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterator

from hyperjax.tasks.lexical_task import Draws, LexicalTask, inverted

LANGUAGES = {
  "french": "fr", "german": "de", "spanish": "es", "italian": "it", "portuguese": "pt",
  "dutch": "nl", "swedish": "sv",
}


@functools.cache
def _inflect():
  import inflect

  return inflect.engine()


def _words(number: int, code: str = "en") -> str:
  if code == "en":
    return _inflect().number_to_words(number, andword="")
  from num2words import num2words

  return num2words(number, lang=code)


def _ordinal(number: int) -> str:
  return _inflect().ordinal(number)


def _ordinal_words(number: int) -> str:
  return _inflect().number_to_words(_inflect().ordinal(number), andword="")


def _over(numbers, source: Callable[[int], str], target: Callable[[int], str]):
  """A generator that renders each number twice."""
  return lambda: ((source(number), target(number)) for number in numbers)


def roman(number: int) -> str:
  """The Roman numeral of a number below 4000."""
  letters = ""
  for value, numeral in zip(
    (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
    "M CM D CD C XC L XL X IX V IV I".split(), strict=True,
  ):
    letters += numeral * (number // value)
    number %= value
  return letters


def _number_pairs(key: str, low: int, high: int, count: int) -> Iterator[tuple[int, int]]:
  draws = Draws(key)
  for _ in range(4 * count):
    a, b = low + draws.below(high - low), low + draws.below(high - low)
    if a != b:
      yield a, b


def _binary(key: str, template: str, rule, high: int = 50) -> Callable[[], Iterator[tuple]]:
  def generate():
    for a, b in _number_pairs(key, 1, high, 100):
      yield template.format(max(a, b), min(a, b)), str(rule(max(a, b), min(a, b)))

  return generate


def _compare(key: str, rule, count: int) -> Callable[[], Iterator[tuple]]:
  def generate():
    draws = Draws(key)
    for _ in range(300):
      members = [str(number) for number in draws.sample(range(1, 1000), count)]
      yield ", ".join(members), rule(members, key=int), members

  return generate


def _sequence(step: int, length: int = 3) -> Callable[[], Iterator[tuple]]:
  def generate():
    for start in range(1, 200):
      terms = [start + 200 * (step < 0) + step * i for i in range(length + 1)]
      yield ", ".join(map(str, terms[:-1])), str(terms[-1])

  return generate


def _dates(source: str, target: str, key: str) -> Callable[[], Iterator[tuple]]:
  """Random days of 1900 to 2050 in two CLDR patterns."""

  def generate():
    from babel.dates import format_date

    draws = Draws(key)
    for _ in range(300):
      date = datetime.date(1900, 1, 1) + datetime.timedelta(days=draws.below(55000))
      yield tuple(format_date(date, pattern, locale="en") for pattern in (source, target))

  return generate


def _times(source: str, target: str, shift: int = 0) -> Callable[[], Iterator[tuple]]:
  def generate():
    from babel.dates import format_time

    for minute in range(0, 24 * 60, 5):
      moments = (datetime.time(m // 60, m % 60) for m in (minute, (minute + shift) % 1440))
      yield tuple(
        format_time(moment, pattern, locale="en").replace("\u202f", " ")
        for moment, pattern in zip(moments, (source, target), strict=True)
      )

  return generate


def _formatted(key: str, code: str) -> Callable[[], Iterator[tuple]]:
  def generate():
    from babel.numbers import format_decimal

    draws = Draws(key)
    for digits in (4, 5, 6, 7) * 80:
      number = 10 ** (digits - 1) + draws.below(9 * 10 ** (digits - 1))
      yield str(number), format_decimal(number, locale=code)

  return generate


def _amounts(template: str) -> Callable[[], Iterator[tuple]]:
  def generate():
    draws = Draws(template)
    for _ in range(300):
      whole, part = draws.below(200), draws.below(100)
      yield f"{whole}.{part:02d}", template.format(whole=whole, part=part)

  return generate


def _parity() -> Iterator[tuple]:
  for number in range(1, 400):
    yield str(number), ("even", "odd")[number % 2], ["even", "odd"]


def tasks() -> Iterator[LexicalTask]:
  """All tasks of this module; nothing is generated yet."""

  def task(name, generate, *tables, has_options=False):
    return LexicalTask(f"lexical.{name}", tables, generate, has_options)

  below_200, hundreds = range(200), range(100, 1000, 3)
  yield task("cardinals.words", _over(below_200, str, _words), "inflect.cardinal")
  yield task("cardinals.digits", _over(below_200, _words, str), "inflect.cardinal")
  yield task("cardinals.words_hundreds", _over(hundreds, str, _words), "inflect.cardinal")
  yield task("cardinals.digits_hundreds", _over(hundreds, _words, str), "inflect.cardinal")
  yield task("cardinals.thousands", _over(range(1000, 100000, 1000), _words, str),
             "inflect.cardinal")

  to_200 = range(1, 200)
  yield task("ordinals.suffix", _over(to_200, str, _ordinal), "inflect.ordinal")
  yield task("ordinals.words", _over(range(1, 120), str, _ordinal_words), "inflect.ordinal")
  yield task("ordinals.to_number", _over(range(1, 120), _ordinal_words, str), "inflect.ordinal")
  yield task("ordinals.spelled", _over(range(1, 120), _ordinal, _ordinal_words), "inflect.ordinal")

  for language, code in LANGUAGES.items():
    table = f"num2words.{code}"
    foreign = functools.partial(_words, code=code)
    yield task(f"numbers_abroad.digits_to_{language}", _over(range(151), str, foreign), table)
    if code in ("fr", "de", "es", "it"):
      yield task(f"numbers_abroad.words_to_{language}", _over(range(151), _words, foreign), table)
    if code in ("fr", "es", "de"):
      yield task(f"numbers_abroad.from_{language}", _over(range(151), foreign, str), table)

  yield task("roman.numeral", _over(range(1, 151), str, roman), "rule.roman")
  yield task("roman.number", _over(range(1, 151), roman, str), "rule.roman")
  yield task("roman.chapter", _over(range(1, 101), lambda n: f"Chapter {roman(n)}",
                                    lambda n: f"Chapter {n}"), "rule.roman")

  yield task("arithmetic.add", _binary("add", "{} + {}", lambda a, b: a + b), "rule.add")
  yield task("arithmetic.subtract", _binary("sub", "{} - {}", lambda a, b: a - b), "rule.subtract")
  yield task("arithmetic.multiply", _binary("mul", "{} * {}", lambda a, b: a * b, 20),
             "rule.multiply")
  yield task("arithmetic.hidden_add", _binary("hid", "{} {}", lambda a, b: a + b, 20), "rule.add")
  yield task("arithmetic.add_words", lambda: (
    (f"{_words(a)} plus {_words(b)}", _words(a + b)) for a in range(1, 16) for b in range(1, 16)
  ), "rule.add")
  yield task("arithmetic.one_more", _over(to_200, str, lambda n: str(n + 1)), "rule.add_1")
  yield task("arithmetic.one_less", _over(to_200, str, lambda n: str(n - 1)), "rule.subtract_1")
  yield task("arithmetic.ten_more", _over(to_200, str, lambda n: str(n + 10)), "rule.add_10")
  yield task("arithmetic.double", _over(range(1, 101), str, lambda n: str(2 * n)), "rule.double")

  for name, rule, size in (("larger", max, 2), ("smaller", min, 2), ("largest_of_3", max, 3),
                           ("smallest_of_3", min, 3)):
    yield task(f"number_choice.{name}", _compare(name, rule, size), f"rule.number.{rule.__name__}",
               has_options=True)
  yield task("number_choice.parity", _parity, "rule.number.parity", has_options=True)

  for name, step in (("ones", 1), ("twos", 2), ("fives", 5), ("tens", 10), ("down", -1)):
    yield task(f"sequences.{name}", _sequence(step), f"rule.sequence.{name}")

  yield task("number_format.thousands", _formatted("en", "en"), "babel.decimal.en")
  yield task("number_format.plain", inverted(_formatted("en2", "en")), "babel.decimal.en")
  yield task("number_format.german", _formatted("de", "de"), "babel.decimal.de")
  yield task("number_format.percent", _over(range(1, 100), lambda n: f"0.{n:02d}",
                                            lambda n: f"{n}%"), "rule.percent")
  yield task("number_format.padded", _over(range(1, 200), str, "{:04d}".format), "rule.padded")
  yield task("number_format.dollars", _amounts("${whole}.{part:02d}"), "rule.dollars")
  yield task("number_format.cents", _amounts("{whole} dollars {part} cents"), "rule.cents")

  iso, long = "yyyy-MM-dd", "MMMM d, yyyy"
  for name, source, target in (
    ("long", iso, long), ("iso", long, iso), ("month", iso, "MMMM"), ("year", long, "yyyy"),
    ("short_month", long, "MMM d"), ("day", iso, "d"), ("european", "MM/dd/yyyy", "dd/MM/yyyy"),
    ("european_words", long, "d MMMM yyyy"),
  ):
    yield task(f"dates.{name}", _dates(source, target, name), f"babel.date_pattern.{name}")
  yield task("times.to_12_hours", _times("HH:mm", "h:mm a"), "rule.time.12")
  yield task("times.to_24_hours", _times("h:mm a", "HH:mm"), "rule.time.12")
  yield task("times.hour", _times("HH:mm", "H"), "rule.time.hour")
  yield task("times.minutes", _times("h:mm a", "m"), "rule.time.minutes")
  yield task("times.hour_later", _times("HH:mm", "HH:mm", 60), "rule.time.hour_later")
