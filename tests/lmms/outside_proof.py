"""lmms-eval with transformers' model and with ours, and our own command.

Not a test of the suite: it needs lmms-eval (launch/lmms.sh installs it).

  bash launch/lmms.sh --help
  PYTHONPATH=.:tests .venv-lmms/bin/python tests/lmms/outside_proof.py --out=DIR
    [--family=onevision]

A tiny LLaVA-1.5, or LLaVA-OneVision (SigLIP, tiles, Qwen2), made by
transformers is asked two tasks in local Parquet files by lmms-eval's own
llava_hf, by lmms-eval with our adapter on the converted
weights, live and from stored predictions, and by launch/benchmark.py. Texts are
compared item by item, once cut where the task's `until` says (llava_hf does not
cut), and the scores. It exits with 1 if anything differs.
"""

import argparse
import dataclasses
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import chat_families
import checkpoints
import datasets
import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).parents[2]
TOKENS = 16
UNTIL = "ASSISTANT:"
# One turn, whose content is a text for llava_hf and a list for us.
TEMPLATE = (
  "{% for m in messages %}{{ m.role.upper() + ': ' }}{% if m.content is string"
  " %}{{ m.content }}{% else %}{% for c in m.content %}{% if c.type == 'image'"
  " %}{{ '<image>\n' }}{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif"
  " %}{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{%"
  " endif %}"
)
# Our names, lmms-eval's, and their splits.
TASKS = {
  "textvqa": ("proof_textvqa", "textvqa/textvqa_val.yaml", "validation"),
  "chartqa": ("proof_chartqa", "chartqa/chartqa.yaml", "test"),
}


def llava(folder, tokenizer, image, video):
  config = checkpoints.llava_config(len(tokenizer), image_token_index=image)
  processor = checkpoints.llava_processor(tokenizer, chat_template=TEMPLATE)
  processor.save_pretrained(folder)
  return checkpoints.drawn(checkpoints.llava, config, 0.3)


def onevision(folder, tokenizer, image, video):
  config = checkpoints.onevision_config(
    len(tokenizer),
    image_token_index=image,
    video_token_index=video,
    vision_aspect_ratio="anyres_max_4",
  )
  tokenizer.save_pretrained(folder)
  checkpoints.onevision_pixels(checkpoints.PINPOINTS).save_pretrained(folder)
  return checkpoints.drawn(checkpoints.onevision, config, 0.3)


# Each with the command in which its llava_hf runs.
FAMILIES = {
  "llava": (llava, ("-m", "lmms_eval")),
  "onevision": (
    *(onevision, (str(pathlib.Path(__file__).parent / "onevision_lmms.py"),)),
  ),
}


def make_model(folder, family):
  chat = chat_families.FAMILIES["llava-1.5"]
  marks = (*chat.marks, "<video>")
  chat_families.save(dataclasses.replace(chat, marks=marks), folder)
  tokenizer = chat_families.theirs(folder)
  tokenizer.chat_template = TEMPLATE
  marks = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
  model = FAMILIES[family][0](folder, tokenizer, *marks)
  with torch.no_grad():  # words, not single bytes, nor marks
    model.lm_head.weight[:300] = 0
    model.lm_head.weight[marks] = 0
  model.save_pretrained(folder)
  checkpoints.to_ours(folder, folder.with_name("ours"))


def processor_of(folder):
  """Theirs, which for OneVision would need torchvision."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  if (folder / "processor_config.json").exists():
    return transformers.LlavaProcessor.from_pretrained(folder)
  return checkpoints.onevision_processor(tokenizer, checkpoints.PINPOINTS)


def said(folder, pictures, questions):
  """What transformers generates, which half of the golds are made of."""
  model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
  processor = processor_of(folder)
  out = []
  for picture, question in zip(pictures, questions, strict=True):
    text = f"USER: <image>\n{question} ASSISTANT:"
    given = processor(images=picture, text=text, return_tensors="pt")
    with torch.no_grad():
      ids = model.generate(**given, max_new_tokens=TOKENS, do_sample=False)
    ids = ids[0, given["input_ids"].shape[1] :]
    out.append(processor.decode(ids, skip_special_tokens=True))
  return out


def make_data(folder, model, count):
  """Two tasks about random pictures, of which it gets half right.

  Where it says what ends an answer, it is wrong in any case: llava_hf does not
  cut there, and would have another score.
  """
  from gaze_jax.tasks import registry  # after torch, which must come first

  rng = np.random.default_rng(0)
  words = "what where who red two fox top left it this see rest".split()
  for task in TASKS:
    rows = []
    for number in range(count):
      size = tuple(int(x) for x in rng.integers(20, 60, 2))
      question = " ".join(rng.choice(words, 4)) + "?"
      picture = checkpoints.picture(size, number)
      rows.append(dict(question=question, image=picture))
    prompts = [registry.TASKS[task].prompt(row) for row in rows]
    texts = said(model, [row["image"] for row in rows], prompts)
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
      right = number % 2 and UNTIL not in text
      gold = text.strip() if right else "nothing of it"
      if task == "chartqa":
        row |= dict(type=("human_test", "augmented_test")[number % 3 == 0])
        row |= dict(answer=gold)
      else:
        row |= dict(answers=[gold] * 4 + ["other"] * 6, question_id=number)
        row |= dict(image_id=f"picture {number // 2}", ocr_tokens=[])
    where = folder / task
    where.mkdir(parents=True)
    stored = datasets.Dataset.from_list(rows)
    stored = stored.cast_column("image", datasets.Image())
    stored.to_parquet(str(where / f"{TASKS[task][2]}-00000-of-00001.parquet"))


def make_tasks(folder, data):
  """lmms-eval's own tasks on the local files, of so many new tokens."""
  import lmms_eval  # only to find its tasks

  inside = pathlib.Path(lmms_eval.__file__).parent / "tasks"
  folder.mkdir()
  for task, (name, path, split) in TASKS.items():
    file = data / task / f"{split}-00000-of-00001.parquet"
    lines = [
      f"include: {inside / path}",
      f"task: {name}",
      "dataset_path: parquet",
      "dataset_kwargs:",
      "  data_files:",
      f"    {split}: {file}",
      "generation_kwargs:",
      f"  until: ['{UNTIL}']",
      f"  max_new_tokens: {TOKENS}",
      "  temperature: 0",
      "  do_sample: false",
    ]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")


