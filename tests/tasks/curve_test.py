"""Scores of one model by budget: intervals by hand, pairs, controls."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from gaze_jax.evals import scoring
from gaze_jax.evals.scoring import totals
from gaze_jax.tasks import asking
from gaze_jax.tasks import curve
from gaze_jax.tasks import registry
from gaze_jax.tasks import run

GQA, MME = registry.TASKS["gqa"], registry.TASKS["mme"]


def rows(values, **fields):
  some = [{k: v[i] for k, v in fields.items()} for i in range(len(values))]
  return [
    totals.Row(doc, scoring.Verdict(float(value), "x"))
    for doc, value in zip(some, values, strict=True)
  ]


def test_means_of_items_are_what_their_total_gives():
  """The short way of a mean, and the long one, on the same samples."""
  rng = np.random.default_rng(0)
  values = rng.random(40)
  clusters = [str(x) for x in rng.integers(12, size=40)]
  some = {"dense": rows(values)}
  short = curve.bootstrap(GQA, some, clusters, draws=20)["dense"]
  total = dataclasses.replace(totals.TOTALS["gqa"], of_items=False)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(totals.TOTALS, "gqa", total)
    long = curve.bootstrap(GQA, some, clusters, draws=20)["dense"]
  np.testing.assert_allclose(short, long, rtol=1e-12)
  assert short.std() > 0.5


def test_clusters_are_drawn_whole():
  """Of two clusters, one right and one wrong, a sample has 0, 50 or 100."""
  some = {"dense": rows([1, 1, 1, 0, 0, 0])}
  drawn = curve.bootstrap(GQA, some, ["a"] * 3 + ["b"] * 3)["dense"]
  scores, counts = np.unique(drawn, return_counts=True)
  assert scores.tolist() == [0, 50, 100]
  # A quarter, a half, a quarter; five standard deviations of 1,000 draws.
  assert np.abs(counts - [250, 500, 250]).max() < 5 * np.sqrt(250)
  assert curve.interval(drawn) == [0, 100]


def test_differences_are_of_the_same_clusters():
  """A condition that is always one item better is so in every sample."""
  clusters = [str(i // 2) for i in range(20)]
  worse = np.arange(20) % 4 == 0  # half of the first items of each cluster
  better = worse | (np.arange(20) % 2 == 1)
  some = {"dense": rows(worse), "k1": rows(better)}
  drawn = curve.bootstrap(GQA, some, clusters)
  assert drawn["dense"].std() > 1
  np.testing.assert_allclose(drawn["k1"] - drawn["dense"], 50, rtol=1e-12)


def test_a_total_that_tells_clusters_apart_is_computed_anew():
  """MME: a picture that is drawn twice is two pictures of two questions."""
  ids = ["count/1", "count/1", "count/2", "count/2"]
  some = rows([1, 1, 1, 0], question_id=ids, category=["count"] * 4)
  drawn = curve.bootstrap(MME, {"dense": some}, ids)["dense"]
  # acc + acc+: 100 + 100 of both pictures right, 75 + 50, 50 + 0.
  assert np.unique(drawn).tolist() == [50, 125, 200]


def test_pairs_and_rotations_are_numbered_anew():
  mmvp = registry.TASKS["mmvp"]
  some = rows([1, 1, 1, 0], Index=[1, 2, 299, 300])
  clusters = [mmvp.cluster(row.doc) for row in some]
  assert clusters == ["pair 0", "pair 0", "pair 149", "pair 149"]
  drawn = curve.bootstrap(mmvp, {"dense": some}, clusters)["dense"]
  assert np.unique(drawn).tolist() == [0, 50, 100]
  mmbench = registry.TASKS["mmbench_en_dev"]
  some = rows([1, 1, 1, 0], index=[7, 1_000_007, 9, 3_000_009])
  clusters = [mmbench.cluster(row.doc) for row in some]
  drawn = curve.bootstrap(mmbench, {"dense": some}, clusters)["dense"]
  assert np.unique(drawn).tolist() == [0, 50, 100]


def test_a_sample_without_a_headline_leaves_no_interval():
  cv_bench = registry.TASKS["cv_bench"]
  some = rows([1, 0, 1], source=["COCO", "ADE20K", "Omni3D"])
  drawn = curve.bootstrap(cv_bench, {"dense": some}, ["1", "2", "3"])["dense"]
  assert np.isnan(drawn).any() and curve.interval(drawn) is None


def test_each_budget_is_asked_by_score_and_at_random():
  options = asking.Options(top_k=7, batch_size=3)
  asked = curve.conditions([2, 0.25], options)
  assert list(asked) == [
    *("dense", "blind"),
    *("k2", "random_k2", "share_0.25", "random_share_0.25"),
  ]
  budget = lambda one: (one.top_k, one.share, one.regions, one.blind)
  assert {name: budget(one) for name, one in asked.items()} == {
    "dense": (None, 1.0, "scores", False),
    "blind": (None, None, "scores", True),
    "k2": (2, None, "scores", False),
    "random_k2": (2, None, "random", False),
    "share_0.25": (None, 0.25, "scores", False),
    "random_share_0.25": (None, 0.25, "random", False),
  }
  assert {one.batch_size for one in asked.values()} == {3}


def test_the_curve_of_a_model(gqa, scripted, tmp_path, monkeypatch):
  task, data = gqa
  monkeypatch.setattr(curve, "_LEAST_CLUSTERS", 3)
  suite = run.Suite(tasks=[task], data=data)
  model = scripted()
  asked = curve.conditions([1], asking.Options())
  found = curve.run(model, suite, run.load(suite), asked, tmp_path / "out")
  points = found["tasks"]["gqa"]
  assert points["dense"]["score"] == pytest.approx(100 * 5 / 6)
  assert points["blind"]["score"] == 0
  # The scripted model answers alike at every budget.
  assert points["k1"]["against_dense"] == {
    "difference": 0,
    "interval_95": [0, 0],
  }
  low, high = points["blind"]["against_dense"]["interval_95"]
  assert low < points["blind"]["against_dense"]["difference"] < high < 0
  by_regions = {r.regions for r in model.asked if r.after}
  assert by_regions == {"scores", "random"}
  # Random regions are those of the item, whichever run asks it.
  seeds = {r.question: r.seed for r in model.asked if r.regions == "random"}
  assert len(set(seeds.values())) == 6
  stored = json.loads((tmp_path / "out" / "curve.json").read_text())
  assert stored == found
  text = (tmp_path / "out" / "curve.md").read_text()
  assert "| random_k1 | 83.3 (" in text and "| blind | 0.0 (0.0 to 0.0)" in text
  with Image.open(tmp_path / "out" / "gqa.png") as picture:
    assert len(picture.convert("RGB").getcolors(2**20)) > 10
  # What was asked once is not asked again.
  again = scripted()
  assert (
    curve.run(again, suite, run.load(suite), asked, tmp_path / "out") == found
  )
  assert not again.asked


def test_a_curve_of_a_part_of_the_items_says_so(gqa, scripted, tmp_path):
  task, data = gqa
  suite = run.Suite(tasks=[task], data=data, limit=2)
  asked = curve.conditions([1], asking.Options())
  curve.run(scripted(), suite, run.load(suite), asked, tmp_path / "out")
  text = (tmp_path / "out" / "curve.md").read_text()
  # Of one picture there is no interval.
  assert "| k1 (incomplete) | 100.0 | +0.0 | 2 | 1 |" in text
