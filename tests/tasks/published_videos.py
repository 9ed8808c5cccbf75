"""Tiny data sets of the video tasks, in each form that they are published in.

`WRITERS[task][layout](data)` writes one below `data`, in the columns and types
of the published files. Frame i of a video is grey of 8 i, 5 a second.
"""

import csv
import json
import types

import av
import numpy as np
import pyarrow
from pyarrow import parquet

from gaze_jax.api import request as request_lib
from gaze_jax.tasks import asking

RATE = 5
_TEXT, _TEXTS = pyarrow.string(), pyarrow.list_(pyarrow.string())
_INT, _INT32 = pyarrow.int64(), pyarrow.int32()


def video(path, count=4):
  """A video of so many frames of 32 x 32 pixels."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as out:
    stream = out.add_stream("mpeg4", rate=RATE)
    stream.height, stream.width = 32, 32
    stream.pix_fmt = "yuv420p"
    for number in range(count):
      pixels = np.full((32, 32, 3), 8 * number, np.uint8)
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      out.mux(stream.encode(frame))
    out.mux(stream.encode())


def asked(task, items, **options):
  """Requests of items, and predictions of what could not be asked.

  Of a model whose template has pictures behind the question: each request
  brings its own.
  """

  def encode(**shown):
    raise request_lib.RequestError("the template has pictures elsewhere")

  data = types.SimpleNamespace(max_pixels=32 * 32)
  config = types.SimpleNamespace(data=data)
  model = types.SimpleNamespace(config=config, encode=encode)
  made = asking._Asking(model, task, asking.Options(**options))
  return list(made.requests(items)), list(made.failed())


def table(path, rows, **columns):
  """A Parquet table of these columns; what a row lacks is null."""
  path.parent.mkdir(parents=True, exist_ok=True)
  schema = pyarrow.schema(list(columns.items()))
  rows = [{name: row.get(name) for name in columns} for row in rows]
  parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)


def write_json(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


# --- Video-MME: four questions about three videos, one of them in between.

SUBTITLES = (
  "1\n00:00:00,000 --> 00:00:00,500\n"
  '<font color="white" size=".72c">Hello there</font>\n\n'
  "2\n00:00:00,400 --> 00:00:01,000\n"
  '<font color="white" size=".72c">Look, a cat</font>\n'
)


def _video_mme_rows():
  def row(number, video_id, duration, name, question, answer):
    return {
      "video_id": number,
      "duration": duration,
      "domain": "Knowledge",
      "sub_category": "Biology",
      "url": f"https://www.youtube.com/watch?v={name}",
      "videoID": name,
      "question_id": video_id,
      "task_type": "Counting Problem",
      "question": question,
      "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
      "answer": answer,
    }

  return [
    row("001", "001-1", "short", "a-B_c", "How many cats?", "B"),
    row("002", "002-1", "medium", "-xYz", "How many dogs?", "D"),
    row("001", "001-2", "short", "a-B_c", "How many birds?", "A"),
    row("003", "003-1", "long", "_q1", "How many fish?", "C"),
  ]


def _video_mme_media(folder):
  video(folder / "data" / "a-B_c.MP4")
  video(folder / "data" / "-xYz.mkv")
  video(folder / "data" / "_q1.mp4")
  (folder / "subtitle").mkdir()
  for name in ("a-B_c", "-xYz"):
    (folder / "subtitle" / f"{name}.srt").write_text(SUBTITLES)


def _video_mme_table(path):
  names = (
    *("video_id", "duration", "domain", "sub_category", "url", "videoID"),
    *("question_id", "task_type", "question"),
  )
  columns = {name: _TEXT for name in names}
  table(path, _video_mme_rows(), **columns, options=_TEXTS, answer=_TEXT)


def video_mme(data):
  folder = data / "videomme"
  _video_mme_table(folder / "videomme" / "test-00000-of-00001.parquet")
  _video_mme_media(folder)


def video_mme_cache(data):
  """As a cache has it: links to files that are named by their hashes."""
  folder = data / "videomme"
  _video_mme_table(data / "blobs" / "0123abcd")
  link = folder / "videomme" / "test-00000-of-00001.parquet"
  link.parent.mkdir(parents=True, exist_ok=True)
  link.symlink_to(data / "blobs" / "0123abcd")
  _video_mme_media(folder)


# --- MLVU: seven files. One answer is no candidate, one is there twice.

_MLVU = (
  ("1_plotQA", "plotQA", "movie_1.mp4", "What colour is the coat?",
   ["Red", "Blue", "Green", "Grey"], "Blue"),
  ("2_needle", "findNeedle", "needle_1.mp4", "What falls?",
   ["A pan", "A cup", "A pot", "A hat"], "A lamp"),
  ("3_ego", "ego", "ego_1.mp4", "Where was the knife?",
   ["Sink", "Table", "Floor", "Drawer"], "Drawer"),
  ("4_count", "count", "count_1.mp4", "How often does it ring?",
   ["1", "2", "3", "4"], "1"),
  ("5_order", "order", "order_1.mp4", "In which order?",
   ["1-->2", "2-->1", "1-->1", "2-->2"], "2-->1"),
  ("6_anomaly_reco", "anomaly_reco", "surveil_1.mp4", "What is unusual?",
   ["Fire", "Theft", "Theft", "Fight"], "Theft"),
  ("7_topic_reasoning", "topic_reasoning", "AWA-1.mp4", "What is it about?",
   ["Sea", "Sky", "Land", "Ice"], "Ice"),
)  # fmt: skip


def _mlvu(folder):
  for stem, kind, name, question, candidates, answer in _MLVU:
    row = {
      "video": name,
      "duration": 480.5,
      "question": question,
      "candidates": candidates,
      "answer": answer,
      "question_type": kind,
    }
    rows = [row]
    if kind == "plotQA":
      more = {"question": "Who wears it?", "answer": "Red"}
      rows.append(row | more)
    write_json(folder / "json" / f"{stem}.json", rows)
    video(folder / "video" / stem / name)


def mlvu(data):
  _mlvu(data / "mlvu")


def mlvu_download(data):
  """One folder deeper, as the hub's repository has it."""
  _mlvu(data / "mlvu" / "MLVU")


