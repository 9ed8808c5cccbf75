"""Many requests: the rows of its table, and the same texts on all sides."""

import dataclasses
import math

import jax
import pytest

from benchmarks import generate_many
from benchmarks import mixed_requests

pytestmark = pytest.mark.nightly
SHAPE = dataclasses.replace(
  mixed_requests.SHAPE,
  width=128,
  depth=2,
  mlp=128,
  vocabulary=None,
  vision_width=64,
  vision_depth=2,
)


def test_a_row_for_each_method():
  jax.clear_caches()  # the server's test compiles the same programs
  asked = mixed_requests.make(6)
  rows = generate_many.run(asked, SHAPE, batches=[4], batch_size=3, rounds=1)
  alone, many, *_ = rows
  assert [row["method"] for row in rows] == [
    "one at a time",
    "many",
    "transformers, 4",
  ]
  tokens = sum(one.new_tokens for one in asked)
  for row in rows:
    assert row["texts_that_part"] == 0, row["method"]
    each = row["seconds"]
    assert math.isclose(row["requests_per_second"], len(asked) / each)
    assert math.isclose(row["tokens_per_second"], tokens / each)
  assert alone["programs"] and many["programs"]


def test_requests_are_a_mix_and_the_same_each_time():
  asked = mixed_requests.make(64)
  images = [len(one.images) for one in asked]
  assert images.count(0) == 16 and images.count(1) == 32
  assert {2, 3, 4} >= {n for n in images if n > 1}
  assert all(4 <= one.new_tokens <= 64 for one in asked)
  again = mixed_requests.make(64)
  assert [x.question for x in again] == [x.question for x in asked]
