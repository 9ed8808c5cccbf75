"""Scores under protocol "lmms" against lmms-eval 0.7.3 itself.

Not a test of the suite: it needs lmms-eval, in an environment of its own.

  python3.11 -m venv lmms && lmms/bin/pip install --no-deps lmms-eval==0.7.3
  lmms/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate av pillow \
    loguru datasets pandas Levenshtein pytz evaluate aiohttp sqlitedict \
    opencv-python-headless sympy tenacity jsonlines sacrebleu numexpr \
    pytablewriter tqdm-multiprocess zss openai decord
  HF_HUB_OFFLINE=1 HF_HOME=lmms OPENAI_API_KEY=none PYTHONPATH=. \
    lmms/bin/python tests/evals/lmms_parity.py --n=2000

For each metric it prints how many predictions were compared and how many
differ; then how many differ under protocol "default", by the rule that says so.
It exits with 1 if anything is left unexplained.
"""

import argparse
import collections
import dataclasses
import random
import string
import sys
from collections.abc import Callable

import lmms_inputs
import lmms_rules
import loguru
import pandas as pd
from lmms_eval.api import metrics
from lmms_eval.tasks._task_utils import mcq_extract
from lmms_eval.tasks._task_utils import vqa_eval_metric
from lmms_eval.tasks.ai2d import utils as ai2d
from lmms_eval.tasks.chartqa import utils as chartqa
from lmms_eval.tasks.cv_bench import utils as cv_bench
from lmms_eval.tasks.egoschema import utils as egoschema
from lmms_eval.tasks.longvideobench import utils as longvideobench
from lmms_eval.tasks.mathvista import utils as mathvista
from lmms_eval.tasks.mlvu import utils as mlvu
from lmms_eval.tasks.mmbench import mmbench_evals
from lmms_eval.tasks.mme import utils as mme
from lmms_eval.tasks.mmmu import utils as mmmu
from lmms_eval.tasks.mmvp import utils as mmvp
from lmms_eval.tasks.nextqa import utils as nextqa
from lmms_eval.tasks.ocrbench import utils as ocrbench
from lmms_eval.tasks.pope import utils as pope
from lmms_eval.tasks.realworldqa import utils as realworldqa
from lmms_eval.tasks.scienceqa import utils as scienceqa
from lmms_eval.tasks.seedbench import utils as seedbench
from lmms_eval.tasks.tempcompass import utils as tempcompass
from lmms_eval.tasks.textvqa import utils as textvqa
from lmms_eval.tasks.videomme import utils as videomme

from gaze_jax.evals import scoring
from gaze_jax.evals.scoring import text_vqa
from gaze_jax.evals.scoring import totals

Reference = lmms_inputs.Reference
# What lmms-eval draws at random counts as no answer.
random.choice = lambda choices: None
# The judge gives back what it is asked about.
_judged = {}
mathvista.mathvista_evaluator.get_chat_response = lambda *_, **__: _judged[
  "text"
]

# What needs a judge counts as no answer, and 0.
tempcompass.get_eval_result = lambda *_, **__: (None, 0)
loguru.logger.disable("lmms_eval")

# --- lmms-eval's verdicts: value, and what it parsed ("..." if it isn't told).


def their_textvqa(text: str, ref: Reference) -> tuple:
  doc = {"answers": list(ref["answers"]), "question_id": 0}
  out = textvqa.textvqa_process_results(doc, [text])
  return out["exact_match"], out["submission"]["answer"]


def their_gqa(text: str, ref: Reference) -> tuple:
  out = metrics.exact_match_hf_evaluate(
    [text], [ref["answer"]], ignore_case=True, ignore_punctuation=True
  )
  return out["exact_match"], ...


def their_chartqa(text: str, ref: Reference) -> tuple:
  return chartqa.relaxed_correctness(text, ref["answer"]), ...


def their_realworldqa(text: str, ref: Reference) -> tuple:
  out = realworldqa.realworldqa_process_results(ref, [text])
  return out["exact_match"], ...


def their_mmmu_open(text: str, ref: Reference) -> tuple:
  found = mmmu.parse_open_response(text)
  return mmmu.eval_open(ref["answer"], found), ...


def their_anls(text: str, ref: Reference) -> tuple:
  return metrics.anls(ref["answers"], [text])["anls"], ...


