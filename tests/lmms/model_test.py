"""Our model as lmms-eval calls it, against a stand-in for lmms-eval.

tests/lmms/outside_proof.py holds it against lmms-eval itself.
"""

import importlib
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from gaze_jax import api
from gaze_jax import errors
from gaze_jax import lmms
from gaze_jax.tasks import predictions
from tests.lmms import stub

RED = Image.new("RGB", (6, 4), (200, 0, 0))


@pytest.fixture
def model_lib(monkeypatch):
  stub.install(monkeypatch)
  sys.modules.pop("gaze_jax.lmms.model", None)
  yield importlib.import_module("gaze_jax.lmms.model")
  sys.modules.pop("gaze_jax.lmms.model", None)


@pytest.fixture
def loaded(monkeypatch, tiny_config):
  """Replaces `api.load`; what was loaded, and every request."""
  seen = types.SimpleNamespace(loads=[], requests=[], batch=None)

  class Model:
    config = tiny_config()

    def generate_as_completed(
      self, requests, *, batch_size, progress, on_error
    ):
      seen.batch, done = batch_size, []
      for number, request in enumerate(requests):
        if request.question == "too long":
          on_error(number, errors.GazeError("a limit"))
          continue
        seen.requests.append(request)
        text = f"{request.question} END. more"
        done.append((number, types.SimpleNamespace(text=text)))
      yield from reversed(done)

  def load(directory, **how):
    seen.loads.append((directory, how))
    return Model()

  monkeypatch.setattr(api, "load", load)
  return seen


def ask(model, *asked, docs=()):
  """Answers to (context, options, what each document shows)."""
  model.task_dict = {"mme": {"test": docs or [None] * len(asked)}}
  requests = [
    types.SimpleNamespace(
      args=(context, options, lambda doc, s=shown: s, number, "mme", "test")
    )
    for number, (context, options, shown) in enumerate(asked)
  ]
  return model.generate_until(requests)


def test_the_manifest_imports_nothing_of_ours(monkeypatch):
  stub.install(monkeypatch)
  found = lmms.manifest()
  assert found.model_id == "gaze_jax"
  assert found.simple_class_path == "gaze_jax.lmms.model.GazeJax"
  code = "import sys, gaze_jax.lmms; print([m for m in ('jax', 'numpy',"
  code += " 'torch') if m in sys.modules])"
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert out.stdout == "[]\n"


def test_what_a_request_becomes(model_lib, loaded):
  model = model_lib.GazeJax(
    "some/dir", top_k=3, dtype="bfloat16", parallel_tensor=2, batch_size="4"
  )
  assert loaded.loads == [
    ("some/dir", dict(parallel={"tensor": 2}, dtype="bfloat16"))
  ]
  given = {"max_new_tokens": 7, "until": ["END", "\n\n"], "temperature": 0}
  options = dict(given)
  texts = ask(
    model,
    ("first?", options, [RED, RED]),
    ("second?", {"until": "more"}, None),
    ("third?", {"temperature": 0.5, "top_p": 0.9, "until": ""}, [[RED]]),
  )
  assert texts == ["first? ", "second? END. ", "third? END. more"]
  first, second, third = loaded.requests
  assert loaded.batch == 4 and first.top_k == 3 and first.share is None
  assert first.max_tokens == 7 and first.stop == ("END", "\n\n")
  assert first.temperature == 0 and first.top_p == 1
  assert [x.shape for x in first.images] == [(4, 6, 3)] * 2
  np.testing.assert_array_equal(first.images[0], np.asarray(RED))
  assert second.max_tokens == 16 and not second.images and not second.videos
  assert third.temperature == 0.5 and third.top_p == 0.9 and third.stop == ()
  assert len(third.images) == 1
  # What lmms-eval keeps of an answer is what it is given.
  kinds = [(kind, text) for kind, _, text in model.cache_hook.kept]
  assert kinds == [("generate_until", text) for text in reversed(texts)]
  assert options == given  # tasks share it


