"""Make up what everyday documents are full of: people, places, dates, amounts, codes.

One `Values` serves one document: it writes dates and money in one way throughout, and gives no
value twice where it can, so that what is asked about has one answer.
"""

import random
import re
import string
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from octavo.data.builders.words import NOUNS, name

EVERYDAY: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("everyday.toml").read_text(encoding="utf-8")
)
"""The tables, and the kinds of documents that are filled from them."""
TABLES: dict[str, list[str]] = {
    key: words.split("|") if "|" in words else words.split()
    for key, words in EVERYDAY["tables"].items()
}
MADE_UP = 0.25
"""How often a name is none that anybody has: nothing but the document can tell it."""
_TRIES = 30
"""Draws until a value is taken that was there before: small tables run out."""
_DATES = (
    *("{d} {month} {y}", "{month} {d}, {y}", "{y}-{m:02}-{d:02}", "{d:02}.{m:02}.{y}"),
    *("{d:02}/{m:02}/{y}", "{d} {short} {y}", "{short} {d}", "{d} {month}", "{d}.{m}.{y}"),
)
_TIMES = ("{h:02}:{m:02}", "{h:02}:{m:02}", "{h}.{m:02}", "{k}:{m:02} {half}", "{h:02}{m:02}")
_MONEY = (
    *("€{}", "{} €", "EUR {}", "£{}", "${}", "US${}", "{} USD", "CHF {}", "{} kr", "Rs. {}", "₹{}"),
    *("R$ {}", "¥{}", "{} zł", "{} Ft", "KSh {}", "R {}", "{} TL", "₱{}", "{} lei", "AED {}"),
)
_SHAPES: Mapping[str, tuple[str, ...]] = {
    "person": ("{first} {last}",) * 4 + ("Ms {last}", "Mr {last}", "Dr {last}", "^. {last}"),
    "street": ("{few} {way} Street", "{few} {way} Road", "{way} Lane {few}", "{few} {last} Way"),
    "company": ("{last} {trade}", "{last} & {last}", "{city} {trade}", "{trade} {last} Ltd"),
    "email": ("{login}@{host}", "{login}@{host}", "{login}@mail.{host}"),
    "url": ("https://{host}/{noun}", "http://{host}:80##/{noun}", "www.{host}/{noun}/{noun}"),
    "host": ("{noun}.example", "{noun}-{noun}.example", "{noun}.lan"),
    "file": (
        "{noun}.{suffix}",
        "{noun}_{noun}.{suffix}",
        "/{dir}/{noun}.{suffix}",
        "/{dir}/{noun}",
    ),
    "dir": ("etc", "var/log", "srv/data", "home/{login}", "opt/{noun}", "mnt/{noun}"),
    "suffix": ("txt", "csv", "json", "log", "pdf", "xlsx", "py", "yml", "db", "toml", "md"),
    "login": ("{first}", "{first}.{last}", "{first}##", "{noun}"),
    "package": ("{noun}", "{noun}{noun}", "py{noun}", "{noun}-{noun}"),
    "env": ("{noun}_{noun}", "{noun}_{noun}_{noun}"),
    "option": ("{noun}_{noun}", "{noun}", "--{noun}-{noun}"),
    "version": ("#.#", "#.##", "#.#.#", "#.##.#", "v#.#.##", "##.#"),
    "ip": ("10.{byte}.{byte}.{byte}", "192.168.{byte}.{byte}", "172.16.{byte}.{byte}"),
    "code": ("^^-####", "^######", "####/##", "^^^ ###", "##-^-###", "^^######", "^-##.###"),
    "plate": ("^^ ## ^^^", "^^^-###", "#### ^^^", "^-^^ ###", "^^-###-^"),
    "phone": ("+## ## #######", "0#### ######", "555-01##", "(###) 555-####", "+### ### ### ###"),
    "gate": ("^#", "^##", "#^", "##^", "^^#"),
    "digits": ("###", "####", "#####", "######", "#######", "########"),
    "lap": ("#:{minute}.##", "##.## s", "#:{minute}:{minute}", "##:{minute}"),
    "size": ("{some} cm", "{some} mm", "{few} x {few} cm", "#.# m", "{few} x {few} x {few} mm"),
    "weight": ("{few} kg", "#.# kg", "{some} g", "{few}.# kg", "{few} lb"),
    "temp": ("{few} °C", "-# °C", "{few}.# degrees", "{some} °F", "{few} degrees"),
    "duration": ("{few} {span}", "{few} {span}", "# 1/2 hours"),
    "span": ("seconds", "minutes", "hours", "days", "weeks", "months", "years"),
    "percent": ("#%", "{few}%", "#.#%", "{few}.#%", "{few} per cent"),
    "portion": ("{some} g", "{some} ml", "{few} cups", "{few} spoons", "{few} kg"),
    "dose": ("{some} mg", "#.# ml", "{few} tablets", "{few} drops", "{some} units"),
    "often": ("once a day", "twice a day", "every # hours", "# times a day", "weekly", "at night"),
    "millis": ("{some} ms", "#.# s", "{few}.## s"),
    "status": ("400", "401", "403", "404", "409", "429", "500", "502", "503", "504"),
    "licence": ("MIT", "Apache-2.0", "BSD-3-Clause", "GPL-3.0", "MPL-2.0", "ISC", "EUPL-1.2"),
    "ordinal": ("first", "second", "third", "fifth", "tenth", "15th", "20th", "last working"),
    "drug": ("{made}in", "{made}ol", "{made}ide", "{made}one"),
}
"""Values by their shapes: `{first}` is another value, `#` a digit and `^` a letter."""
_LOWER = {"login", "file", "url", "host", "email", "package", "option", "drug", "dir"}
_PIECE = re.compile(r"\{(\w+)\}|(#+)|(\^+)")


