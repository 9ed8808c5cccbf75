"""Which tests the README's command leaves for `-m nightly`.

Those marked `nightly`; of a test marked `few(n)` all but its first n cases; and
values of a parameter or fixture by `few` below.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def few(count: int, values: Iterable[Any]) -> list[Any]:
  """Values for `parametrize`, of which all but the first `count` are nightly.

  Each is a tuple if a test takes several.
  """
  values = [v if isinstance(v, tuple) else (v,) for v in values]
  later = [pytest.param(*v, marks=pytest.mark.nightly) for v in values[count:]]
  return [*(pytest.param(*v) for v in values[:count]), *later]


def mark_the_rest(items: Sequence[pytest.Item]) -> None:
  """Marks as nightly what `few(n)` leaves out."""
  seen = collections.Counter()
  for item in items:
    name = item.nodeid.split("[")[0]
    seen[name] += 1
    mark = item.get_closest_marker("few")
    if mark and seen[name] > mark.args[0]:
      item.add_marker(pytest.mark.nightly)
