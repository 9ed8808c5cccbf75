"""The small model end to end: its rows, its table, and what it refuses."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks import generate_small
from benchmarks import small_model
from gaze_jax import api
from gaze_jax import errors

pytestmark = pytest.mark.nightly
SHAPE = small_model.Shape(
  width=128, depth=2, mlp=128, vision_width=64, vision_depth=2
)
DENSE = ("transformers", "transformers_kept_cache", "dense")
GAZE = ("gaze_query_head", "gaze_kv_group")


@pytest.fixture(scope="module")
def rows():
  return generate_small.run(rounds=1, new_tokens=4, images=1, shape=SHAPE)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
  """Our model, and the model and processor of transformers."""
  folder = tmp_path_factory.mktemp("small")
  small_model.write(folder, SHAPE)
  return api.load(folder), *small_model.load(folder, SHAPE)


def test_a_row_for_each_method(rows):
  assert [row["method"] for row in rows] == [*DENSE, *GAZE]
  for row in rows:
    assert row["visual_tokens"] == 576 and row["new_tokens"] == 4
    first, second = row["ttft_first_seconds"], row["ttft_second_seconds"]
    assert 0 < second and math.isclose(row["second_sooner"], first / second)
    assert row["tokens_per_second"] > 0
    assert row["rounds"] == 1 and row["tokens_compared"] == 8
    assert row["same_text"] == (row["tokens_that_differ"] == 0)
  for row in rows[: len(DENSE)]:
    assert row["same_text"], row["method"]
  for row in rows[len(DENSE) :]:  # it did read less than everything
    assert 0 < row["tokens_that_differ"] <= 8, row["method"]


def test_the_table_says_what_the_rows_do(rows):
  title, header, *lines = generate_small.table(rows).splitlines()
  assert "576 visual tokens" in title and "4 new ones" in title
  assert header.split()[0] == "method" and len(lines) == len(rows)
  for line, row in zip(lines, rows, strict=True):
    assert line.startswith(row["method"])
    assert f"{row['ttft_first_seconds']:.3f}" in line
    assert f"{row['ttft_second_seconds']:.4f}" in line
    assert f"{row['tokens_per_second']:.1f}" in line
    differ = f"{row['tokens_that_differ']}/8 differ"
    assert line.endswith("yes" if row["same_text"] else differ)


def test_answers_depend_on_question_and_picture(pair):
  model = pair[0]
  scenes = [model.encode_image(p) for p in small_model.pictures(2)]
  said = np.array(
    [
      [model.generate(q, scene, max_tokens=8).tokens for scene in scenes]
      for q in generate_small.QUESTIONS
    ]
  )
  assert said.shape == (2, 2, 8)  # none ends early
  assert (said[0] != said[1]).any() and (said[:, 0] != said[:, 1]).any()
  assert len(np.unique(said)) > 8  # and none is constant


def test_a_second_answer_is_that_of_the_question_alone(pair):
  model, pictures = pair[0], small_model.pictures(1)
  ours = generate_small.Ours(model, pictures, max_tokens=4)
  first, second = ours.first(), ours.second()
  for said, question in zip(
    (first, second), generate_small.QUESTIONS, strict=True
  ):
    alone = model.generate(question, images=pictures, max_tokens=4)
    assert said.tokens == alone.tokens
    assert said.first > 0 and said.rest > 0


def test_other_inputs_are_refused(pair, monkeypatch):
  model, _, processor = pair
  pictures = small_model.pictures(2)
  generate_small.check_inputs(model, processor, pictures)
  vision = dataclasses.replace(model.config.model.vision, mean=(0.5,) * 3)
  inner = dataclasses.replace(model.config.model, vision=vision)
  config = dataclasses.replace(model.config, model=inner)
  other = dataclasses.replace(model, config=config)
  with pytest.raises(errors.GazeError, match="other pixels"):
    generate_small.check_inputs(other, processor, pictures)
  monkeypatch.setattr(small_model, "turn", lambda q: f"<user>{q}<assistant>")
  with pytest.raises(errors.GazeError, match="other token ids"):
    generate_small.check_inputs(model, processor, pictures)


def test_another_text_of_ours_is_an_error(monkeypatch):
  """What dense says is held to transformers in every round."""
  monkeypatch.setattr(generate_small, "_GAZE", ())
  say = generate_small.Ours.second

  def wrong(self):
    said = say(self)
    return dataclasses.replace(said, tokens=(*said.tokens[:-1], 7))

  monkeypatch.setattr(generate_small.Ours, "second", wrong)
  with pytest.raises(errors.GazeError, match="^dense: another greedy text"):
    generate_small.run(rounds=1, new_tokens=2, images=1, shape=SHAPE)


def test_without_transformers_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(small_model, "transformers", None)
  with pytest.raises(errors.GazeError, match="pip install -r"):
    generate_small.run()
