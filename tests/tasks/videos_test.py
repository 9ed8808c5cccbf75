"""Video tasks: their published files as items, prompts, golds, frames."""

import json
import pathlib

import pytest
from tasks import published_videos

from gaze_jax.data import samples
from gaze_jax.evals import scoring
from gaze_jax.evals.scoring import totals
from gaze_jax.tasks import registry
from gaze_jax.tasks import results
from gaze_jax.tasks import task as task_lib

WRITERS = published_videos.WRITERS
LAYOUTS = [(task, layout) for task in WRITERS for layout in WRITERS[task]]
LETTER = "Answer with the option's letter from the given choices directly."
SELECT = (
  "Select the best answer to the following multiple-choice question based on"
  " the video and the subtitles. Respond with only the letter (A, B, C, or D)"
  " of the correct option."
)

# --- What is to come out, whatever the layout: (id, video, prompt, right,
# wrong), those of a video side by side.


def video_mme(number, name, what, right, wrong):
  return (
    number,
    f"data/{name}",
    f"{SELECT}\nHow many {what}?\nA. One.\nB. Two.\nC. Three.\nD. Four.\n\n"
    f"{LETTER}",
    right,
    wrong,
  )


BEST = "\nOnly give the best option.\nBest option: ("
EGO = (
  "What does C do?\nA. C cuts a carrot\nB. C cuts a garden\nC. C cuts a tree"
  f"\nD. C cuts a kitchen\nE. C cuts a road\n{LETTER}"
)
IN_THE = (
  "Where is C?\nA. In the carrot\nB. In the garden\nC. In the tree"
  f"\nD. In the kitchen\nE. In the road\n{LETTER}"
)
PLAY = f"\nA. run\nB. sit\nC. eat\nD. play, alone\nE. sleep\n{LETTER}"
BEST_OPTION = "\nPlease directly give the best option:"
NEXT = [
  ("4010 0", "4010.mp4", f"what does he do{PLAY}", "D", "A"),
  ("4010 1", "4010.mp4", f"what then{PLAY}", "A", "run"),
  ("2400 0", "2400.mp4", f"why did she sit{PLAY}", "B", "b"),
]
EXPECTED = {
  "videomme": [
    video_mme("001-1", "a-B_c.MP4", "cats", "B", "A"),
    video_mme("001-2", "a-B_c.MP4", "birds", "The answer is A", "none"),
    video_mme("002-1", "-xYz.mkv", "dogs", "D. Four.", "C"),
    video_mme("003-1", "_q1.mp4", "fish", "(C)", "B"),
  ],
  "mlvu_dev": [
    (
      "1_plotQA 0",
      "video/1_plotQA/movie_1.mp4",
      "What colour is the coat?\n(A) Red\n(B) Blue\n(C) Green\n(D) Grey" + BEST,
      "B) Blue",
      "A",
    ),
    (
      "1_plotQA 1",
      "video/1_plotQA/movie_1.mp4",
      "Who wears it?\n(A) Red\n(B) Blue\n(C) Green\n(D) Grey" + BEST,
      "A",
      "Red",
    ),
    (
      "2_needle 0",
      "video/2_needle/needle_1.mp4",
      "What falls?\n(A) A pan\n(B) A cup\n(C) A pot\n(D) A hat" + BEST,
      None,
      "A lamp",
    ),
    (
      "3_ego 0",
      "video/3_ego/ego_1.mp4",
      "Where was the knife?\n(A) Sink\n(B) Table\n(C) Floor\n(D) Drawer" + BEST,
      "(D)",
      "(C)",
    ),
    (
      "4_count 0",
      "video/4_count/count_1.mp4",
      "How often does it ring?\n(A) 1\n(B) 2\n(C) 3\n(D) 4" + BEST,
      "A)",
      "1",
    ),
    (
      "5_order 0",
      "video/5_order/order_1.mp4",
      "In which order?\n(A) 1-->2\n(B) 2-->1\n(C) 1-->1\n(D) 2-->2" + BEST,
      "B",
      "C",
    ),
    (
      "6_anomaly_reco 0",
      "video/6_anomaly_reco/surveil_1.mp4",
      "What is unusual?\n(A) Fire\n(B) Theft\n(C) Theft\n(D) Fight" + BEST,
      "B",
      "A",
    ),
    (
      "7_topic_reasoning 0",
      "video/7_topic_reasoning/AWA-1.mp4",
      "What is it about?\n(A) Sea\n(B) Sky\n(C) Land\n(D) Ice" + BEST,
      "D",
      "B",
    ),
  ],
  "egoschema_subset": [
    ("00aa-1", "videos/00aa-1.mp4", EGO, "D", "C"),
    ("00bb-2", "videos/00bb-2.mp4", IN_THE, "A. In the carrot", "0"),
  ],
  "longvideobench_val": [
    (
      "86Cx_0",
      "videos/86Cx.mp4",
      f"Who speaks?\nA. Ann\nB. Bob\nC. Cid\nD. Dan\nE. Eve\n{LETTER}\n",
      "E",
      "D",
    ),
    (
      "86Cx_1",
      "videos/86Cx.mp4",
      f"Where?\nA. Home\nB. Away\nC. Sea\nD. Sky\n{LETTER}\n",
      "C",
      "E",
    ),
    (
      "@me-77_0",
      "videos/@me-77.mp4",
      f"Day?\nA. Yes\nB. No\n{LETTER}\n",
      "B",
      "C",
    ),
  ],
  "nextqa_mc": NEXT,
  "nextqa_mc_val": NEXT,
  "tempcompass": [
    (
      "multi-choice 0",
      "videos/101.mp4",
      f"What does he do?\nA. runs\nB. swims\nC. flies{BEST_OPTION}",
      "B. swims",
      "A. runs",
    ),
    (
      "multi-choice 1",
      "videos/101.mp4",
      f"How fast?\nA. slow\nB. fast{BEST_OPTION}",
      "A",
      "B",
    ),
    (
      "yes_no 0",
      "videos/101.mp4",
      "Does he swim?\nPlease answer yes or no:",
      "Yes, he does.",
      "No",
    ),
    (
      "yes_no 1",
      "videos/101.mp4",
      "Does he fly?\nPlease answer yes or no:",
      "no",
      "He does not",
    ),
    (
      "multi-choice 2",
      "videos/202.mp4",
      f"What is first?\nA. red\nB. blue{BEST_OPTION}",
      "B) blue",
      "blue",
    ),
    (
      "caption_matching 0",
      "videos/202.mp4",
      f"Which is right?\nOption 1: It grows.\nOption 2: It fades.{BEST_OPTION}",
      "Option 2",
      "Option 1",
    ),
    (
      "caption_matching 1",
      "videos/202.mp4",
      "Which is right?\nSentence A: Up it goes.\nSentence B: Down."
      + BEST_OPTION,
      "Up it goes.",
      "B",
    ),
  ],
}
# How many of them are about the same video as the first.
FIRST = {
  "videomme": 2,
  "mlvu_dev": 2,
  "egoschema_subset": 1,
  "longvideobench_val": 2,
  "nextqa_mc": 2,
  "nextqa_mc_val": 2,
  "tempcompass": 4,
}


