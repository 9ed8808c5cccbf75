"""Programs are counted, and dropped before there are too many to map."""

import functools
import pathlib

import numpy as np
import pytest

from gaze_jax.decode import programs


@pytest.fixture
def program(monkeypatch):
  monkeypatch.setattr(programs, "_left", 0)
  # JAX keeps programs by the function: one of its own.
  yield programs.Program(lambda x, config: (x + config).sum(0), "a sum")
  programs.Program._all.pop()


def _run(program, shapes):
  before = programs.compiled()
  for n in shapes:
    x = np.arange(2.0 * n, dtype=np.float32).reshape(n, 2)
    np.testing.assert_array_equal(program(x, config=1), (x + 1).sum(0))
  return programs.compiled() - before


@pytest.mark.nightly
def test_programs_of_many_shapes_are_bounded(program, monkeypatch):
  said = []
  monkeypatch.setattr(programs, "_log_once", functools.cache(said.append))
  assert _run(program, range(1, 40)) == 39
  assert program._jitted._cache_size() == 39 and not said
  most = programs.mappings() + 50
  monkeypatch.setattr(programs, "MOST_MAPPINGS", most)
  kept = []
  for n in range(40, 80):
    assert _run(program, [n]) == 1
    assert programs.mappings() <= 1.5 * most
    kept.append(program._jitted._cache_size())
  assert min(kept) == 0 and max(kept) < 79
  assert len(said) == 1 and f"more than {most} mappings" in said[0]
  # What was dropped is compiled anew, and counted anew.
  assert _run(program, [1, 1]) == 1


def test_where_mappings_are_not_told_nothing_is_dropped(program, monkeypatch):
  monkeypatch.setattr(programs, "_MAPS", pathlib.Path("/proc/no such file"))
  monkeypatch.setattr(programs, "MOST_MAPPINGS", 0)
  assert _run(program, range(1, 5)) == 4 == program._jitted._cache_size()


def test_mappings_of_others_do_not_cost_the_programs(program, monkeypatch):
  """Else each call would compile anew, for ever."""
  monkeypatch.setattr(programs, "mappings", lambda: 50_000)
  assert _run(program, [1, 1, 1]) == 2
  assert _run(program, range(2, 6)) == 4
  assert _run(program, range(1, 6)) == 0
