"""Questions about videos: Video-MME, MLVU, EgoSchema and others."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gaze_jax.data import samples
from gaze_jax.tasks import media
from gaze_jax.tasks import tables
from gaze_jax.tasks.options import lettered
from gaze_jax.tasks.task import LETTER
from gaze_jax.tasks.task import Fields
from gaze_jax.tasks.task import Files
from gaze_jax.tasks.task import Item
from gaze_jax.tasks.task import Task

_VIDEO_MME = (
  *("videoID", "duration", "domain", "sub_category", "task_type"),
  *("question_id", "question", "options", "answer"),
)
_SELECT = (
  "Select the best answer to the following multiple-choice question based on"
  " the video{}. Respond with only the letter (A, B, C, or D) of the correct"
  " option."
)
_AND_SUBTITLES = " and the subtitles"
_BEST = "The best answer is:"
_MLVU = ("video", "question", "candidates", "answer", "question_type")
_MLVU_SYSTEM = (
  "Carefully watch this video and pay attention to every detail. Based on your"
  " observations, select the best option that accurately addresses the"
  " question."
)
_EGO = ("q_uid", "question", *(f"option {i}" for i in range(5)))
_LONG = ("id", "question", "correct_choice", "video_path", "duration_group")
_NEXT = (
  *("video", "question", "answer", "qid", "type"),
  *(f"a{i}" for i in range(5)),
)
_COMPASS = ("multi-choice", "yes_no", "caption_matching")
_COMPASS_END = {
  "multi-choice": "\nPlease directly give the best option:",
  "yes_no": "\nPlease answer yes or no:",
  "caption_matching": "\nPlease directly give the best option:",
}
_FOLDERS = ("data", "videos", "video", "")


def _clip(folder: str, name: Any, *more: str) -> media.Clip:
  return media.Clip(folder, (*more, *_FOLDERS), str(name))


def _video_mme_tables(folder: str, files: Sequence[str]) -> Iterator[Item]:
  for fields, _ in tables.rows(files, _VIDEO_MME):
    clip = _clip(folder, fields["videoID"])
    yield Item(fields["question_id"], fields, video=clip)


def _video_mme_subtitled(folder: str, files: Sequence[str]) -> Iterator[Item]:
  """With subtitles, which 744 of the 900 videos have."""
  written = {
    os.path.splitext(os.path.basename(path))[0]: path
    for path in reversed(media.files(folder, "**/*.srt"))
  }
  for item in _video_mme_tables(folder, files):
    said = written.get(item.fields["videoID"], "")
    yield dataclasses.replace(item, subtitles=said)


def _video_mme(fields: Fields) -> str:
  """As lmms-eval has it: of subtitles, where there are none, too."""
  select = _SELECT.format(_AND_SUBTITLES)
  return "\n".join([select, fields["question"], *fields["options"], LETTER])


def _video_mme_official(fields: Fields) -> str:
  select = _SELECT.format("")
  return "\n".join([select, fields["question"], *fields["options"], _BEST])


def _video_mme_sub(fields: Fields) -> str:
  said = fields.get("subtitles") or "No subtitles available"
  select = _SELECT.format(_AND_SUBTITLES)
  shown = f"This video's subtitles are listed below: \n{said}"
  lines = [shown, select, fields["question"], *fields["options"], _BEST]
  return "\n".join(lines)


def _mlvu_official(folder: str, files: Sequence[str]) -> Iterator[Item]:
  for path in files:
    where, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    # The hub has json/ and video/ side by side, a folder deeper.
    if os.path.basename(where) == "json":
      folder = os.path.dirname(where)
    for number, fields in enumerate(tables.records(path, _MLVU)):
      clip = _clip(folder, fields["video"], f"video/{stem}", stem)
      yield Item(f"{stem} {number}", fields, video=clip)


def _mlvu_options(fields: Fields) -> list[str]:
  texts = enumerate(fields["candidates"])
  return [f"({chr(65 + i)}) {text}" for i, text in texts]


def _mlvu(fields: Fields) -> str:
  end = ["Only give the best option.", "Best option: ("]
  return "\n".join([fields["question"], *_mlvu_options(fields), *end])


def _mlvu_own(fields: Fields) -> str:
  begin = [f"Question: {fields['question']}", "Options:"]
  end = ["Only give the best option."]
  return "\n".join([*begin, *_mlvu_options(fields), *end])


def _mlvu_task(name: str, prompt: Any, **more: Any) -> Task:
  return Task(
    name=name,
    folder="mlvu",
    forms=(Files(("**/[1-7]_*.json",), _mlvu_official),),
    items=2175,
    prompt=prompt,
    metric=lambda fields: "mlvu",
    cluster=lambda fields: fields["video"],
    total="mlvu_dev",
    source="MLVU's seven json/*.json, with video/",
    video=True,
    note="Two items' answers are no candidates; they count as wrong.",
    **more,
  )


def _ego_official(
  folder: str, questions: Sequence[str], golds: Sequence[str]
) -> Iterator[Item]:
  """Those of which the answer is published."""
  answers = tables.json_of(golds[0])
  tables.check(answers, (), golds[0])
  for one in tables.records(questions[0], _EGO):
    name = one["q_uid"]
    if name in answers:
      fields = {
        "question": one["question"],
        "options": [one[f"option {i}"] for i in range(5)],
        "answer": str(answers[name]),
        "dataset": "egoschema",
      }
      yield Item(name, fields, video=_clip(folder, name))


def _ego_tables(folder: str, files: Sequence[str]) -> Iterator[Item]:
  columns = ("video_idx", "question", "option", "answer")
  for one, _ in tables.rows(files, columns):
    name = one["video_idx"]
    fields = {
      "question": one["question"],
      "options": [re.sub(r"^[A-E]\. ", "", text) for text in one["option"]],
      "answer": one["answer"],
      "dataset": "egoschema",
    }
    yield Item(name, fields, video=_clip(folder, name))


def _long_item(folder: str, fields: Fields, options: Sequence[str]) -> Item:
  more = {
    "options": list(options),
    "answer": fields["correct_choice"],
    "dataset": "longvideobench",
  }
  clip = _clip(folder, fields["video_path"])
  return Item(str(fields["id"]), fields | more, video=clip)


def _long_official(folder: str, files: Sequence[str]) -> Iterator[Item]:
  for fields in tables.records(files[0], (*_LONG, "candidates")):
    yield _long_item(folder, fields, fields["candidates"])


def _long_tables(folder: str, files: Sequence[str]) -> Iterator[Item]:
  columns = tuple(f"option{i}" for i in range(5))
  for fields, _ in tables.rows(files, (*_LONG, *columns)):
    texts = [fields[c] for c in columns if not tables.unused(fields[c], "N/A")]
    yield _long_item(folder, fields, texts)


def _next_item(folder: str, fields: Fields, where: dict[str, str]) -> Item:
  """An item by its video and question: question numbers start anew in each."""
  video = str(fields["video"])
  inside = {
    "options": [str(fields[f"a{i}"]).strip() for i in range(5)],
    "answer": str(fields["answer"]),
    "dataset": "nextqa",
  }
  clip = _clip(folder, where.get(video, video), "NExTVideo")
  return Item(f"{video} {fields['qid']}", fields | inside, video=clip)


def _next_official(
  folder: str, questions: Sequence[str], places: Sequence[str]
) -> Iterator[Item]:
  where = tables.json_of(places[0])
  tables.check(where, (), places[0])
  for fields in tables.lines(questions[0], _NEXT):
    yield _next_item(folder, fields, where)


def _next_tables(folder: str, files: Sequence[str]) -> Iterator[Item]:
  for fields, _ in tables.rows(files, _NEXT):
    yield _next_item(folder, fields, {})


def _next(fields: Fields) -> str:
  return lettered(fields["question"].strip(), fields["options"])


def _next_lmms(fields: Fields) -> str:
  return _next(fields).removesuffix(LETTER)


def _compass_official(folder: str, *files: Sequence[str]) -> Iterator[Item]:
  for task, (path,) in zip(_COMPASS, files, strict=True):
    for number, one in enumerate(_compass_rows(path)):
      fields = one | {"task": task}
      clip = _clip(folder, one["video_id"])
      yield Item(f"{task} {number}", fields, video=clip)


def _compass_rows(path: str) -> Iterator[Fields]:
  """Rows; or as they are published, by video and by what they ask about."""
  value = tables.json_of(path)
  if isinstance(value, list):
    yield from tables.records(path, ("video_id", "dim", "question", "answer"))
    return
  tables.check(value, (), path)
  for video, dims in value.items():
    tables.check(dims, (), f"{path}, {video}")
    for dim, some in dims.items():
      where = f"{path}, {video}, {dim}"
      if not isinstance(some, list):
        kind = type(some).__name__
        raise samples.DataError(f"{where}: a list is needed, got {kind}")
      for number, one in enumerate(some):
        tables.check(one, ("question", "answer"), f"{where} {number}")
        yield one | {"video_id": video, "dim": dim}


def _compass(fields: Fields) -> str:
  return fields["question"] + _COMPASS_END[fields["task"]]


def _compass_metric(fields: Fields) -> str:
  return "tempcompass_" + fields["task"].replace("-", "_")


def _video_mme_task(
  name: str, prompt: Any, read: Callable[..., Iterator[Item]], **more: Any
) -> Task:
  return Task(
    name=name,
    folder="videomme",
    forms=(Files(("**/test-*.parquet",), read),),
    items=2700,
    prompt=prompt,
    metric=lambda fields: "videomme_letter",
    cluster=lambda fields: fields["videoID"],
    source="lmms-eval/Video-MME, split test, its videos unpacked into data/"
    " and its subtitles into subtitle/",
    video=True,
    **more,
  )


def _next_task(
  name: str, split: str, items: int, prompt: Any, **more: Any
) -> Task:
  official = Files(
    (f"**/{split}.csv", "**/map_vid_vidorID.json"), _next_official
  )
  forms = (official,)
  if split == "test":
    forms += (Files(("**/MC/test-*.parquet",), _next_tables),)
  return Task(
    name=name,
    folder="nextqa",
    forms=forms,
    items=items,
    prompt=prompt,
    metric=lambda fields: "mc5",
    cluster=lambda fields: str(fields["video"]),
    total="nextqa_mc",
    source=f"NExT-QA's {split}.csv and map_vid_vidorID.json with NExTVideo/; or"
    " lmms-eval/NExTQA, config MC",
    video=True,
    **more,
  )


TASKS = (
  _video_mme_task("videomme", _video_mme, _video_mme_tables, paper=60.4),
  _video_mme_task("videomme_sub", _video_mme_sub, _video_mme_subtitled),
  _video_mme_task("videomme_official", _video_mme_official, _video_mme_tables),
  _mlvu_task("mlvu_dev", _mlvu, paper=67.5),
  _mlvu_task(
    "mlvu_dev_official", _mlvu_own, system=_MLVU_SYSTEM, begins="Best Option: ("
  ),
  Task(
    name="egoschema_subset",
    folder="egoschema",
    forms=(
      Files(("**/questions.json", "**/subset_answers.json"), _ego_official),
      Files(("**/Subset/test-*.parquet",), _ego_tables),
    ),
    items=500,
    prompt=lambda fields: lettered(fields["question"], fields["options"]),
    metric=lambda fields: "mc5",
    source="EgoSchema's questions.json and subset_answers.json with videos/; or"
    " lmms-eval/egoschema, config Subset",
    video=True,
    note="The 500 with published answers: another figure than the full set's,"
    " which the paper's 53.8 may be.",
  ),
  Task(
    name="longvideobench_val",
    folder="longvideobench",
    forms=(
      Files(("**/lvb_val.json",), _long_official),
      Files(("**/validation-*.parquet",), _long_tables),
    ),
    items=1337,
    prompt=lambda fields: (
      lettered(fields["question"], fields["options"]) + "\n"
    ),
    metric=lambda fields: "mc5",
    cluster=lambda fields: fields["video_path"],
    max_tokens=32,
    source="longvideobench/LongVideoBench: lvb_val.json with videos/",
    paper=56.8,
    video=True,
  ),
  _next_task("nextqa_mc", "test", 8564, _next, paper=80.4),
  _next_task("nextqa_mc_val", "val", 4996, _next),
  _next_task("nextqa_mc_lmms", "test", 8564, _next_lmms),
  Task(
    name="tempcompass",
    folder="tempcompass",
    forms=(
      Files(
        tuple(f"**/questions/{task}.json" for task in _COMPASS),
        _compass_official,
      ),
    ),
    items=5536,
    prompt=_compass,
    metric=_compass_metric,
    cluster=lambda fields: fields["video_id"],
    source="TempCompass' questions/*.json, with videos/",
    paper=62.9,
    video=True,
    note="Captioning needs a judge and is left out (2,004 of 7,540 items); the"
    " paper does not say which of them its figure is of.",
  ),
)
