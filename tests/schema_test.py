"""The number in each file that is read again."""

import pytest

from gaze_jax import schema


@pytest.mark.parametrize("kind", schema.FORMATS)
def test_what_is_written_is_read(kind):
  form = schema.FORMATS[kind]
  assert schema.read(schema.stamp(kind), "f", kind) == form.newest
  for number in range(form.oldest, form.newest + 1):
    assert schema.read({"schema": number}, "f", kind) == number


@pytest.mark.parametrize("kind", schema.FORMATS)
def test_what_is_newer_or_no_number_is_refused_by_it(kind):
  newest = schema.FORMATS[kind].newest
  for number, says in (
    (newest + 1, f"^f: written as schema {newest + 1} by a newer gaze_jax"),
    (0, "^f: schema = 0 is no version"),
    (-1, "schema = -1 is no version"),
    (True, "schema = True is no version"),
    (1.0, "schema = 1.0 is no version"),
    ("1", "schema = '1' is no version"),
    (None, "schema = None is no version"),
  ):
    with pytest.raises(schema.SchemaError, match=says):
      schema.read({"schema": number}, "f", kind)


def test_without_a_number_it_is_the_first(monkeypatch):
  assert schema.read({}, "f", "model") == 1
  forms = dict(thing=schema.Format(4, oldest=3, again="Make it again"))
  monkeypatch.setattr(schema, "FORMATS", forms)
  assert schema.read({"schema": 3}, "f", "thing") == 3
  with pytest.raises(schema.SchemaError, match="from 3 on. Make it again"):
    schema.read({}, "f", "thing")
