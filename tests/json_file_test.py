"""JSON and text of others: what is read, and what is refused in one line."""

import codecs

import pytest

from gaze_jax import errors
from gaze_jax import json_file


class MineError(errors.GazeError):
  pass


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
  file = tmp_path / "a.json"
  for start in (b"", codecs.BOM_UTF8):
    file.write_bytes(start + '{"a": "\u00e9"}'.encode())
    assert json_file.read(file, MineError) == {"a": "\u00e9"}
    assert json_file.read_text(file, MineError).startswith("{")


@pytest.mark.parametrize(
  "data, message",
  [
    (b"", "the file is empty; download"),
    (b" \n" * 50, "is not JSON: the file is empty"),
    (b"\x1f\x8b\x08\0", "packed by gzip: unpack it first"),
    (b"<!doctype html><title>Sign in</title>", "a web page, not the file"),
    (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    (b"{", "is not JSON: Expecting"),
    (b"[" * 10**5, "nested too deep"),
    (b"[]", "an object is needed, got list"),
    (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
    ('{"a": 1}'.encode("utf-16"), "UTF-16 text.*save it as UTF-8"),
    (b'{"a": "\xe9"}', "byte 7 .0xe9. is not UTF-8; save it as UTF-8"),
  ],
)
def test_what_is_no_object_is_named(tmp_path, data, message):
  file = tmp_path / "a.json"
  file.write_bytes(data)
  with pytest.raises(MineError, match=message) as caught:
    json_file.read(file, MineError)
  assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(MineError, match="can't read .*a.json: no such file"):
    json_file.read(tmp_path / "a.json", MineError)
  with pytest.raises(MineError, match="a folder, and a file is needed"):
    json_file.read(tmp_path, MineError)


def test_a_key_that_is_there_twice():
  text = '{"a": 1, "a": 1}'
  assert json_file.parse(text) == {"a": 1}
  with pytest.raises(json_file.NotJsonError, match="a is there twice"):
    json_file.parse(text, json_file.unique)
