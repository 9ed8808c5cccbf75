"""Files that are there whole or not at all."""

import os

import pytest

from gaze_jax import whole_file


def test_a_file_is_replaced_at_the_end(tmp_path):
  path = tmp_path / "a.json"
  whole_file.write(path, "old ä")
  with whole_file.replacing(path) as partial:
    partial.write_text("new")
    assert path.read_text(encoding="utf-8") == "old ä"
  assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


def test_what_was_there_stays_after_an_exception(tmp_path):
  path = tmp_path / "a.json"
  whole_file.write(path, "old")
  with pytest.raises(KeyboardInterrupt), whole_file.replacing(path) as partial:
    partial.write_text("ne")
    raise KeyboardInterrupt
  assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
