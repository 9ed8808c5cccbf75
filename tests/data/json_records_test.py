"""Files of records: lists, JSON Lines, and what is neither."""

import json

import pytest

from gaze_jax.data import json_records
from gaze_jax.data import samples


def read(tmp_path, content, name="t.json"):
  path = tmp_path / name
  data = content if isinstance(content, bytes) else content.encode()
  path.write_bytes(data)
  return json_records.read(str(path))


def refused(tmp_path, content, name="t.json"):
  with pytest.raises(samples.DataError) as error:
    read(tmp_path, content, name)
  assert str(error.value).startswith(f"{tmp_path / name}")
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_and_lines_with_a_mark_and_without(tmp_path, mark):
  records = read(tmp_path, mark + b'[{"a": 1}, 2]')
  assert [(r.place, r.value) for r in records] == [
    ("sample 0", {"a": 1}),
    ("sample 1", 2),
  ]
  # Lines of any system, empty ones, a text with a separator of Unicode in it,
  # and files laid together, each with its mark.
  text = mark + b'\r\n{"a": 1}\r\n\n' + mark + b'{"a": "\xe2\x80\xa8"}\n'
  for name in ("t.json", "t.jsonl"):
    records = read(tmp_path, text, name)
    assert [(r.place, r.value) for r in records] == [
      ("line 2", {"a": 1}),
      ("line 4", {"a": "\u2028"}),
    ]


def test_one_line_is_a_record_where_the_name_says_so(tmp_path):
  for name in ("t.jsonl", "t.NDJSON"):
    (record,) = read(tmp_path, '{"a": 1}\n', name)
    assert (record.place, record.value) == ("line 1", {"a": 1})
  said = refused(tmp_path, '{"data": [1], "version": 2}')
  assert "list of samples" in said and "JSON Lines" in said
  assert "it is one object (data, version)" in said


def test_a_line_that_cannot_be_read_is_a_record_with_an_error(tmp_path):
  bad = {
    "Expecting": '{"a": ',  # cut off
    "nested too deep": '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}",
    "thousands of digits": '{"a": ' + "9" * 5000 + "}",
  }
  lines = ['{"a": 1}', *bad.values(), '{"a": 2}']
  for first in (0, 1):  # whichever comes first
    records = read(tmp_path, "\n".join(lines[first:]))
    assert [r.value for r in records if not r.error][-1] == {"a": 2}
    wrong = [r for r in records if r.error]
    assert [r.place for r in wrong] == [
      f"line {i + 2 - first}" for i in (0, 1, 2)
    ]
    for record, words in zip(wrong, bad, strict=True):
      assert words in record.error and "\n" not in record.error


@pytest.mark.parametrize(
  "content, words",
  [
    ("{", "Expecting property name"),
    ('[{"a": 1},\n{"a": 2]', "line 2"),
    ('{"a": 1,\n "b": 2,,}\n', "JSON Lines"),
    ("", "is not JSON"),
    ("[]", "the list of samples is empty"),
    ("7", "a list of samples is needed"),
    ('"a text"', "it is str"),
    ("[" * 10**5, "nested too deep"),
    ("[" + "9" * 5000 + "]", "thousands of digits"),
    ("[1] [2]", "Extra data"),
    (b'["caf\xe9"]', "byte 5 (0xe9) is not UTF-8; save it as UTF-8"),
    ("[1]".encode("utf-16"), "UTF-16 text"),
    ("[1]".encode("utf-16-le"), "UTF-16-LE text"),
    ("[1]".encode("utf-32"), "UTF-32 text"),
  ],
)
def test_what_is_neither_is_one_line(tmp_path, content, words):
  assert words in refused(tmp_path, content)


def test_keys_that_stand_twice_are_marked(tmp_path):
  text = '[{"a": 1, "b": 2, "a": 3}, {"a": 1, "a": 1}, {"c": {"a": 1, "a": 2}}]'
  one, same, inner = (record.value for record in read(tmp_path, text))
  assert one[json_records.REPEATED] == ["a"] and one["a"] == 3
  assert same == {"a": 1}
  assert json_records.REPEATED not in inner and inner["c"][
    json_records.REPEATED
  ] == ["a"]


def test_a_number_that_is_none_is_read(tmp_path):
  records = read(tmp_path, json.dumps([float("nan"), float("inf"), 1e300]))
  assert records[0].value != records[0].value and len(records) == 3


def test_what_is_no_file_is_named_with_the_remedy(tmp_path):
  with pytest.raises(samples.DataError, match="a folder, and a file is needed"):
    json_records.read(str(tmp_path))
  with pytest.raises(samples.DataError, match="an address.*download it first"):
    json_records.read("https://example.org/held_out.json")