@pytest.fixture(scope="session")
def published(tmp_path_factory):
  """Writes a data set once; gives the task, the folder of data, the items."""
  written = {}

  def read(name, layout):
    if (name, layout) not in written:
      data = tmp_path_factory.mktemp("data")
      WRITERS[name][layout](data)
      written[name, layout] = data
    task, data = registry.TASKS[name], written[name, layout]
    return task, data, task_lib.items(task, str(data))

  return read


def write(tmp_path, name, layout):
  """A copy of one's own, to break; the task, and the folder of data."""
  WRITERS[name][layout](tmp_path)
  return registry.TASKS[name], tmp_path


# --- Items, prompts, golds.


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_items_and_their_prompts(published, name, layout):
  task, _, items = published(name, layout)
  assert [item.id for item in items] == [row[0] for row in EXPECTED[name]]
  prompts = [task.prompt(item.fields) for item in items]
  assert prompts == [row[2] for row in EXPECTED[name]]
  assert not any(item.images for item in items) and task.video


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_the_videos_of_items_are_found(published, name, layout):
  task, data, items = published(name, layout)
  for item, (_, place, *_) in zip(items, EXPECTED[name], strict=True):
    path = item.video.source()
    assert pathlib.Path(path).is_file()
    if task.folder == "nextqa":  # by NExT-QA's map, or by name
      inside = {"4010.mp4": "1164/", "2400.mp4": "0001/"}[place]
      place = f"NExTVideo/{inside if layout == 'official' else ''}{place}"
    if layout == "download":
      place = f"MLVU/{place}"
    assert pathlib.Path(path) == data / task.folder / place