def their_ocrbench(text: str, ref: Reference) -> tuple:
  out = ocrbench.ocrbench_process_results(ref, [text])
  return out["ocrbench_accuracy"]["score"], ...


def their_mme(text: str, ref: Reference) -> tuple:
  label = mme.parse_pred_ans(text)
  return label == ref["answer"].lower(), label


def their_pope(text: str, ref: Reference) -> tuple:
  out = pope.pope_process_results({**ref, "question_id": 0}, [text])
  out = out["pope_accuracy"]
  known = out["prediction"] in ("yes", "no")
  return out["score"], out["prediction"] if known else "other"


def their_mmvp(text: str, ref: Reference) -> tuple:
  out = mmvp.mmvp_process_results(ref, [text])["mmvp_accuracy"]
  return out["is_correct"], out["pred_letter"] or None


def their_scienceqa(text: str, ref: Reference) -> tuple:
  return scienceqa.sqa_process_results(ref, [text])["exact_match"], ...


def their_videomme(text: str, ref: Reference) -> tuple:
  letter = videomme.extract_characters_regex(text)
  return letter == ref["answer"], letter


def their_mlvu(text: str, ref: Reference) -> tuple:
  letter = mlvu.extract_characters_regex(text)
  gold = string.ascii_uppercase[ref["candidates"].index(ref["answer"])]
  return letter == gold, letter or None


def their_mmmu_mc(text: str, ref: Reference) -> tuple:
  info, names = mmmu.get_multi_choice_info(ref["options"])
  letter = mmmu.parse_multi_choice_response(text, names, info)
  return letter == ref["answer"], letter


def their_mc5(text: str, ref: Reference) -> tuple:
  options, gold = ref["options"], string.ascii_uppercase[ref["answer"]]
  names = list(string.ascii_uppercase[: len(options)])
  info = dict(zip(names, options, strict=True))
  parse = {
    "nextqa": nextqa.parse_multi_choice_response,
    "egoschema": lambda *a: egoschema.parse_multi_choice_response(*a)[0],
    "longvideobench": longvideobench.parse_multi_choice_response,
  }
  if ref["dataset"] in parse:
    letter = parse[ref["dataset"]](text, names, info)
  elif ref["dataset"] == "seed":
    doc = {"answer": gold, "data_type": "image", "question_id": 0}
    out = seedbench.seed_process_result(doc, [text])["seed_all"]
    return out["pred"].lower().strip() == gold.lower(), ...
  else:
    first = ai2d.MultiChoiceRegexFilter.apply(None, [[text]], [{}])[0].strip()
    return their_gqa(first, {"answer": gold})
  return letter == gold, letter


def their_mathvista(text: str, ref: Reference) -> tuple:
  _judged["text"] = text
  doc = {**ref, "query": "", "pid": 0, "metadata": {}}
  out = mathvista.mathvista_process_results(doc, [text])["submission"]
  return out["true_false"], out["prediction"]


def their_mmbench(text: str, ref: Reference) -> tuple:
  rows = mmbench_evals.MMBench_Evaluator()
  # Its data set has "nan" for an option that is not there.
  texts = [*ref["options"], *["nan"] * 4][:4]
  item = dict(zip("ABCD", texts, strict=True)) | {"prediction": text}
  item["index"] = 7
  frame = pd.DataFrame([item])
  value = rows.eval_sub_data(frame, {7: ref["answer"]}, static_only=True)
  letter = rows.prefetch_answer(item)
  letter = letter or mcq_extract.extract_mcq_answer(text, choices=list("ABCD"))
  return value, letter or None


def their_cv_bench(text: str, ref: Reference) -> tuple:
  doc = {**ref, **dict.fromkeys(("idx", "type", "task", "source"))}
  out = cv_bench.cv_bench_process_results(doc, [text])["cv_bench_acc"]
  return out["is_correct"], out["pred_parsed"] or None


def their_tempcompass(kind: str) -> Callable[[str, Reference], tuple]:
  process = getattr(tempcompass, f"tempcompass_process_results_{kind}")

  def theirs(text: str, ref: Reference) -> tuple:
    doc = {"question": "", **ref, "video_id": "1", "dim": "order"}
    out = process(doc, [text])["avg_accuracy"]
    return out["rating"], ... if out["match_success"] else None

  return theirs


# --- The comparison.


