"""A run on the user's own files: what may change before it resumes."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from gaze_jax import api
from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.evals import report
from gaze_jax.evals import run as evals_run
from gaze_jax.train import checkpoint
from gaze_jax.train import loop

# Each of them trains, or asks, in ten seconds or more.
pytestmark = pytest.mark.nightly

COLOURS = ("red", "green", "blue")


def rows(count, said="A fox {}."):
  return [
    {
      "id": str(i),
      "image": f"{COLOURS[i % 3]}.png",
      "conversations": [
        {"from": "human", "value": f"<image>\nWhat is {i}?"},
        {"from": "gpt", "value": said.format(i)},
      ],
    }
    for i in range(count)
  ]


class Place:
  """A folder with data, and a run on them."""

  def __init__(self, folder: pathlib.Path, tiny_config):
    self.folder, self._make = folder, tiny_config
    self.workdir = folder / "run"

  def config(self, **changes) -> config_lib.Config:
    at = lambda name: str(self.folder / name)
    return self._make(
      **dict(
        data__source="llava_json",
        data__path=at("t.json"),
        data__image_folder=at("images"),
        data__tokenizer=at("tok.json"),
        train__steps=2,
      )
      | changes
    )

  def train(self, **changes) -> None:
    loop.train(self.config(**changes), self.workdir)

  def write(self, name, what) -> str:
    (self.folder / name).write_text(json.dumps(what))
    return str(self.folder / name)


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
  place = Place(tmp_path_factory.mktemp("own"), tiny_config)
  (place.folder / "images").mkdir()
  for colour in COLOURS:
    Image.new("RGB", (64, 64), colour).save(
      place.folder / f"images/{colour}.png"
    )
  place.write("t.json", rows(8))
  shutil.copy(tokenizer_lib.SHIPPED, place.folder / "tok.json")
  place.train()
  return place


@pytest.fixture
def place(trained, tmp_path, tiny_config):
  """A copy of it, elsewhere: nothing of the first place is read."""
  shutil.copytree(trained.folder, tmp_path / "copy")
  kept = trained.folder.with_name("away")
  trained.folder.rename(kept)
  yield Place(tmp_path / "copy", tiny_config)
  kept.rename(trained.folder)


def test_a_run_resumes_where_all_of_it_has_moved(place, runs, capsys):
  """Workdir, data, pictures, tokenizer, times, limits; and for longer."""
  for file in place.folder.rglob("*"):
    os.utime(file, (10**9, 10**9))
  (place.folder / "t.json").rename(place.folder / "u.json")
  changes = dict(
    data__path=str(place.folder / "u.json"),
    data__eval_path="held.json",
    data__max_skipped=0.5,
    train__steps=3,
  )
  (before,) = (place.workdir / "features").iterdir()
  place.train(**changes)
  out = capsys.readouterr().out.splitlines()
  assert out[0] == f"resuming {place.workdir} at step 2"
  assert out[1].startswith("train.steps: 2 -> 3, and the schedules follow")
  assert "at step 2 the learning rate goes from " in out[1]
  assert len(out) == 2
  assert runs.params(place.workdir)[0] == 3
  assert [x["step"] for x in runs.numbers(place.workdir)] == [1, 2, 3]
  assert list((place.workdir / "features").iterdir()) == [before]
  # What is free is known to whoever reads the run.
  config = checkpoint.Checkpoints(place.workdir).config()
  assert config == place.config(**changes)


def swapped(content):
  """A tokenizer.json with two letters exchanged."""
  raw = json.loads(content)
  vocabulary = raw["model"]["vocab"]
  vocabulary["a"], vocabulary["o"] = vocabulary["o"], vocabulary["a"]
  return json.dumps(raw)


CHANGES = {
  "in another order": lambda p: p.write("t.json", rows(8)[::-1]),
  "(other texts)": lambda p: p.write("t.json", rows(8, "An owl {}.")),
  "8 samples, .* -> 7 samples": lambda p: p.write("t.json", rows(7)),
  "(other pictures)": lambda p: Image.new("RGB", (64, 64), "blue").save(
    p.folder / "images/red.png"
  ),
  "data.tokenizer = ": lambda p: (p.folder / "tok.json").write_text(
    swapped((p.folder / "tok.json").read_text())
  ),
}


@pytest.mark.parametrize("says", CHANGES)
def test_what_was_replaced_under_its_name_is_refused(place, says):
  CHANGES[says](place)
  before = (place.workdir / "config.json").read_text()
  with pytest.raises(checkpoint.CheckpointError) as error:
    place.train(train__steps=4)
  text = str(error.value)
  assert "\n" not in text and "Put them back as they were" in text
  words = says.split(" .* ")
  assert all(word in text for word in words), text
  assert (place.workdir / "config.json").read_text() == before


def test_a_model_is_not_asked_with_another_tokenizer(place):
  shutil.copy(place.folder / "tok.json", place.folder / "kept.json")
  CHANGES["data.tokenizer = "](place)
  last = dict(data__tokenizer=str(place.folder / "tok.json"))
  raw = config_lib.to_dict(place.config(**last))
  (place.workdir / "config.json").write_text(json.dumps(raw))
  for ask in (api.load, evals_run.evaluate):
    with pytest.raises(checkpoint.CheckpointError, match="data.tokenizer"):
      ask(place.workdir)
  raw["data"]["tokenizer"] = str(place.folder / "kept.json")
  (place.workdir / "config.json").write_text(json.dumps(raw))
  assert api.load(place.workdir).config.data.tokenizer.endswith("kept.json")


def test_any_file_is_scored_at_any_budget(place):
  raw = config_lib.to_dict(place.config())
  (place.workdir / "config.json").write_text(json.dumps(raw))
  (place.folder / "t.json").unlink()
  (place.folder / "images").rename(place.folder / "pictures")
  with pytest.raises(errors.GazeError, match="nothing to evaluate on; name a"):
    evals_run.evaluate(place.workdir)
  with pytest.raises(errors.GazeError, match="goes with --data"):
    evals_run.evaluate(place.workdir, image_folder="pictures")
  held = place.write("held.json", rows(3))
  pictures = str(place.folder / "pictures")
  got = evals_run.evaluate(
    place.workdir, data=held, image_folder=pictures, others=[1, 99, 0.5, 0.0]
  )
  assert got["accuracy"].keys() == {
    *("gaze", "dense", "blind", "random_regions", "centre_regions"),
    *("gaze_k1", "gaze_k99", "gaze_share_0.5", "gaze_share_0"),
  }
  assert {c["n"] for c in got["accuracy"].values()} == {3}
  read = {k: v.get("visual_kv_fraction") for k, v in got["accuracy"].items()}
  assert read["gaze_k99"] == read["dense"] > read["gaze_share_0.5"]
  assert read["gaze_share_0.5"] > read["gaze_k1"] > read["gaze_share_0"]
  np.testing.assert_allclose(read["gaze_share_0"], 2 / 25, rtol=1e-5)
  assert got["data"]["samples"] == 3
  assert f"## {held}\n" in report.markdown(got)
  # A run that names the file scores the same.
  raw["data"] |= dict(eval_path=held, image_folder=pictures)
  raw["eval"]["budgets"] = [1]
  (place.workdir / "config.json").write_text(json.dumps(raw))
  again = evals_run.evaluate(place.workdir)["accuracy"]
  same = lambda a, b: np.testing.assert_equal(a, b)
  jax.tree.map(same, again["gaze_k1"], got["accuracy"]["gaze_k1"])
