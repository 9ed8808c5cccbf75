"""Every row of the registry: loaded, asked, scored, reported."""

import json
import random

import pytest

from gaze_jax import api
from gaze_jax.demo import easy_vqa
from gaze_jax.evals import scoring
from gaze_jax.tasks import asking
from gaze_jax.tasks import predictions
from gaze_jax.tasks import registry
from gaze_jax.tasks import results
from gaze_jax.tasks import run
from gaze_jax.tasks import task as task_lib
from gaze_jax.train import loop
from tests.tasks import published
from tests.tasks import published_letters
from tests.tasks import published_videos

WRITERS = (
  published.WRITERS | published_letters.WRITERS | published_videos.WRITERS
)
# Rows that read the files of another.
SHARED = {
  "textvqa_ocr": "textvqa",
  "mathvista_cot": "mathvista_format",
  "videomme_sub": "videomme",
  "videomme_official": "videomme",
  "mlvu_dev_official": "mlvu_dev",
  "nextqa_mc_lmms": "nextqa_mc",
}
FORMS = 3  # the most that a task is written in
OPTIONS = asking.Options(frames=2)


def write_all(root, form):
  """All data sets, each in its form of a number, or its last."""
  for name, writers in WRITERS.items():
    if name not in SHARED:
      [*writers.values()][min(form, len(writers) - 1)](root)


def all_of(root, **how):
  return run.Suite(tasks=[*registry.TASKS.values()], data=str(root), **how)


def ask(model, suite, out):
  return run.run(model, suite, run.load(suite), {out: OPTIONS})[out]


def untimed(out):
  found = json.loads((out / "results.json").read_text())
  assert found.pop("timing").keys() == registry.TASKS.keys()
  return found


def test_every_row_has_files():
  assert WRITERS.keys() | SHARED.keys() == registry.TASKS.keys()
  assert max(map(len, WRITERS.values())) == FORMS


@pytest.mark.parametrize("form", range(FORMS))
def test_all_rows_killed_three_times_at_random(form, scripted, tmp_path):
  write_all(tmp_path, form)
  suite = all_of(tmp_path)
  model = scripted()
  found = ask(model, suite, tmp_path / "whole")
  assert found["tasks"].keys() == registry.TASKS.keys()
  assert len(found["tasks"]) == 32
  for name, figures in found["tasks"].items():
    assert figures["score"] is not None and not figures["failed"], name
    # A few items are no published set.
    assert figures["n"] == figures["n_expected"] > 1, name
    assert not figures["complete"], name
    assert f"| {name} (incomplete) | " in results.markdown(found)
  rng, asked = random.Random(form), 0
  for _ in range(3):
    part = scripted(dies_at=rng.randrange(len(model.asked) // 3))
    with pytest.raises(KeyboardInterrupt):
      ask(part, suite, tmp_path / "killed")
    asked += len(part.asked)
    lines = sorted((tmp_path / "killed").rglob("*.jsonl"))
    with open(rng.choice(lines), "ab") as file:
      file.write(b'{"id": "torn')
  last = scripted()
  ask(last, suite, tmp_path / "killed")
  assert asked + len(last.asked) == len(model.asked)
  assert untimed(tmp_path / "killed") == untimed(tmp_path / "whole")


@pytest.mark.parametrize("protocol", scoring.PROTOCOLS)
def test_stored_answers_are_scored_by_either_protocol(
  protocol, scripted, tmp_path
):
  write_all(tmp_path, 0)
  ask(scripted(), all_of(tmp_path), tmp_path / "out")
  suite = all_of(tmp_path, protocol=protocol)
  found = run.score(suite, run.load(suite), tmp_path / "out")
  assert {of["protocol"] for of in found["tasks"].values()} == {protocol}


@pytest.mark.nightly
def test_all_rows_by_a_model(tiny_config, tmp_path):
  write_all(tmp_path / "data", 0)
  loop.train(tiny_config(train__steps=2), tmp_path / "run")
  model = api.load(tmp_path / "run")
  suite = all_of(tmp_path / "data", limit=2, partial=True)
  found = ask(model, suite, tmp_path / "out")
  for name, figures in found["tasks"].items():
    assert figures["n"] >= 2, name
    if name == "mlvu_dev_official":  # our own chat format has no system text
      said = predictions.read(tmp_path / "out", name).values()
      assert all("no system turn" in one.error for one in said)
      continue
    assert not figures["failed"] and figures["tokens"] > 0, name
    kv = figures["visual_kv"]
    assert 0 < kv["per_query_head"] <= kv["dense"] * 2, name


def test_the_published_set_of_easy_vqa():
  """The one of them that a registry has, all 9,673 of its items."""
  task = registry.TASKS["easy_vqa"]
  root = easy_vqa.folder("test").parents[3]
  items = task_lib.items(task, str(root))
  assert len(items) == task.items == 9673
  rows = easy_vqa.rows("test")
  by_id = {item.id: item for item in items}
  for row in (rows[0], rows[5000], rows[-1]):
    item, (asked, answered) = by_id[row["id"]], row["conversations"]
    assert f"<image>\n{task.prompt(item.fields)}" == asked["value"]
    assert item.fields["answer"] == answered["value"]
    path = item.images[0].source()
    assert path.endswith(f"images/{row['image']}")