@pytest.mark.parametrize("name, layout", LAYOUTS)
@pytest.mark.parametrize("protocol", scoring.PROTOCOLS)
def test_golds_are_right_and_others_wrong(published, name, layout, protocol):
  task, _, items = published(name, layout)
  rows = zip(items, EXPECTED[name], strict=True)
  for item, (*_, right, wrong) in rows:
    texts = (right or "~", wrong, "~")
    found = [results.verdict(task, item, x, protocol).value for x in texts]
    assert found == [right is not None, 0, 0]


@pytest.mark.parametrize(
  "name", [name for name in WRITERS if len(WRITERS[name]) > 1]
)
def test_layouts_of_a_task_are_scored_alike(published, name):
  """In prompts and in the fields that its scorer and its total read."""
  seen = []
  for layout in WRITERS[name]:
    task, _, items = published(name, layout)
    rule = lambda item, task=task: scoring.METRICS[task.metric(item.fields)]
    seen.append([])
    for item in items:
      read = {*rule(item).keys, "answer", "dataset", *GROUPED.get(name, ())}
      told = {k: str(v) for k, v in item.fields.items() if k in read}
      seen[-1].append(
        (task.prompt(item.fields), task.metric(item.fields), told)
      )
  assert all(one == seen[0] for one in seen)


GROUPED = {
  "videomme": ("duration",),
  "mlvu_dev": ("question_type",),
  "longvideobench_val": ("duration_group",),
  "nextqa_mc": ("type",),
  "tempcompass": ("task", "dim"),
}
# Figures where all golds are given.
FIGURES = {
  "videomme": {
    "mean": 1,
    "by_duration": {"long": 1, "medium": 1, "short": 1},
    "answered_only": 1,
  },
  "mlvu_dev": {
    "mean": 6 / 7,
    "by_question_type": {
      **{"plotQA": 1, "findNeedle": 0, "ego": 1, "count": 1, "order": 1},
      **{"anomaly_reco": 1, "topic_reasoning": 1},
    },
  },
  "egoschema_subset": {"mean": 1},
  "longvideobench_val": {"mean": 1, "by_duration_group": {"15": 1, "3600": 1}},
  "nextqa_mc": {"mean": 1, "by_type": {"CW": 1, "DO": 1, "TN": 1}},
  "nextqa_mc_val": {"mean": 1, "by_type": {"CW": 1, "DO": 1, "TN": 1}},
  "tempcompass": {
    "mean": 1,
    "by_task": {"multi-choice": 1, "yes_no": 1, "caption_matching": 1},
  },
}


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_totals(published, name, layout):
  task, _, items = published(name, layout)
  rows = []
  for item, (*_, right, _) in zip(items, EXPECTED[name], strict=True):
    verdict = results.verdict(task, item, right or "A", "default")
    rows.append(totals.Row(item.fields, verdict))
  assert totals.total(task.total or task.name, rows) == FIGURES[name]


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_a_limit_takes_whole_videos(published, name, layout):
  task, _, items = published(name, layout)
  first = FIRST[name]
  for limit in range(1, first + 1):
    assert task_lib.limited(items, limit) == items[:first]
  more = task_lib.limited(items, first + 1)
  assert first < len(more) and more == items[: len(more)]
  videos = [item.video.source() for item in items]
  clusters = [item.cluster for item in items]
  for one, other in zip(range(len(items)), range(1, len(items)), strict=False):
    same = videos[one] == videos[other]
    assert same == (clusters[one] == clusters[other])


