"""Which tests the README's command leaves for `-m nightly`."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(count: int, values: Iterable[Any]) -> list[Any]:
  """Values for `parametrize`, of which all but the first `count` are nightly.

  Each is a tuple if a test takes several.
  """
  values = [v if isinstance(v, tuple) else (v,) for v in values]
  later = [pytest.param(*v, marks=pytest.mark.nightly) for v in values[count:]]
  return [*(pytest.param(*v) for v in values[:count]), *later]