def test_videos_are_sampled_as_lmms_eval_does(model_lib, loaded, monkeypatch):
  asked = []

  def read(path, count, max_pixels):
    asked.append((path, count))
    return types.SimpleNamespace(frames=(np.zeros((4, 4, 3), np.uint8),) * 2)

  monkeypatch.setattr(model_lib.asking, "read_video", read)
  ask(model_lib.GazeJax("dir", frames=5), ("q", {}, ["a.mp4"]))
  assert asked == [("a.mp4", 5)]
  assert len(loaded.requests[0].videos[0]) == 2


@pytest.mark.parametrize(
  "given, told",
  [
    (dict(), "give pretrained=DIR, or predictions=DIR"),
    (dict(pretrained="a", predictions="b"), "give pretrained=DIR, or pred"),
    (dict(pretrained="a", use_cache=True), "--model_args: no use_cache"),
    (dict(predictions="a", names="x"), "names=x: give theirs:ours;theirs:ours"),
  ],
)
def test_arguments_that_make_no_sense(model_lib, loaded, given, told):
  with pytest.raises(errors.GazeError, match=told):
    model_lib.GazeJax(**given)


def test_what_it_cannot_do_names_the_remedy(model_lib, loaded):
  model = model_lib.GazeJax("dir")
  with pytest.raises(NotImplementedError, match="variant that generates"):
    model.loglikelihood([])
  with pytest.raises(NotImplementedError, match="variant of one round"):
    model.generate_until_multi_round([])


def test_what_cannot_be_asked_has_an_empty_answer(model_lib, loaded, caplog):
  """One bad item of thousands ends no run; it is said."""
  model = model_lib.GazeJax("dir")
  texts = ask(
    model,
    ("first", {}, None),
    ("sound", {}, [{"array": 1}]),
    ("too long", {}, None),
    ("last", {}, None),
  )
  assert texts == ["first END. more", "", "", "last END. more"]
  told = caplog.text
  assert "request 1 has no answer: mme: what it shows is no picture" in told
  assert "request 2 has no answer: a limit" in told


def stored(folder, *lines):
  """Predictions of (place, prompt, text)."""
  predictions.begin(folder, "mme", {"model": "m"})
  with predictions.Writer(folder, "mme") as writer:
    for place, prompt, said in lines:
      writer.write(
        predictions.Prediction(str(place), place, prompt=prompt, text=said)
      )


def test_stored_answers_are_found_by_place_and_prompt(model_lib, tmp_path):
  stored(
    tmp_path, (2, "same", "third END x"), (0, "same", "first"), (1, "b", "no")
  )
  model = model_lib.GazeJax(predictions=str(tmp_path))
  asked = [(c, {"until": "END"}, None) for c in ("same", "b", "same")]
  assert ask(model, *asked) == ["first", "no", "third "]


def test_an_answer_that_may_be_of_another_document_is_refused(
  model_lib, tmp_path
):
  """Other files, another order: a prompt that one has is found, not of two."""
  stored(tmp_path, (0, "same", "a"), (1, "alone", "b"), (2, "same", "c"))
  model = model_lib.GazeJax(predictions=str(tmp_path))
  assert ask(model, ("alone", {}, None)) == ["b"]
  with pytest.raises(errors.GazeError, match="document 1: .* several have it"):
    ask(model, ("alone", {}, None), ("same", {}, None))
  with pytest.raises(errors.GazeError, match="document 0: .* none has it"):
    ask(model, ("another", {}, None))


def test_places_of_pictures_are_no_part_of_a_prompt(model_lib, tmp_path):
  stored(tmp_path, (0, "Of <image> and image 1?", "yes"))
  model = model_lib.GazeJax(predictions=str(tmp_path))
  assert ask(model, ("Of <image 1> and <image 1>?", {}, None)) == ["yes"]


def test_names_of_tasks_that_differ(model_lib, tmp_path):
  stored(tmp_path, (0, "q", "said"))
  model = model_lib.GazeJax(predictions=str(tmp_path), names="a:b;proof:mme")
  model.task_dict = {"proof": {"test": [None]}}
  one = types.SimpleNamespace(args=("q", {}, None, 0, "proof", "test"))
  assert model.generate_until([one]) == ["said"]
  with pytest.raises(errors.GazeError, match="no predictions of gqa there"):
    model.generate_until(
      [types.SimpleNamespace(args=("q", {}, None, 0, "gqa", "test"))]
    )