# --- EgoSchema: three questions, of which two have published answers.

_EGO = {
  "00aa-1": ("What does C do?", "C cuts a {}", 3),
  "00bb-2": ("Where is C?", "In the {}", 0),
  "00cc-3": ("Why?", "For the {}", None),
}
_THINGS = ("carrot", "garden", "tree", "kitchen", "road")


def _ego_videos(folder):
  for name in _EGO:
    video(folder / "videos" / f"{name}.mp4")


def ego_schema(data):
  folder = data / "egoschema"
  questions = [
    {"q_uid": name, "google_drive_id": "x", "question": question}
    | {f"option {i}": text.format(x) for i, x in enumerate(_THINGS)}
    for name, (question, text, _) in _EGO.items()
  ]
  golds = {name: gold for name, (*_, gold) in _EGO.items() if gold is not None}
  write_json(folder / "questions.json", questions)
  write_json(folder / "subset_answers.json", golds)
  _ego_videos(folder)


def ego_schema_table(data):
  folder = data / "egoschema"
  rows = [
    {
      "question_idx": str(number),
      "question": question,
      "video_idx": name,
      "option": [
        f"{letter}. {text.format(x)}"
        for letter, x in zip("ABCDE", _THINGS, strict=True)
      ],
      "answer": str(gold),
    }
    for number, (name, (question, text, gold)) in enumerate(_EGO.items())
    if gold is not None
  ]
  columns = {"question_idx": _TEXT, "question": _TEXT, "video_idx": _TEXT}
  path = folder / "Subset" / "test-00000-of-00001.parquet"
  table(path, rows, **columns, option=_TEXTS, answer=_TEXT)
  every = [row | {"answer": None} for row in rows]
  path = folder / "MC" / "test-00000-of-00001.parquet"
  table(path, every, **columns, option=_TEXTS, answer=_TEXT)
  _ego_videos(folder)


# --- LongVideoBench: three questions about two videos, of 5, 2 and 4 options.


def _long_rows():
  row = {
    "video_id": "86Cx",
    "question_category": "S2E",
    "topic_category": "NP-News-Programs",
    "video_path": "86Cx.mp4",
    "subtitle_path": "86Cx_en.json",
    "duration": 13.5,
    "duration_group": 15,
    "starting_timestamp_for_subtitles": 0.0,
  }
  other = {
    "video_id": "@me-77",
    "video_path": "@me-77.mp4",
    "subtitle_path": "@me-77.json",
    "duration": 3500.0,
    "duration_group": 3600,
  }
  return [
    row | {"id": "86Cx_0", "question": "Who speaks?", "correct_choice": 4},
    row | other | {"id": "@me-77_0", "question": "Day?", "correct_choice": 1},
    row | {"id": "86Cx_1", "question": "Where?", "correct_choice": 2},
  ]


LONG_OPTIONS = (
  ["Ann", "Bob", "Cid", "Dan", "Eve"],
  ["Yes", "No"],
  ["Home", "Away", "Sea", "Sky"],
)


def _long_videos(folder):
  video(folder / "videos" / "86Cx.mp4")
  video(folder / "videos" / "@me-77.mp4")


def long_video_bench(data):
  folder = data / "longvideobench"
  rows = [
    row | {"candidates": texts, "view_count": 3, "level": "L1-Perception"}
    for row, texts in zip(_long_rows(), LONG_OPTIONS, strict=True)
  ]
  write_json(folder / "lvb_val.json", rows)
  _long_videos(folder)


