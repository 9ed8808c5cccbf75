"""Totals of tasks, by hand."""

import pytest

from gaze_jax.evals.scoring import ScoringError
from gaze_jax.evals.scoring import Verdict
from gaze_jax.evals.scoring import totals


def rows(*items):
  """Rows of (value, fields) or (value, parsed, fields)."""
  return [
    totals.Row(item[-1], Verdict(float(item[0]), item[1] if item[2:] else "x"))
    for item in items
  ]


PAIR = {"category": "count", "question_id": "1"}


def test_mean():
  some = rows((1, {}), (0, {}), (0.3, {}), (0.3, {}))
  for task in ("gqa", "textvqa", "docvqa_val", "seed", "egoschema_subset"):
    assert totals.total(task, some) == {"mean": 0.4}


def test_the_headline_is_one_of_the_figures():
  fields = {
    **{"category": "count", "question_id": 1, "Index": 1, "index": 1},
    **{"question_type": "Doc-oriented VQA", "id": "validation_Art_1"},
    **{"duration": "short", "duration_group": 15, "type": "CW", "task": "mc"},
    **{"source": "COCO", "answer": "yes", "kind": "what"},
  }
  pair = rows((1, "yes", fields), (0, "no", {**fields, "Index": 2, "index": 2}))
  pair += rows((1, "yes", {**fields, "Index": 3, "index": 3}))
  pair += rows((1, "yes", {**fields, "Index": 4, "index": 4}))
  for i, source in enumerate(("COCO", "ADE20K", "Omni3D", "Omni3D")):
    doc = {**pair[i].doc, "source": source, "question_id": i // 2}
    pair[i] = totals.Row(doc, pair[i].verdict)
  for task, rule in totals.TOTALS.items():
    assert isinstance(totals.total(task, pair)[rule.headline], float), task


def test_a_second_call_gives_the_same():
  some = rows((1, {"question_type": "Doc-oriented VQA"})) * 3
  first = totals.total("ocrbench", some)
  assert totals.total("ocrbench", some) == first
  items = rows((1, {"Index": 1}), (0, {"Index": 2}))
  assert totals.total("mmvp", iter(items)) == totals.total("mmvp", items)


def test_mme_by_hand():
  other = {"category": "count", "question_id": "2"}
  # Both right; one of two; the same id in another category is another image.
  some = rows((1, PAIR), (1, other), (1, PAIR), (0, other))
  some += rows(*[(1, {"category": "code_reasoning", "question_id": "1"})] * 2)
  out = totals.total("mme", some)
  assert out["acc"] == {"count": 75, "code_reasoning": 100}
  assert out["acc_plus"] == {"count": 50, "code_reasoning": 100}
  assert out["by_category"] == {"count": 125, "code_reasoning": 200}
  assert out["perception"] == 125 and out["cognition"] == 200


def test_all_of_mme_is_2000_and_800():
  names = [name for part in totals._MME.values() for name in part]
  docs = [{"category": x, "question_id": i} for x in names for i in range(3)]
  out = totals.total("mme", rows(*[(1, doc) for doc in docs * 2]))
  assert out["perception"] == 2000 and out["cognition"] == 800


@pytest.mark.parametrize("questions", [1, 3])
def test_mme_refuses_an_image_without_its_two_questions(questions):
  whole = rows((1, {**PAIR, "question_id": "whole"})) * 2
  with pytest.raises(ScoringError, match=f"'1' of count has {questions}"):
    totals.total("mme", whole + rows((1, PAIR)) * questions)


def test_mmvp_pairs_go_by_index():
  right = {1: 1, 2: 1, 3: 1, 4: 0, 6: 1}
  order = [4, 2, 6, 3, 1]  # not in pairs
  out = totals.total("mmvp", rows(*[(right[i], {"Index": i}) for i in order]))
  assert out == {
    "pair_accuracy": 0.5,
    "accuracy": 0.8,
    "incomplete_pairs": 1,
  }


def test_an_item_twice_is_refused():
  with pytest.raises(ScoringError, match="Index 3 is there 2 times"):
    totals.total("mmvp", rows((1, {"Index": 3}), (1, {"Index": 3})))
  with pytest.raises(ScoringError, match="index 3 is there 2 times"):
    totals.total("mmbench_en_dev", rows((1, {"index": 3}), (1, {"index": 3})))


@pytest.mark.parametrize(
  "task, key", [("mlvu_dev", "question_type"), ("tempcompass", "task")]
)
def test_mean_of_the_tasks_that_are_there(task, key):
  some = rows((1, {key: "count"}), *[(0, {key: "ego"})] * 3)
  out = totals.total(task, some)
  assert out == {"mean": 0.5, f"by_{key}": {"count": 1.0, "ego": 0.0}}


def test_mmmu_counts_items():
  art = {"id": "validation_Art_Theory_7"}
  some = rows((1, art), (0, {"id": "validation_Math_1"}), *[(0, art)] * 2)
  out = totals.total("mmmu_val", some)
  assert out["mean"] == 0.25
  assert out["by_subject"] == {"Art_Theory": pytest.approx(1 / 3), "Math": 0}


def test_mathvista_reports_the_official_figure():
  choice = {"question_type": "multi_choice", "choices": ["long", "x"]}
  some = rows(
    (1, "long", {**choice, "answer": "long"}),
    (0, None, {**choice, "answer": "x"}),  # the shortest, by chance right
    (0, None, {**choice, "answer": "long"}),
    (0, None, {"question_type": "free_form", "choices": None, "answer": "3"}),
  )
  expected = {"mean": 0.25, "official_default": 0.5}
  assert totals.total("mathvista_format", some) == expected
  assert totals.total("mathvista_cot", some) == expected


def test_pope_by_hand():
  # Said and gold: 2 true yes, 1 false yes, 2 missed yes, 3 true no.
  pairs = [("yes", "yes")] * 2 + [("yes", "no")] + [("no", "yes")] * 2
  pairs += [("no", "no")] * 3
  row = lambda said, gold, split: (
    *(said == gold, said),
    {"answer": gold.title(), "category": split},
  )
  random = rows(*[row(*pair, "random") for pair in pairs])
  of = totals.total("pope", random)["by_random"]
  assert of["precision"] == pytest.approx(2 / 3) and of["recall"] == 0.5
  assert of["f1"] == pytest.approx(4 / 7)
  assert of["accuracy"] == 5 / 8
  assert of["yes_ratio"] == 3 / 8  # of predictions, not of golds
  # What is neither yes nor no is a missed yes.
  popular = rows(row("yes", "yes", "popular"), row("other", "yes", "popular"))
  out = totals.total("pope", random + popular)
  assert out["by_popular"]["recall"] == 0.5
  assert out["by_popular"]["f1"] == pytest.approx(2 / 3)
  assert out["accuracy"] == 9 / 16  # the mean over splits
  # No yes is said, whether or not one is gold.
  for gold in ("yes", "no"):
    none = totals.total("pope", rows(row("no", gold, "random")))
    assert none["f1"] == none["precision"] == none["recall"] == 0


def test_ocrbench_counts_of_1000():
  doc = {"question_type": "Doc-oriented VQA"}
  some = rows((1, doc), (0, doc), (1, {"question_type": totals._OCRBENCH[0]}))
  out = totals.total("ocrbench", some)
  assert out["right"] == 2 and out["share_of_1000"] == 0.002
  assert len(out["by_type"]) == 10 and sum(out["by_type"].values()) == 2
  assert out["by_type"]["Doc-oriented VQA"] == 1


def test_videomme_by_duration_and_answered_only():
  short, long = {"duration": "short"}, {"duration": "long"}
  some = rows((1, "A", short), (0, "B", short), (1, "A", long), (0, "", long))
  assert totals.total("videomme", some) == {
    "mean": 0.5,
    "by_duration": {"long": 0.5, "short": 0.5},
    "answered_only": pytest.approx(2 / 3),
  }
  assert totals.total("videomme", some[3:])["answered_only"] == 0


@pytest.mark.parametrize(
  "task, key",
  [
    ("longvideobench_val", "duration_group"),
    ("nextqa_mc", "type"),
    ("chartqa", "type"),
  ],
)
def test_mean_of_items_beside_groups(task, key):
  some = rows((1, {key: 15}), *[(0, {key: 3600})] * 3)
  out = totals.total(task, some)
  assert out == {"mean": 0.25, f"by_{key}": {"15": 1.0, "3600": 0.0}}


def test_cv_bench_weighs_sources():
  of = {"ADE20K": [1, 1], "COCO": [0], "Omni3D": [1, 0, 0, 0]}
  some = rows(*[(x, {"source": name}) for name in of for x in of[name]])
  out = totals.total("cv_bench", some)
  assert out["2D"] == 0.5 and out["3D"] == 0.25 and out["mean"] == 0.375
  assert out["items"] == pytest.approx(3 / 7)
  with pytest.raises(ScoringError, match="'Omni3D' is missing"):
    totals.total("cv_bench", some[:3])


def test_mmbench_is_circular():
  right = {1: 1, 1_000_001: 1, 2_000_001: 0, 2: 1, 3: 0}
  out = totals.total(
    "mmbench_en_dev", rows(*[(right[i], {"index": i}) for i in right])
  )
  assert out["circular"] == pytest.approx(1 / 3)
  assert out["vanilla"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
  "task, some, says",
  [
    ("vqa", rows((1, {})), "task 'vqa' .* gqa, textvqa"),
    ("gqa", [], "gqa: there is no row"),
    ("videomme", rows((1, {"x": 1})), r"'duration' is missing; .*\['x'\]"),
    ("mme", rows((1, {**PAIR, "category": "x"})), "'x' is none of existence"),
    ("ocrbench", rows((1, {"question_type": "x"})), "'x' is none of Regular"),
  ],
)
def test_what_is_not_there_is_named(task, some, says):
  with pytest.raises(ScoringError, match=says):
    totals.total(task, some)


def test_pope_as_lmms_eval_pools_it():
  """By hand: two splits together, and the share of yes among golds."""
  row = lambda said, gold, split: (
    float(said == gold),
    said,
    {"answer": gold, "category": split},
  )
  some = rows(
    row("yes", "yes", "random"),
    row("yes", "no", "random"),
    row("no", "yes", "popular"),
    row("no", "no", "popular"),
    row("yes", "yes", "popular"),
  )
  out = totals.total("pope", some, "lmms")
  # 2 of 3 that say yes are right, and 2 of 3 golds are found.
  assert out["precision"] == out["recall"] == out["f1"] == pytest.approx(2 / 3)
  assert out["yes_ratio"] == 0.6 and out["accuracy"] == 0.6
  by_split = totals.total("pope", some)
  assert by_split["f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
  assert by_split["yes_ratio"] == pytest.approx((1 + 1 / 3) / 2)
