"""The server against `generate_many`: the rows of its table, and its texts."""

import math

import pytest

from benchmarks import mixed_requests
from benchmarks import serve
from tests.benchmarks_generate_many_test import SHAPE

pytestmark = pytest.mark.nightly


def test_a_row_for_each_side():
  asked = mixed_requests.make(8)
  many, served = serve.run(asked, SHAPE, clients=4, batch_size=3, rounds=1)
  assert [many["method"], served["method"]] == [
    "generate_many",
    "server, 4 clients",
  ]
  assert served["texts_that_part"] == many["texts_that_part"] == 0
  assert many["ratio"] == 1
  assert math.isclose(served["ratio"], many["seconds"] / served["seconds"])