def long_video_bench_table(data):
  folder = data / "longvideobench"
  rows = []
  for row, texts in zip(_long_rows(), LONG_OPTIONS, strict=True):
    five = [*texts, *["N/A"] * (5 - len(texts))]
    rows.append(row | {f"option{i}": x for i, x in enumerate(five)})
  texts = (
    *("video_id", "question", "question_category", "topic_category", "id"),
    *("video_path", "subtitle_path", *(f"option{i}" for i in range(5))),
  )
  columns = {name: _TEXT for name in texts} | {
    "duration_group": _INT,
    "duration": pyarrow.float64(),
    "starting_timestamp_for_subtitles": pyarrow.float64(),
    "correct_choice": _INT,
  }
  table(folder / "validation-00000-of-00001.parquet", rows, **columns)
  _long_videos(folder)


# --- NExT-QA: question numbers start anew in each video.

_NEXT_COLUMNS = (
  *("video", "frame_count", "width", "height", "question", "answer", "qid"),
  *("type", "a0", "a1", "a2", "a3", "a4"),
)
_NEXT_INTS = ("frame_count", "width", "height", "answer", "qid")
_PLACES = {"4010": "1164/4010", "2400": "0001/2400"}


def _next_rows():
  size = (16, 32, 32)
  some = ("run", " sit ", "eat", "play, alone", "sleep")
  return [
    dict(zip(_NEXT_COLUMNS, values, strict=True))
    for values in (
      ("4010", *size, "what does he do ", 3, 0, "DO", *some),
      ("2400", *size, "why did she sit", 1, 0, "CW", *some),
      ("4010", *size, "what then", 0, 1, "TN", *some),
    )
  ]


def _next_csv(split):
  def write(data):
    folder = data / "nextqa"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{split}.csv", "w", newline="") as file:
      writer = csv.DictWriter(file, _NEXT_COLUMNS)
      writer.writeheader()
      writer.writerows(_next_rows())
    write_json(folder / "map_vid_vidorID.json", _PLACES)
    for place in _PLACES.values():
      video(folder / "NExTVideo" / f"{place}.mp4")

  return write


def _next_table(video_type, number):
  def write(data):
    folder = data / "nextqa"
    rows = [row | {"video": number(row["video"])} for row in _next_rows()]
    columns = {name: _TEXT for name in _NEXT_COLUMNS}
    columns |= {name: _INT32 for name in _NEXT_INTS} | {"video": video_type}
    table(folder / "MC" / "test-00000-of-00001.parquet", rows, **columns)
    for name in _PLACES:
      video(folder / "NExTVideo" / f"{name}.mp4")

  return write


# --- TempCompass: by video and by what is asked about, or rows.

_COMPASS = {
  "multi-choice": {
    "101": {
      "action": [
        ("What does he do?\nA. runs\nB. swims\nC. flies", "B. swims"),
      ],
      "speed": [("How fast?\nA. slow\nB. fast", "A. slow")],
    },
    "202": {"order": [("What is first?\nA. red\nB. blue", "B. blue")]},
  },
  "yes_no": {
    "101": {"action": [("Does he swim?", "yes"), ("Does he fly?", "no")]},
  },
  "caption_matching": {
    "202": {
      "attribute_change": [
        ("Which is right?\nOption 1: It grows.\nOption 2: It fades.",
         "Option 2: It fades."),
      ],
      "direction": [
        ("Which is right?\nSentence A: Up it goes.\nSentence B: Down.",
         "Sentence A: Up it goes."),
      ],
    },
  },
}  # fmt: skip


def _compass_videos(folder):
  video(folder / "videos" / "101.mp4")
  video(folder / "videos" / "202.mp4")
  # Captioning needs a judge and is not read.
  write_json(folder / "questions" / "captioning.json", {"101": {}})


def temp_compass(data):
  folder = data / "tempcompass"
  for task, videos in _COMPASS.items():
    value = {
      name: {
        dim: [{"question": q, "answer": a} for q, a in some]
        for dim, some in dims.items()
      }
      for name, dims in videos.items()
    }
    write_json(folder / "questions" / f"{task}.json", value)
  _compass_videos(folder)


def temp_compass_rows(data):
  folder = data / "tempcompass"
  for task, videos in _COMPASS.items():
    rows = [
      {"video_id": name, "dim": dim, "question": q, "answer": a}
      for name, dims in videos.items()
      for dim, some in dims.items()
      for q, a in some
    ]
    write_json(folder / "questions" / f"{task}.json", rows)
  _compass_videos(folder)


WRITERS = {
  "videomme": {"table": video_mme, "cache": video_mme_cache},
  "mlvu_dev": {"official": mlvu, "download": mlvu_download},
  "egoschema_subset": {"official": ego_schema, "table": ego_schema_table},
  "longvideobench_val": {
    "official": long_video_bench,
    "table": long_video_bench_table,
  },
  "nextqa_mc": {
    "official": _next_csv("test"),
    "table": _next_table(_INT, int),
    "table of texts": _next_table(_TEXT, str),
  },
  "nextqa_mc_val": {"official": _next_csv("val")},
  "tempcompass": {"official": temp_compass, "rows": temp_compass_rows},
}
