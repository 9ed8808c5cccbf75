"""Files told from others by pieces of them."""

import os
import shutil

import pytest

from gaze_jax import fingerprint


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 10**6])
def test_a_copy_is_the_same_file(tmp_path, size):
  file, copy = tmp_path / "a", tmp_path / "b"
  file.write_bytes(os.urandom(size))
  shutil.copy(file, copy)
  os.utime(copy, (1, 1))
  assert fingerprint.of_file(copy) == fingerprint.of_file(file)
  copy.write_bytes(file.read_bytes() + b"x")
  assert fingerprint.of_file(copy) != fingerprint.of_file(file)


def test_all_of_a_small_file_counts(tmp_path):
  file = tmp_path / "x"
  seen = set()
  for at in range(0, 16384, 64):
    content = bytearray(16384)
    content[at] = 1
    file.write_bytes(content)
    seen.add(fingerprint.of_file(file))
  assert len(seen) == 256


def test_pieces_of_a_large_file_count(tmp_path, monkeypatch):
  file = tmp_path / "x"
  file.write_bytes(bytes(10**6))
  base = fingerprint.of_file(file)
  for at in (0, 333_000, 666_000, 10**6 - 1):
    content = bytearray(10**6)
    content[at] = 1
    file.write_bytes(content)
    assert fingerprint.of_file(file) != base
  # More, and larger ones, see more.
  content[500_000], content[-1] = 1, 0
  file.write_bytes(content)
  assert fingerprint.of_file(file) == base
  file.write_bytes(bytes(10**6))
  every = fingerprint.of_file(file, 100, 10_000)
  file.write_bytes(content)
  assert fingerprint.of_file(file, 100, 10_000) != every
