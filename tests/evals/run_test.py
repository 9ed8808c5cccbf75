"""Evaluation of a workdir, and exact match against greedy decoding."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gaze_jax import api
from gaze_jax import errors
from gaze_jax import plugins
from gaze_jax.data import images
from gaze_jax.data import packing
from gaze_jax.data import pipeline
from gaze_jax.data import samples
from gaze_jax.demo import emoji_scenes
from gaze_jax.evals import metrics
from gaze_jax.evals import report
from gaze_jax.evals import run
from gaze_jax.layout import row as row_lib
from gaze_jax.train import loop


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory):
  out = tmp_path_factory.mktemp("run")
  loop.train(tiny_config(train__steps=2), out)
  return out


@pytest.fixture(scope="module")
def result(workdir):
  return run.evaluate(workdir)


def test_the_report_has_what_was_promised(result):
  assert result["step"] == 2
  assert {"seconds", "visual_kv_fraction", "unique_visual_kv_fraction"} <= (
    result.keys()
  )
  for name in ("gaze", "dense", "blind", "random_regions", "centre_regions"):
    condition = result["accuracy"][name]
    assert condition["n"] == 10  # 5 canvases of 2 questions
    assert sum(condition["n_by_kind"].values()) == 10
    low, high = condition["interval_95"]["overall"]
    assert low <= condition["overall"] <= high
  assert result["other_splits"].keys() == {"held_out_pairs", "larger"}
  # Fit for JSON and for people.
  assert json.loads(json.dumps(result, allow_nan=False))
  assert "| gaze |" in report.markdown(result)


def test_budgets_in_the_report(result):
  kv = lambda name: result["accuracy"][name]["visual_kv_fraction"]
  np.testing.assert_allclose(kv("dense"), 27 / 25, rtol=1e-5)
  np.testing.assert_allclose(kv("gaze_k0"), 2 / 25, rtol=1e-5)
  # The four middle ones of nine regions hold 4 tokens, two of them 8.
  assert kv("gaze_k0") < kv("gaze") < kv("gaze_k4") < kv("dense")
  assert "visual_kv_fraction" not in result["accuracy"]["blind"]
  larger = result["other_splits"]["larger"]["conditions"]
  np.testing.assert_allclose(
    larger["dense"]["visual_kv_fraction"], 51 / 49, rtol=1e-5
  )


def test_routing_is_scored_beside_chance(result):
  routing = result["routing_accuracy"]
  assert len(routing["layers"]) == 2 and routing["n"] > 0
  for share in (*routing["layers"], routing["random"]):
    assert 0 <= share <= 1


@pytest.mark.nightly
def test_evaluating_twice_gives_the_same(result, workdir):
  again = run.evaluate(workdir)
  del again["seconds"]
  assert again == {k: v for k, v in result.items() if k != "seconds"}


def test_nothing_to_evaluate_on(workdir, monkeypatch):
  none = dataclasses.replace(emoji_scenes.SOURCE, splits=lambda _: {})
  monkeypatch.setattr(plugins, "source", lambda _: none)
  with pytest.raises(errors.GazeError, match="nothing to evaluate on"):
    run.evaluate(workdir)


class Echo:
  """EmojiScenes whose reference answers can be replaced."""

  def __init__(self, source, answers=None):
    self._source, self._answers = source, answers or {}

  def __len__(self):
    return len(self._source)

  def _replace(self, index, sample):
    asked = tuple(
      dataclasses.replace(q, answer=self._answers.get((index, i), q.answer))
      for i, q in enumerate(sample.questions)
    )
    return samples.Sample(sample.images, asked, sample.things)

  def sample(self, index, epoch=0):
    return self._replace(index, self._source.sample(index, epoch))

  def text(self, index, epoch=0):
    return self._replace(index, self._source.text(index, epoch))

  def canvas(self, index):
    return self._source.canvas(index)

  def fingerprint(self):
    return self._source.fingerprint()

  def content(self):
    return self._source.content()


class Greedy:
  """Answers the questions of a source token by token."""

  def __init__(self, model, top_k):
    self.model, self.top_k = model, top_k

  def __call__(self, picture, question, count):
    reply = self.model.generate(
      question, images=[picture], top_k=self.top_k, max_tokens=count
    )
    return list(reply.tokens)


def lively(model):
  """Larger embeddings, so that different questions get different answers."""
  decoder = dict(model.params["decoder"])
  decoder["embedding"] = decoder["embedding"] * 20
  return dataclasses.replace(model, params=model.params | dict(decoder=decoder))


@pytest.mark.nightly
@pytest.mark.parametrize("top_k", [2, 9])
def test_exact_match_is_what_greedy_decoding_would_score(workdir, top_k):
  model = lively(api.load(workdir))
  config, tokenizer = model.config, model.tokenizer
  plain = emoji_scenes.SOURCE.make(config, "new")
  greedy = Greedy(model, top_k)
  # Every other reference is changed to the one token that the model says
  # first, with `<eos>` appended by the packing; the answer is then right just
  # when the model would stop there.
  length = config.data.answer_slots // config.data.questions
  replaced, spoken = {}, {}
  for index in range(len(plain)):
    sample = plain.sample(index)
    for i, question in enumerate(sample.questions):
      ids = greedy(sample.images[0], question.text, length)
      spoken[index, i] = ids
      if (index + i) % 2:
        replaced[index, i] = tokenizer.decode(ids[:1])
  source = Echo(plain, replaced)
  score, expected = scored(model, source, top_k), {}
  for index in range(len(plain)):
    for i, question in enumerate(source.text(index).questions):
      wanted = [*tokenizer.encode(question.answer), tokenizer.eos]
      expected[index, i] = spoken[index, i][: len(wanted)] == wanted
  assert score == expected


def scored(model, source, top_k):
  """Exact match by teacher forcing, by (index, question)."""
  config, out = model.config, {}
  for batch in pipeline.eval_batches(config, source):
    budget = np.full(len(batch.indices), top_k, np.int32)
    right, _, _ = jax.device_get(
      run.forward(
        model.params,
        config.model,
        np.array(model.tokenizer.ends),
        batch.batch,
        budget,
        None,
      )
    )
    exact = metrics.exact_match(
      right, batch.batch.answer_of, batch.batch.answer_of.shape[1]
    )
    for row, sample in enumerate(batch.samples):
      for i in range(len(sample.questions)):
        out[int(batch.indices[row]), i] = bool(exact[row, i])
  return out


@pytest.mark.nightly
@pytest.mark.parametrize("top_k", [0, 2, 9])
def test_the_models_own_answer_is_an_exact_match(workdir, top_k):
  """What greedy decoding says, as the reference, is right in every token."""
  model = lively(api.load(workdir))
  config, tokenizer = model.config, model.tokenizer
  shape = row_lib.row_shape(config)
  unit = row_lib.Unit(config.model.vision.grid, config.model.vision.grid)
  plain, greedy = emoji_scenes.SOURCE.make(config, "new"), Greedy(model, top_k)
  for index in range(2):
    sample = plain.sample(index)
    spoken = [
      greedy(sample.images[0], question.text, 5)
      for question in sample.questions
    ]
    parts = []
    for part in packing.parts(sample, tokenizer, [[unit]]):
      if isinstance(part, row_lib.Text) and part.question >= 0:
        ids, i = spoken[part.question], part.question
        # The second question is given one wrong token.
        said = [*ids[:-1], (ids[-1] + i) % tokenizer.size]
        part = row_lib.Text(said, part.branch, i)
      parts.append(part)
    pixels = images.preprocess(sample.images[0], config.model.vision)
    batch = row_lib.make_batch(
      [row_lib.lay_out(parts, shape)], pixels[None, None]
    )
    right, _, _ = run.forward(
      model.params,
      config.model,
      np.array(tokenizer.ends),
      batch,
      np.full(1, top_k, np.int32),
      None,
    )
    exact = metrics.exact_match(np.asarray(right), batch.answer_of, 2)
    assert exact.tolist() == [[True, False]]
  assert spoken[0] != spoken[1]


def test_the_tokenizer_is_that_of_the_run(workdir):
  assert api.load(workdir).tokenizer.size == 2048


def test_a_caption_counts_apart():
  score = run.Score()
  score.asked.update(what=4, caption=6)
  score.right.update(what=1, caption=6)
  said = score.summary()
  assert said["what"] == said["overall"] == 0.25 and said["n"] == 4
  assert said["caption"] == 1.0
