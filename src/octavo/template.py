"""Render chat templates in a sandbox, and keep account of who wrote each character of the result.

A template comes with a checkpoint and the messages from users. Every string that the template's
source holds is a `Written` that says so; whatever loses its account counts as the user's, so that
nothing a user wrote can become a control token. Steps and sizes are bounded: a template cannot
hang, or fill the memory.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, SupportsIndex

from jinja2 import Template, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from octavo.errors import TemplateError

USER, AUTHOR, PLACE = "012"
"""Who wrote a character: a user, the template's author, or we, to hold the place of something."""
MAX_STEPS = 1_000_000
"""A template for a thousand messages takes about thirty thousand."""
MAX_CHARS = 1 << 27
MAX_SOURCE_CHARS = 1 << 20
_MAX_NUMBER, _MAX_FACTOR = 1 << 20, 1 << 10
_steps: ContextVar[list[int]] = ContextVar("steps")


class Written(str):
    """A string that knows who wrote each of its characters; cut and joined, it still does."""

    writers: str

    def __new__(cls, text: str, writers: str = USER) -> "Written":
        """Take one letter for every character, or one for all of them."""
        made = super().__new__(cls, text)
        made.writers = writers if len(writers) == len(text) else writers * len(text)
        return made

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> "Written":
        return Written(super().__getitem__(key), self.writers[key])

    def __add__(self, other: str) -> "Written":
        return joined([self, other])

    def __radd__(self, other: str) -> "Written":
        return joined([other, self])

    def join(self, parts: Iterable[str], /) -> "Written":
        """Join, with this between."""
        return joined([one for part in parts for one in (self, part)][1:])

    def lstrip(self, chars: str | None = None, /) -> "Written":
        """Cut off what is on the left."""
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Written":
        """Cut off what is on the right."""
        return self[: len(super().rstrip(chars))]

    def strip(self, chars: str | None = None, /) -> "Written":
        """Cut off what is on either side."""
        return self.lstrip(chars).rstrip(chars)

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Cut into pieces."""
        return self._found(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Cut into pieces, from the right."""
        return self._found(super().rsplit(sep, maxsplit), len(sep or ""))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """Put `new` where `old` is."""
        return joined([new]).join(self.split(old, count)) if old else self

    def _found(self, parts: list[str], gap: int) -> list[str]:
        """Return the pieces of a split with their writers; `gap` characters stood between."""
        found, at = [], 0
        for part in parts:
            at = at if gap else self.find(part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + gap
        return list(found)


def writers_of(text: str) -> str:
    """Return who wrote each character."""
    return text.writers if isinstance(text, Written) else USER * len(text)


def joined(parts: Iterable[str]) -> Written:
    """Join strings that know their writers, or not."""
    parts = list(parts)
    return Written(_count("".join(parts)), "".join(map(writers_of, parts)))


def authored(value: Any) -> Any:
    """Return a value whose strings all count as the author's."""
    if isinstance(value, str):
        return Written(value, AUTHOR)
    if isinstance(value, Mapping):
        return {name: authored(item) for name, item in value.items()}
    return [authored(item) for item in value] if isinstance(value, list | tuple) else value


def render(source: str, values: Mapping[str, Any]) -> Written:
    """Render a template; raises `TemplateError` when it refuses, fails or never ends."""
    token = _steps.set([0])
    try:
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(f"it has {len(source):,} characters")
        return joined([_compiled(source).render(**values)])
    except Exception as error:  # a template may do anything wrong, in any way
        raise TemplateError(
            f"the decoder's chat template cannot render this ({type(error).__name__}: "
            f"{str(error)[:300]}); change the messages, or give the tokenizer another template"
        ) from error
    finally:
        _steps.reset(token)


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    bounded = {name: _bounded(function) for name, function in sandbox.filters.items()}
    own = {"written": _written, "counted": _counted, "concatenated": _concatenated}
    sandbox.filters = {**bounded, **own, "join": _join, "tojson": _to_json}
    sandbox.globals.update(raise_exception=_refuse, strftime_now=_now)
    code = sandbox.compile(_Marked().visit(sandbox.parse(source)))
    return Template.from_code(sandbox, code, sandbox.make_globals(None))


class _Generation(Extension):
    """Reads `{% generation %}`, which marks what an assistant says, and leaves it out."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Marked(NodeTransformer):
    """Makes every string of a template's source the author's, and counts loops."""

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        return _filtered(node, "written") if isinstance(node.value, str) else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return _filtered(nodes.Const(node.data), "written")

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=1), "concatenated")

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted")
        return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=1)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with bounds, and output that knows its writers."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    concat = staticmethod(joined)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator != "+":
            _check_size(left, right, limit=_MAX_FACTOR if operator == "**" else _MAX_NUMBER)
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        return _count(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_size(*args, *kwargs.values())
        if getattr(__obj, "__name__", "") in ("format", "format_map"):
            _check_format(getattr(getattr(__obj, "__wrapped__", __obj), "__self__", ""))
        return _count(super().call(__context, __obj, *args, **kwargs))


def _count(value: Any) -> Any:
    """Count one step, more for long values; refuse what is endless or immense."""
    size = len(value) if isinstance(value, str | list | tuple | dict) else 0
    if steps := _steps.get(None):
        steps[0] += 1 + size // 1024
        if steps[0] > MAX_STEPS or size > MAX_CHARS:
            raise TemplateError("it takes too many steps, or makes too long a text")
    return value


def _check_size(*values: Any, limit: int = _MAX_NUMBER) -> None:
    """Refuse a number that could make an immense text, list or number."""
    for value in values:
        if isinstance(value, tuple):
            _check_size(*value, limit=limit)
        elif isinstance(value, int) and abs(value) > limit:
            raise TemplateError(f"the number {str(value)[:40]} is too large")


def _check_format(text: object) -> None:
    if re.search(r"[%{:][^%{}]*\d{6}", str(text)):
        raise TemplateError(f"the format {str(text)[:40]!r} is too wide")


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_size(*args[1:], *kwargs.values())
        if function is do_format:
            _check_format(args[0])
        return _count(function(*args, **kwargs))

    return checked


@pass_context  # what depends on a context is not worked out beforehand
def _written(context: Any, text: str) -> Written:
    return Written(_count(text), AUTHOR)


@pass_context
def _concatenated(context: Any, values: list[Any]) -> Written:
    return joined([str(value) for value in values])


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    return map(_count, values)


def _join(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = [value[attribute] for value in values]
    return joined([d]).join([str(value) for value in values])


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    _check_size(*options.values())
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _refuse(message: str) -> None:
    raise TemplateError(message)