@dataclasses.dataclass(frozen=True)
class Case:
  metric: str
  theirs: Callable[[str, Reference], tuple]
  reference: Callable[[random.Random], dict]
  name: str = ""


CASES = (
  Case("textvqa", their_textvqa, lmms_inputs.answers),
  Case("gqa", their_gqa, lmms_inputs.answer),
  Case("chartqa", their_chartqa, lmms_inputs.number),
  Case("realworldqa", their_realworldqa, lmms_inputs.letter_or_text),
  Case("mmmu_open", their_mmmu_open, lmms_inputs.text_or_list),
  Case("anls", their_anls, lmms_inputs.answers),
  Case("ocrbench", their_ocrbench, lmms_inputs.ocr),
  Case("mme_label", their_mme, lmms_inputs.yes_no),
  Case("pope_label", their_pope, lmms_inputs.yes_no),
  Case("mmvp", their_mmvp, lmms_inputs.pair),
  Case("scienceqa", their_scienceqa, lmms_inputs.choices),
  Case("videomme_letter", their_videomme, lmms_inputs.letter),
  Case("mlvu", their_mlvu, lmms_inputs.candidates),
  Case("mmmu_mc", their_mmmu_mc, lmms_inputs.options),
  *(
    Case("mc5", their_mc5, lmms_inputs.five(dataset), f"mc5 {dataset}")
    for dataset in ("nextqa", "egoschema", "longvideobench", "ai2d", "seed")
  ),
  Case("mathvista", their_mathvista, lmms_inputs.problem),
  Case("mmbench", their_mmbench, lmms_inputs.up_to_four),
  Case("cv_bench", their_cv_bench, lmms_inputs.bracketed),
  *(
    Case(f"tempcompass_{kind}", their_tempcompass(kind), reference)
    for kind, reference in (
      ("multi_choice", lmms_inputs.line),
      ("yes_no", lmms_inputs.yes_no),
      ("caption_matching", lmms_inputs.caption),
    )
  ),
)


def compare(case: Case, n: int, seed: int) -> int:
  """Prints one case; returns what is left unexplained."""
  name = case.name or case.metric
  rng = random.Random(f"{name} {seed}")
  differences, right, found = [], 0, 0
  why: collections.Counter[str] = collections.Counter()
  for _ in range(n):
    ref = case.reference(rng)
    text = lmms_inputs.prediction(rng, ref).strip()
    value, parsed = case.theirs(text, ref)
    lmms = scoring.score(case.metric, text, ref, "lmms")
    right, found = right + (lmms.value > 0), found + (lmms.parsed is not None)
    same = abs(float(value) - lmms.value) < 1e-9
    if not same or (parsed is not ... and parsed != lmms.parsed):
      differences.append((text, ref, (value, parsed), lmms))
    ours = scoring.score(case.metric, text, ref)
    told = parsed is not ... and ours.parsed != lmms.parsed
    if told or abs(ours.value - lmms.value) > 1e-9:
      rules = lmms_rules.RULES.get(case.metric, ())
      names = (rule for rule, why in rules if why(text, ref, ours, lmms))
      rule = next(names, "UNEXPLAINED")
      why[rule] += 1
      if rule == "UNEXPLAINED" and why[rule] <= 3:
        print("  ", repr(text), ref, ours, lmms)
  print(
    f"{name:20} {n} compared, {right} right, {found} parsed: "
    f"{len(differences)} differ"
  )
  for difference in differences[:3]:
    print("  ", *difference)
  for rule, count in why.most_common():
    print(f"    default: {count:5} {rule}")
  return len(differences) + why["UNEXPLAINED"]


def compare_normalizer(n: int, seed: int) -> int:
  rng = random.Random(seed)
  theirs = vqa_eval_metric.EvalAIAnswerProcessor()
  table = theirs.CONTRACTIONS
  known = [x for x in table if x == x.lower() and table[x] != x]
  extra = [*known, *table.values()]
  wrong = []
  for i in range(n):
    text = lmms_inputs.prediction(rng, {"answers": rng.choices(extra, k=3)})
    # Each contraction by itself first.
    text = extra[i] if i < len(extra) else text
    if theirs(text) != text_vqa.normalize(text, periods=32):
      wrong.append(text)
  same = {x: table[x] for x in known} == text_vqa._CONTRACTIONS
  print(
    f"{'EvalAI normalizer':20} {n} compared: {len(wrong)} differ", wrong[:3]
  )
  print(f"    contractions: {len(known)}, the same: {same}")
  return len(wrong) + (not same)