class Values:
    """Draws the values of one document."""

    def __init__(self, rng: random.Random) -> None:
        """Choose how this document writes dates, times and money."""
        self.rng = rng
        self._seen: set[str] = set()
        self._day, self._hour = rng.choice(_DATES), rng.choice(_TIMES)
        self._money, self._has_cents = rng.choice(_MONEY), rng.random() < 0.6
        self._comma = rng.choice((",", ",", "", " "))

    def draw(self, kind: str) -> str:
        """Return a value of a kind, one that was not there before if that can be."""
        found = self._make(kind)
        for _ in range(_TRIES):
            if found not in self._seen:
                break
            found = self._make(kind)
        self._seen.add(found)
        return found

    def clock(self, minutes: int) -> str:
        """Return a time of day, in minutes after midnight, as this document writes it."""
        hour, minute = divmod(minutes % 1440, 60)
        half = "am" if hour < 12 else "pm"
        return self._hour.format(h=hour, m=minute, k=(hour + 11) % 12 + 1, half=half)

    def _make(self, kind: str) -> str:
        if kind in _SHAPES:
            made = _PIECE.sub(self._piece, self.rng.choice(_SHAPES[kind]))
            made = made.lower().replace(" ", "-") if kind in _LOWER else made
            return made.upper() if kind == "env" else made
        if kind in _MAKERS:
            return _MAKERS[kind](self)
        if kind in ("first", "last", "city") and self.rng.random() < MADE_UP:
            return name(self.rng)
        return self.rng.choice(TABLES[kind])

    def _piece(self, found: re.Match[str]) -> str:
        kind, numbers, letters = found.groups()
        if kind:
            return self._make(kind)
        if letters:
            return "".join(self.rng.choices(string.ascii_uppercase, k=len(letters)))
        return str(self.rng.randrange(10 ** (len(numbers) - 1), 10 ** len(numbers)))

    def _number(self, least: int, most: int) -> str:
        """Return a number whose logarithm is uniform, as this document writes it."""
        drawn = min(most, int(least * ((most + 1) / least) ** self.rng.random()))
        return f"{drawn:,}".replace(",", self._comma)

    def _amount(self) -> str:
        cents = f".{self.rng.randrange(100):02}" if self._has_cents else ""
        return self._money.format(self._number(2, 400_000) + cents)

    def _date(self) -> str:
        month = self.rng.randrange(12)
        named = TABLES["month"][month]
        year, day = self.rng.randint(1988, 2031), self.rng.randint(1, 28)
        return self._day.format(d=day, m=month + 1, y=year, month=named, short=named[:3])


_MAKERS: Mapping[str, Callable[[Values], str]] = {
    "amount": Values._amount,
    "date": Values._date,
    "time": lambda values: values.clock(values.rng.randrange(1440)),
    "count": lambda values: values._number(2, 20_000),
    "few": lambda values: str(values.rng.randint(2, 99)),
    "some": lambda values: str(values.rng.randint(2, 190) * 5),
    "byte": lambda values: str(values.rng.randrange(256)),
    "minute": lambda values: f"{values.rng.randrange(60):02}",
    "year": lambda values: str(values.rng.randint(1890, 2031)),
    "hex": lambda values: f"{values.rng.getrandbits(32):08x}",
    "noun": lambda values: values.rng.choice(NOUNS),
    "made": lambda values: name(values.rng),
    "way": lambda values: values.rng.choice(TABLES["street"]),
}
