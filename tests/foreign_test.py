"""What is told of files that are another kind than was expected."""

import pytest

from gaze_jax import foreign


@pytest.mark.parametrize(
  "head, what",
  [
    (b"", "the file is empty; download"),
    (bytes(foreign.HEAD), "the file is empty"),
    (b"version https://git-lfs.github.com/spec/v1", "run `git lfs pull`"),
    (b"\n<!DOCTYPE html><p>404", "a web page, not the file"),
    (b"\xef\xbb\xbf<HTML lang=en>", "a web page, not the file"),
    (b"\x1f\x8b\x08", "packed by gzip: unpack it first"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"PAR1\x15", "a Parquet table: prepare it with"),
  ],
)
def test_what_is_known_by_its_first_bytes(head, what):
  assert what in foreign.kind(head)


@pytest.mark.parametrize("head", [b"{", b"[]", b"\n" * 64, b"<svg/>", b"\xff"])
def test_others_are_for_their_readers(head):
  assert foreign.kind(head) == ""


@pytest.mark.parametrize(
  "name, what",
  [
    ("none.png", "no such file"),
    ("C:\\none.png", "no such file"),
    ("C:/none.png", "no such file"),
    ("a\0.png", "no such file"),
    ("a" * 5000, "no such file"),
    ("sub", "a folder, and a file is needed"),
    ("https://example.org/a.png", "an address.*download it first"),
    ("gs://bucket/a.png", "an address"),
    ("file:///a.png", "an address"),
    ("data:image/png;base64,iVBO", "a file written out.*give its bytes"),
  ],
)
def test_why_a_name_leads_to_no_file(tmp_path, name, what):
  (tmp_path / "sub").mkdir()
  found = foreign.no_file(name, str(tmp_path))
  assert what.partition(".*")[0] in found and what.rpartition(".*")[2] in found
