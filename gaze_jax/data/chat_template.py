"""Chat templates (Jinja) in the sandbox that transformers renders them in.

A template is a program of whoever made the checkpoint, so it is bounded too:
the steps of its loops, and the length of what it writes.
"""

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import ext
from jinja2 import nodes
from jinja2 import sandbox
from jinja2 import visitor

from gaze_jax.data import samples

# Bounds of one rendering: steps of all loops, and characters.
_STEPS, _LENGTH = 1_000_000, 4_000_000
_POWER = 1000  # the largest base and exponent
_COUNTER = "gaze_steps"  # the variable that counts steps


class TemplateError(samples.DataError):
  """A template that can't be read, or that refuses; names its file."""


class Template:
  """A chat template.

  Args:
    text: the template.
    name: what errors call it: its file.
    variables: `bos_token` and so on.

  Raises:
    TemplateError: it is no Jinja.
  """

  def __init__(self, text: str, name: str, variables: Mapping[str, str]):
    self.text, self._name, self._variables = text, name, dict(variables)
    try:
      self._compiled = _ENVIRONMENT.from_string(text)
    except (jinja2.TemplateError, RecursionError) as error:
      line = getattr(error, "lineno", None)
      where = f", line {line}" if line else ""
      raise TemplateError(
        f"{name}{where}: the chat template can't be read: {_describe(error)}"
      ) from None

  def render(self, messages: Sequence[Mapping[str, Any]], ask: bool) -> str:
    """The text of a conversation.

    Args:
      messages: each with a "role" and a "content", as the template wants it;
        of plain JSON.
      ask: whether an answer is to follow (`add_generation_prompt`).

    Raises:
      TemplateError: the template refuses it, fails, or does not end.
    """
    pieces, length = [], 0
    try:
      for piece in self._compiled.generate(
        self._variables,
        messages=messages,
        tools=None,
        documents=None,
        add_generation_prompt=ask,
        **{_COUNTER: _Steps()},
      ):
        pieces.append(piece)
        length += len(piece)
        _check_length(length)
    except Exception as error:  # whatever an expression of it raises
      roles = ", ".join(m["role"] for m in messages) or "nothing"
      raise TemplateError(
        f"{self._name}: the chat template does not take this conversation"
        f" ({roles}): {_describe(error)}"
      ) from None
    return "".join(pieces)

  def literals(self) -> list[str]:
    """Every text that is written out in the template."""
    tree = _ENVIRONMENT.parse(self.text)
    data = [node.data for node in tree.find_all(nodes.TemplateData)]
    values = [node.value for node in tree.find_all(nodes.Const)]
    return data + [value for value in values if isinstance(value, str)]


def _describe(error: Exception) -> str:
  """What went wrong, in one line."""
  message = getattr(error, "message", None) or str(error)
  message = " ".join(message.split()) or type(error).__name__
  if isinstance(error, (jinja2.TemplateError, _TooMuch)):
    return message
  return f"{type(error).__name__}: {message}"


class _TooMuch(Exception):
  """A template that writes or repeats too much."""


def _check_length(length: int) -> None:
  if length > _LENGTH:
    raise _TooMuch(f"it writes more than {_LENGTH} characters")


class _Environment(sandbox.ImmutableSandboxedEnvironment):
  """The sandbox, with bounds on loops and on texts that grow."""

  intercepted_binops = frozenset(["*", "**"])

  def _parse(self, source: str, name: Any, filename: Any) -> nodes.Template:
    return _Bounds().visit(super()._parse(source, name, filename))

  def call_binop(self, context: Any, operator: str, left: Any, right: Any):
    if operator == "*":
      for text, times in ((left, right), (right, left)):
        if isinstance(text, (str, list, tuple)) and isinstance(times, int):
          _check_length(len(text) * times)
    elif operator == "**" and max(abs(left), abs(right)) > _POWER:
      raise _TooMuch(f"{left} ** {right} may be too large a number")
    return _bounded_text(super().call_binop(context, operator, left, right))


class _Bounds(visitor.NodeTransformer):
  """Counts the steps of loops, and the length of what is kept."""

  def visit_For(self, node: nodes.For) -> nodes.For:
    self.generic_visit(node)
    node.iter = _filtered(node.iter, "bounded_steps")
    return node

  def visit_Assign(self, node: nodes.Assign) -> nodes.Assign:
    self.generic_visit(node)
    node.node = _filtered(node.node, "bounded_text")
    return node

  def visit_Call(self, node: nodes.Call) -> nodes.Call:
    self.generic_visit(node)
    node.args = [_filtered(arg, "bounded_text") for arg in node.args]
    return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
  return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Steps:
  """Counts the steps of all loops of one rendering."""

  def __init__(self):
    self._count = 0

  def add(self, steps: int) -> None:
    self._count += steps
    if self._count > _STEPS:
      raise _TooMuch(f"its loops take more than {_STEPS} steps")


@jinja2.pass_context
def _bounded_steps(context: Any, items: Iterable[Any]) -> Iterable[Any]:
  if hasattr(items, "__len__"):  # it keeps its length, which loops look at
    context[_COUNTER].add(len(items))
    return items
  return _counted(context[_COUNTER], items)


def _counted(steps: _Steps, items: Iterable[Any]) -> Iterator[Any]:
  for item in items:
    steps.add(1)
    yield item


def _bounded_text(value: Any) -> Any:
  if isinstance(value, (str, list, tuple)):
    _check_length(len(value))
  return value


class _Generation(ext.Extension):
  """`{% generation %}` marks what an assistant writes; here it does nothing."""

  tags = {"generation"}

  def parse(self, parser: Any) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.Scope(body, lineno=line)


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _raise(message: str) -> None:
  raise jinja2.TemplateError(message)


def _environment() -> _Environment:
  out = _Environment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, ext.loopcontrols],
  )
  out.filters |= dict(
    tojson=_to_json, bounded_steps=_bounded_steps, bounded_text=_bounded_text
  )
  out.globals |= dict(
    raise_exception=_raise,
    strftime_now=lambda form: datetime.datetime.now().strftime(form),
  )
  return out


_ENVIRONMENT = _environment()
