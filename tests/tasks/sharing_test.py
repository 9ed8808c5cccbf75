"""A picture that several questions are about is read once."""

import dataclasses

import numpy as np
import pytest

from gaze_jax import api
from gaze_jax.tasks import asking
from gaze_jax.tasks import registry
from gaze_jax.tasks import task as task_lib
from gaze_jax.train import loop
from tests.tasks import published_letters

OPTIONS = asking.Options()


def asked(model, task, data, options=OPTIONS):
  """Predictions by id, without their times."""
  items = task_lib.items(task, str(data))
  found = asking.ask(model, task, items, options)
  return {one.id: dataclasses.replace(one, seconds=0.0) for one in found}


def test_each_picture_is_read_once(gqa, scripted):
  model = scripted()
  found = asked(model, *gqa)
  assert [images for images, _, _ in model.encoded] == [1, 1, 1]
  assert all(r.after and not r.images for r in model.asked)
  assert {k: v.text.strip() for k, v in found.items()} == {
    **dict(q0="red", q4="red", q1="green", q5="green", q2="blue", q6="blue")
  }


def test_pictures_of_a_cluster_that_differ_are_read_apart(scripted, tmp_path):
  """MMVP: the two of a pair show two pictures."""
  published_letters.mmvp_parquet(tmp_path)
  task = registry.TASKS["mmvp"]
  model = scripted()
  found = asked(model, task, tmp_path)
  apart = asked(model, dataclasses.replace(task, cluster=None), tmp_path)
  assert found == apart and len({v.text for v in found.values()}) > 1


def test_contexts_that_take_too_much_are_not_kept(gqa, scripted):
  model = scripted(most_cache_bytes=-1)
  found = asked(model, *gqa)
  assert len(model.encoded) == 1 and not any(r.after for r in model.asked)
  assert found == asked(scripted(), *gqa)


def test_blind_reads_no_picture(gqa, scripted):
  model = scripted()
  asked(model, *gqa, asking.Options(blind=True))
  assert not model.encoded


@pytest.mark.nightly
def test_answers_are_those_of_pictures_read_anew(
  gqa, tiny_config, tmp_path, monkeypatch
):
  loop.train(tiny_config(train__steps=2), tmp_path / "run")
  model = api.load(tmp_path / "run")
  decoder = dict(model.params["decoder"])  # so that answers vary
  decoder["embedding"] = np.asarray(decoder["embedding"]) * 20
  model = dataclasses.replace(
    model, params=model.params | dict(decoder=decoder)
  )
  options = [
    asking.Options(top_k=2),
    asking.Options(top_k=2, regions="random"),
    asking.Options(share=1.0, batch_size=2),
  ]
  shared = [asked(model, *gqa, one) for one in options]
  monkeypatch.setattr(asking, "_LEAST_GROUP", 10**9)
  for one, want in zip(options, shared, strict=True):
    assert asked(model, *gqa, one) == want
  assert len({one.text for one in shared[0].values()}) > 1