# --- Totals.


def their_totals(rows: list[dict]) -> dict[tuple[str, str], float]:
  """Figures of one set of items, each of which has every task's fields."""
  domains = [x for names in mmmu.DOMAIN_CAT2SUB_CAT.values() for x in names]
  yes = [
    {
      "prediction": row["said"],
      "ground_truth": row["answer"],
      "score": row["said"] == row["answer"],
    }
    for row in rows
  ]
  subjects = [
    {
      "id": row["id"],
      "subdomain": mmmu.extract_subset_name(row["id"]),
      "question_type": "multiple-choice",
      "answer": "A",
      "parsed_pred": ["A" if row["score"] else "B"],
    }
    for row in rows
  ]
  assert {x["subdomain"] for x in subjects} <= set(domains)
  pairs = [
    {"pair_index": (row["Index"] - 1) // 2, "is_correct": row["score"] == 1}
    for row in rows
  ]
  tasks = [
    {"task_type": row["task"], "answer": 1, "pred_answer": row["score"]}
    for row in rows
  ]
  seen = [row for row in rows if row["category"] in totals._MME["perception"]]
  sources = [row | {"is_correct": row["score"]} for row in rows]
  return {
    ("mme", "perception"): mme.mme_aggregate_results(seen),
    ("mmvp", "pair_accuracy"): mmvp.mmvp_aggregate_pair_results(pairs),
    ("mlvu_dev", "mean"): mlvu.mlvu_aggregate_results_dev(tasks) / 100,
    ("mmmu_val", "mean"): mmmu.mmmu_aggregate_results(subjects),
    ("cv_bench", "mean"): cv_bench.cv_bench_default_aggregate_results(sources),
    ("pope", "f1"): pope.pope_aggregate_f1_score(yes),
    ("pope", "yes_ratio"): pope.pope_aggregate_yes_ratio(yes),
    ("pope", "accuracy"): pope.pope_aggregate_accuracy(yes),
    ("pope", "precision"): pope.pope_aggregate_precision(yes),
    ("pope", "recall"): pope.pope_aggregate_recall(yes),
  }


def compare_totals(n: int, seed: int) -> int:
  """Totals of 2 n items; lmms-eval rounds MMMU's to five decimals."""
  rng = random.Random(seed)
  some = lambda *names: rng.choices(names)[0]
  categories = [x for names in totals._MME.values() for x in names]
  rows = []
  for image in range(n):
    category = some(*categories)
    rows += [
      {
        "category": category,
        "question_id": f"{category}/{image}",
        "Index": 2 * image + i + 1,
        "task": some("count", "ego", "needle", "order", "plotQA")
        if image > 1
        else ("anomaly_reco", "topic_reasoning")[i],
        "id": f"validation_{some('Art_Theory', 'Math', 'Music')}_{image}",
        "source": some("ADE20K", "COCO", "Omni3D"),
        "answer": some("yes", "no"),
        "said": some("yes", "no"),
        "split": some("random", "popular", "adversarial"),
        "score": float(rng.random() < 0.7),
      }
      for i in range(2)
    ]
  left = 0
  for (task, figure), value in their_totals(rows).items():
    ours = totals.total(
      task,
      [
        totals.Row(
          row | {"question_type": row["task"], "category": row["split"]}
          if task != "mme"
          else row,
          scoring.Verdict(
            float(row["said"] == row["answer"])
            if task == "pope"
            else row["score"],
            row["said"],
          ),
        )
        for row in rows
      ],
      "lmms",
    )[figure]
    same = abs(ours - value) < (1e-5 if task == "mmmu_val" else 1e-9)
    left += not same
    print(f"{task} {figure}: {ours:.6f}, lmms-eval {value:.6f}")
  return left


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument("--n", type=int, default=2000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", default="")
  args = parser.parse_args()
  left = compare_normalizer(max(args.n, 10_000), args.seed)
  for case in CASES:
    if args.only in (case.name or case.metric):
      left += compare(case, args.n, args.seed)
  left += compare_totals(args.n, args.seed)
  print("left unexplained:", left)
  return int(left > 0)


if __name__ == "__main__":
  sys.exit(main())