def test_mlvus_odd_golds(published):
  """No candidate's letter is right, and that of any equal candidate is."""
  task, _, items = published("mlvu_dev", "official")
  by_id = {item.id: item for item in items}
  score = lambda name: [
    results.verdict(task, by_id[name], x, "default").value for x in "ABCD"
  ]
  assert score("2_needle 0") == [0, 0, 0, 0]
  assert score("6_anomaly_reco 0") == [0, 1, 1, 0]


def test_other_wordings(published):
  _, _, items = published("videomme", "table")
  official = registry.TASKS["videomme_official"]
  assert official.prompt(items[0].fields) == (
    "Select the best answer to the following multiple-choice question based on"
    " the video. Respond with only the letter (A, B, C, or D) of the correct"
    " option.\nHow many cats?\nA. One.\nB. Two.\nC. Three.\nD. Four.\nThe best"
    " answer is:"
  )
  _, _, items = published("nextqa_mc", "table")
  lmms = registry.TASKS["nextqa_mc_lmms"]
  assert lmms.prompt(items[0].fields) == (
    "what does he do\nA. run\nB. sit\nC. eat\nD. play, alone\nE. sleep"
  )


def test_what_tasks_promise():
  assert {name: registry.TASKS[name].items for name in WRITERS} == {
    "videomme": 2700,
    "mlvu_dev": 2175,
    "egoschema_subset": 500,
    "longvideobench_val": 1337,
    "nextqa_mc": 8564,
    "nextqa_mc_val": 4996,
    "tempcompass": 1580 + 2453 + 1503,
  }
  tokens = {name: registry.TASKS[name].max_tokens for name in WRITERS}
  assert tokens == dict.fromkeys(WRITERS, 16) | {"longvideobench_val": 32}


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_a_missing_video_is_a_failed_item(tmp_path, name, layout):
  task, data = write(tmp_path, name, layout)
  items = task_lib.items(task, str(data))
  path = items[0].video.source()
  pathlib.Path(path).unlink()
  requests, failed = published_videos.asked(task, items, frames=1)
  assert len(requests) == len(items) - FIRST[name]
  assert [one.id for one in failed] == [x.id for x in items[: FIRST[name]]]
  stem = pathlib.Path(path).stem
  assert all(one.error.startswith("missing video: '") for one in failed)
  assert all(stem in x.error and str(tmp_path) in x.error for x in failed)


def test_a_request_holds_the_frames(published):
  task, _, items = published("egoschema_subset", "official")
  (request, _), failed = published_videos.asked(task, items, frames=2)
  (shown,) = request.videos
  assert [round(float(x.mean()) / 8) for x in shown] == [0, 3]
  assert request.images == () and request.max_tokens == 16 and not failed
  (blind, _), _ = published_videos.asked(task, items, frames=2, blind=True)
  assert blind.videos == () and blind.question == request.question


# --- Files that are not as they should be.

BROKEN = [
  ("egoschema_subset", "egoschema/questions.json"),
  ("egoschema_subset", "egoschema/subset_answers.json"),
  ("longvideobench_val", "longvideobench/lvb_val.json"),
  ("mlvu_dev", "mlvu/json/3_ego.json"),
  ("nextqa_mc", "nextqa/map_vid_vidorID.json"),
  ("tempcompass", "tempcompass/questions/yes_no.json"),
]


@pytest.mark.parametrize("name, path", BROKEN)
def test_broken_json_is_named(tmp_path, name, path):
  task, data = write(tmp_path, name, "official")
  (data / path).write_text("[{")
  with pytest.raises(samples.DataError, match=f"{path} is not JSON"):
    task_lib.items(task, str(data))