def lmms(out, tasks, model, arguments, command=("-m", "lmms_eval")):
  """Texts by task and document, and scores, of a run of lmms-eval."""
  command = [
    *(sys.executable, *command, "eval", "--model", model),
    *("--model_args", arguments, "--tasks"),
    ",".join(name for name, _, _ in TASKS.values()),
    *("--include_path", str(tasks), "--output_path", str(out)),
    *("--log_samples", "--batch_size", "1"),
  ]
  environment = os.environ | dict(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OPENAI_API_KEY="none"
  )
  environment.setdefault("HF_HOME", str(out.parent / "hf"))
  # Our package as it is installed, with its entry points.
  environment.pop("PYTHONPATH", None)
  done = subprocess.run(
    command, env=environment, cwd=out.parent, capture_output=True, text=True
  )
  found = list(out.rglob("*_results.json"))
  if not found:  # it exits with 0 on failure
    sys.exit(f"lmms-eval left no results:\n{done.stdout}\n{done.stderr}")
  scores = json.loads(found[0].read_text())["results"]
  texts = {}
  for task, (name, _, _) in TASKS.items():
    (path,) = out.rglob(f"*_samples_{name}.jsonl")
    for line in io.StringIO(path.read_text(encoding="utf-8")):
      one = json.loads(line)
      texts[task, one["doc_id"]] = response(one)
  return texts, {task: score_of(scores[TASKS[task][0]]) for task in TASKS}


def response(sample):
  """The text, which is left out where it equals the filtered one."""
  found = sample.get("resps") or sample["filtered_resps"]
  while isinstance(found, list):
    found = found[0]
  return found.split(UNTIL)[0].strip()


def score_of(results):
  for key in ("exact_match,none", "relaxed_overall,none"):
    if key in results:
      return 100 * results[key]
  raise SystemExit(f"no score among {sorted(results)}")


def ours(out, data, model):
  """The same of launch/benchmark.py."""
  command = [
    *(sys.executable, "launch/benchmark.py", f"--workdir={model}"),
    *(f"--data={data}", f"--tasks={','.join(TASKS)}", "--protocol=lmms"),
    f"--out={out}",
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if done.returncode:
    sys.exit(done.stderr)
  results = json.loads((out / "results.json").read_text())["tasks"]
  texts = {}
  for task in TASKS:
    path = out / "predictions" / task / "0.jsonl"
    for line in io.StringIO(path.read_text(encoding="utf-8")):
      one = json.loads(line)
      texts[task, one["place"]] = one["text"].split(UNTIL)[0].strip()
  return texts, {task: results[task]["score"] for task in TASKS}


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--items", type=int, default=60)
  parser.add_argument("--family", choices=FAMILIES, default="llava")
  given = parser.parse_args()
  out = given.out.resolve()
  model, data, tasks = out / "theirs", out / "data", out / "tasks"
  if not tasks.exists():  # so that a second run goes on from there
    model.mkdir(parents=True)
    make_model(model, given.family)
    make_data(data, model, given.items)
    make_tasks(tasks, data)
  for name in ("hf_run", "command", "live", "replay"):
    shutil.rmtree(out / name, ignore_errors=True)
  wanted, scores = lmms(
    out / "hf_run",
    tasks,
    "llava_hf",
    f"pretrained={model},device=cpu,device_map=cpu",
    FAMILIES[given.family][1],
  )
  converted = out / "ours"
  names = ";".join(f"{theirs}:{task}" for task, (theirs, *_) in TASKS.items())
  runs = {
    "our command": ours(out / "command", data, converted),
    "our adapter": lmms(
      *(out / "live", tasks, "gaze_jax", f"pretrained={converted}")
    ),
    "stored predictions": lmms(
      *(out / "replay", tasks, "gaze_jax"),
      f"predictions={out / 'command'},names={names}",
    ),
  }
  different, empty = len(set(wanted.values())), list(wanted.values()).count("")
  print(f"transformers: {scores}; {different} different texts, {empty} empty")
  wrong = different < 50 or empty > 0
  wrong |= not all(20 <= score <= 80 for score in scores.values())
  for name, (texts, found) in runs.items():
    differ = [key for key in wanted if texts.get(key) != wanted[key]]
    same = all(abs(found[task] - scores[task]) < 1e-9 for task in TASKS)
    print(f"{name}: {found}; {len(differ)} of {len(wanted)} texts differ")
    for key in differ[:3]:
      print("  ", key, repr(wanted[key]), repr(texts.get(key)))
    wrong |= bool(differ) or not same or texts.keys() != wanted.keys()
  sys.exit(int(wrong))


if __name__ == "__main__":
  main()
