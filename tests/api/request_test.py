"""What a request may ask for, and its budget."""

import numpy as np
import pytest

from gaze_jax import api
from gaze_jax.api import request as request_lib

Q = "what is it?"


def budget_of(config, regions=(9, 9), **budget):
  return api.Request(Q, **budget).budget(config, regions)


@pytest.mark.parametrize(
  "unit, trained, quarter, all_, three",
  [
    ("fixed", 2, 5, 18, 3),  # of 18 regions: 4.5, rounded up
    ("per_unit", 2, 3, 9, 3),  # of the 9 of each unit: 2.25
    ("ratio", 250, 250, 1000, 166),  # in thousandths; 3 are 166.7 of 18
  ],
)
def test_budgets_by_hand(model, unit, trained, quarter, all_, three):
  config = model(budget=unit, ratio=0.25).config
  assert budget_of(config) == trained
  assert budget_of(config, share=0.25) == quarter
  assert budget_of(config, share=1.0) == all_
  assert budget_of(config, share=0.0) == 0 == budget_of(config, top_k=0)
  assert budget_of(config, top_k=3) == three
  least = dict(ratio=1000).get(unit, 18)
  assert least <= budget_of(config, top_k=10**15) < 2**31  # an int32


@pytest.mark.parametrize("name", ["top_k", "max_tokens", "frames", "share"])
@pytest.mark.parametrize("value", [2.5, True, "2", [2], np.nan])
def test_what_is_no_such_number_is_refused(name, value):
  request = api.Request(Q)
  object.__setattr__(
    request, name, value
  )  # annotations are checked in tests alone
  with pytest.raises(request_lib.RequestError, match=f"^{name} = "):
    request.check()


@pytest.mark.nightly
def test_a_question_without_images_counts_the_largest_unit_read(model):
  """per_unit, after a unit of 9 regions: half of them, rounded up."""
  ours = model(budget="per_unit")
  image = np.zeros((70, 70, 3), np.uint8)
  seen = ours.encode_image(image)
  reply = ours.generate(Q, seen, share=0.5, max_tokens=1)
  assert reply.budget == 5
  assert ours.generate(Q, share=0.5, max_tokens=1).budget == 0
