"""Tasks from CLDR, through babel: names of languages, territories, currencies, dates, units."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterator

from hyperjax.tasks.lexical_task import LexicalTask, inverted

TRANSLATED = {
  "french": "fr", "german": "de", "spanish": "es", "italian": "it", "portuguese": "pt",
  "dutch": "nl", "swedish": "sv",
}


@functools.cache
def _locale(code: str):
  from babel import Locale

  return Locale(code)


# Languages that a small model may have heard of; CLDR names four times as many.
LANGUAGE_CODES = """
af am ar az be bg bn bo bs ca co cs cy da de el en eo es et eu fa fi fo fr fy ga gd gl gu ha haw he
hi hr hu hy id ig is it ja jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn mr ms mt my nb ne
nl pa pl ps pt qu ro ru sa sd sk sl sm so sq sr su sv sw ta te tg th tk tr tt ug uk ur uz vi xh yi
yo zu
""".split()


@functools.cache
def languages() -> dict[str, str]:
  """Code -> English name of the well-known languages."""
  names = _locale("en").languages
  return {code: names[code] for code in LANGUAGE_CODES if names[code].isalpha()}


@functools.cache
def territories() -> dict[str, str]:
  """Code -> English name of the territories whose name is one or two plain words."""
  names = sorted(_locale("en").territories.items())
  return {
    code: name for code, name in names
    if len(code) == 2 and code.isalpha() and code not in ("EU", "EZ", "UN", "XA", "XB", "ZZ")
    and len(name.split()) <= 2 and name.isascii() and name.replace(" ", "").isalpha()
  }


@functools.cache
def currencies() -> dict[str, str]:
  """Code -> English name of the currencies that some territory uses today."""
  from babel.numbers import get_territory_currencies

  used = {code for t in territories() for code in get_territory_currencies(t)}
  return {code: _locale("en").currencies[code] for code in sorted(used)}


def _language_names(code: str) -> Iterator[tuple]:
  for key, name in languages().items():
    if key in _locale(code).languages:
      yield name, _locale(code).languages[key]


def _territory_names(code: str) -> Iterator[tuple]:
  for key, name in territories().items():
    if key in _locale(code).territories:
      yield name, _locale(code).territories[key]


def _day(date: datetime.date, pattern: str, code: str) -> str:
  from babel.dates import format_date

  return format_date(date, pattern, locale=code)


def _dates(code: str) -> Iterator[tuple]:
  for offset in range(366):
    date = datetime.date(2024, 1, 1) + datetime.timedelta(days=offset)
    yield _day(date, "d MMMM", "en"), _day(date, "d MMMM", code)


UNITS = (
  "duration-day", "duration-week", "duration-month", "duration-year", "duration-hour",
  "duration-minute", "duration-second", "length-kilometer", "length-meter", "length-centimeter",
  "mass-kilogram", "mass-gram", "volume-liter", "length-mile", "length-foot",
)


def _units(source: tuple[str, str], target: tuple[str, str], units=UNITS) -> Iterator[tuple]:
  from babel.units import format_unit

  for unit in units:
    for number in (1, *range(2, 30), 40, 50, 100):
      pair = [
        format_unit(number, unit, length=length, locale=code)
        .replace("\xa0", " ").replace("\u202f", " ")
        for code, length in (source, target)
      ]
      # Where CLDR has no plural form for a number, babel falls back to the unit's key.
      if not any(unit in text for text in pair):
        yield tuple(pair)


def _official_languages() -> Iterator[tuple]:
  from babel.languages import get_official_languages

  for code, name in territories().items():
    official = get_official_languages(code)
    if len(official) == 1 and official[0] in languages():
      yield name, languages()[official[0]]


def _territory_currency(names: bool) -> Iterator[tuple]:
  from babel.numbers import get_territory_currencies

  for code, name in territories().items():
    used = get_territory_currencies(code)
    if len(used) == 1:
      yield name, currencies()[used[0]] if names else used[0]


def _endonyms() -> Iterator[tuple]:
  from babel import localedata

  available = set(localedata.locale_identifiers())
  for code, name in languages().items():
    own = code in available and _locale(code).languages.get(code)
    if own and own != name:
      yield name, own


def tasks() -> Iterator[LexicalTask]:
  """All tasks of this module; nothing is generated yet."""

  def task(name, generate, *tables):
    return LexicalTask(f"lexical.{name}", tables, generate)

  def named(kind, generate, to, back):
    for language in to:
      code = TRANSLATED[language]
      yield task(f"{kind}_names.to_{language}", functools.partial(generate, code),
                 f"babel.{kind}_names.{code}")
    for language in back:
      code = TRANSLATED[language]
      yield task(f"{kind}_names.from_{language}", inverted(functools.partial(generate, code)),
                 f"babel.{kind}_names.{code}")

  yield from named("territory", _territory_names, ("german", "italian"), ("french", "spanish"))
  yield from named("language", _language_names,
                   ("french", "german", "spanish", "italian", "portuguese", "dutch"),
                   ("french", "german", "spanish"))
  for language, code in TRANSLATED.items():
    forward = functools.partial(_dates, code)
    yield task(f"dates_abroad.to_{language}", forward, f"babel.dates.{code}")
    if code != "sv":
      forward = functools.partial(_units, ("en", "long"), (code, "long"))
      yield task(f"units_abroad.to_{language}", forward, f"babel.units.{code}")
  from_french = inverted(functools.partial(_dates, "fr"))
  yield task("dates_abroad.from_french", from_french, "babel.dates.fr")

  short = functools.partial(_units, ("en", "long"), ("en", "short"))
  yield task("unit_symbols.shorten", short, "babel.units.en_short")
  yield task("unit_symbols.expand", inverted(short), "babel.units.en_short")
  french = functools.partial(_units, ("fr", "long"), ("fr", "short"))
  yield task("unit_symbols.expand_french", inverted(french), "babel.units.fr_short")
  spanish = functools.partial(_units, ("es", "long"), ("es", "short"))
  yield task("unit_symbols.expand_spanish", inverted(spanish), "babel.units.es_short")
  narrow = functools.partial(_units, ("en", "long"), ("en", "narrow"))
  yield task("unit_symbols.narrow", narrow, "babel.units.en_narrow")

  def language_codes():
    return ((name, code) for code, name in languages().items())

  def territory_codes():
    return ((name, code) for code, name in territories().items())

  def currency_codes():
    return ((name, code) for code, name in currencies().items())

  yield task("language_codes.code", language_codes, "cldr.language_code")
  yield task("language_codes.name", inverted(language_codes), "cldr.language_code")
  yield task("language_names.to_own", _endonyms, "babel.endonyms")
  yield task("language_names.from_own", inverted(_endonyms), "babel.endonyms")
  yield task("territory_codes.code", territory_codes, "cldr.territory_code")
  yield task("territory_codes.name", inverted(territory_codes), "cldr.territory_code")
  yield task("territory_codes.lower", lambda: ((n, c.lower()) for n, c in territory_codes()),
             "cldr.territory_code")
  yield task("currencies.code", currency_codes, "cldr.currency_code")
  yield task("currencies.name", inverted(currency_codes), "cldr.currency_code")
  yield task("territory_facts.official_language", _official_languages, "cldr.official_language")
  yield task("territory_facts.currency_code", lambda: _territory_currency(False),
             "cldr.territory_currency")
  yield task("territory_facts.currency_name", lambda: _territory_currency(True),
             "cldr.territory_currency")