@pytest.mark.parametrize(
  "name, path, value",
  [
    *((*broken, value) for broken in BROKEN for value in ("x", ["a", "b"])),
    ("tempcompass", BROKEN[-1][1], {"101": {"action": "x"}}),
    ("tempcompass", BROKEN[-1][1], {"101": {"action": 1}}),
    ("tempcompass", BROKEN[-1][1], {"101": [1]}),
    ("egoschema_subset", BROKEN[0][1], {"00aa-1": {}}),
  ],
)
def test_json_of_another_kind_is_named(tmp_path, name, path, value):
  task, data = write(tmp_path, name, "official")
  (data / path).write_text(json.dumps(value))
  with pytest.raises(samples.DataError, match=path):
    task_lib.items(task, str(data))


@pytest.mark.parametrize(
  "name, layout, path",
  [
    ("egoschema_subset", "official", "egoschema/subset_answers.json"),
    ("nextqa_mc", "official", "nextqa/map_vid_vidorID.json"),
    ("nextqa_mc_val", "official", "nextqa/val.csv"),
    ("tempcompass", "official", "tempcompass/questions/yes_no.json"),
    ("longvideobench_val", "official", "longvideobench/lvb_val.json"),
    ("videomme", "table", "videomme/videomme/test-00000-of-00001.parquet"),
  ],
)
def test_a_missing_file_is_asked_for(tmp_path, name, layout, path):
  task, data = write(tmp_path, name, layout)
  (data / path).unlink()
  with pytest.raises(samples.DataError) as caught:
    task_lib.items(task, str(data))
  text = str(caught.value)
  assert text.startswith(f"{name}: its files are not in {data / task.folder}")
  assert pathlib.Path(path).name.split("-0")[0] in text and task.source in text


@pytest.mark.parametrize(
  "name, column",
  [
    ("egoschema_subset", "option 3"),
    ("longvideobench_val", "duration_group"),
    ("mlvu_dev", "candidates"),
    ("tempcompass", "answer"),
    ("nextqa_mc", "a4"),
  ],
)
def test_a_missing_key_is_named(tmp_path, name, column):
  task, data = write(tmp_path, name, "official")
  for path in data.rglob("*"):
    if path.suffix in (".json", ".csv"):
      text = path.read_text().replace(f'"{column}":', '"other":')
      path.write_text(text.replace(f",{column}", ",other"))
  with pytest.raises(samples.DataError, match=f"no column '{column}'; it has"):
    task_lib.items(task, str(data))


@pytest.mark.parametrize(
  "name, path, column",
  [
    ("videomme", "videomme/videomme/test-00000-of-00001.parquet", "duration"),
    ("egoschema_subset", "egoschema/Subset/test-0-of-1.parquet", "option"),
    ("longvideobench_val", "longvideobench/validation-0-of-1.parquet", "id"),
    ("nextqa_mc", "nextqa/MC/test-0-of-1.parquet", "qid"),
  ],
)
def test_a_missing_column_is_named(tmp_path, name, path, column):
  task = registry.TASKS[name]
  text = published_videos.pyarrow.string()
  published_videos.table(tmp_path / path, [{"question": "x"}], question=text)
  with pytest.raises(samples.DataError, match=f"{path}: no column.*'{column}'"):
    task_lib.items(task, str(tmp_path))


def test_a_question_number_that_is_there_twice(tmp_path):
  task, data = write(tmp_path, "nextqa_mc", "official")
  path = data / "nextqa" / "test.csv"
  path.write_text(path.read_text().replace(",1,TN,", ",0,TN,"))
  with pytest.raises(samples.DataError, match="item '4010 0' is in .* twice"):
    task_lib.items(task, str(data))


def test_mlvu_as_its_authors_ask_it(published):
  """A system text, their wording, and an answer that has begun."""
  _, data, items = published("mlvu_dev", "official")
  task = registry.TASKS["mlvu_dev_official"]
  assert [one.id for one in task_lib.items(task, str(data))] == [
    one.id for one in items
  ]
  assert task.prompt(items[0].fields) == (
    "Question: What colour is the coat?\nOptions:\n(A) Red\n(B) Blue\n(C)"
    " Green\n(D) Grey\nOnly give the best option."
  )
  assert task.begins == "Best Option: ("
  assert task.system.startswith("Carefully watch this video and pay attention")
  assert results.verdict(task, items[0], "B) Blue", "default").value == 1
