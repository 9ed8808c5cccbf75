"""Benchmarks asked, taken up after a kill, and scored."""

import dataclasses
import json

import pytest

from gaze_jax import errors
from gaze_jax import whole_file
from gaze_jax.tasks import asking
from gaze_jax.tasks import curve
from gaze_jax.tasks import predictions
from gaze_jax.tasks import registry
from gaze_jax.tasks import results
from gaze_jax.tasks import run
from gaze_jax.tasks import task as task_lib
from tests.tasks import published
from tests.tasks import published_letters

OPTIONS = asking.Options()


def suite(gqa, **how):
  task, data = gqa
  return run.Suite(tasks=[task], data=data, **how)


def ask(model, some, options, out):
  return run.run(model, some, run.load(some), {out: options})[out]


def score(some, out):
  return run.score(some, run.load(some), out)


def untimed(out):
  found = json.loads((out / "results.json").read_text())
  del found["timing"]
  return found


def test_every_item_is_asked_once_and_scored(gqa, scripted, tmp_path):
  model = scripted()
  out = ask(model, suite(gqa), OPTIONS, tmp_path / "out")["tasks"]["gqa"]
  # Each about its picture, whose colour is the answer.
  assert sorted(r.question for r in model.asked) == [
    f"Which colour is {n}?\nAnswer the question using a single word or phrase."
    for n in (0, 1, 2, 4, 5, 6)
  ]
  assert {r.max_tokens for r in model.asked} == {16}
  assert out["score"] == pytest.approx(100 * 5 / 6) and out["complete"]
  assert out["headline"] == "mean" and out["paper"] == 58.2
  assert (out["n"], out["n_expected"], out["n_published"]) == (6, 6, 6)
  assert (out["unparsed"], out["failed"], out["tokens"]) == (0, 0, 12)
  # Nine entries of the regions and the context tokens, of 36.
  context_tokens = model.config.model.gaze.context_tokens
  assert context_tokens > 0
  assert out["visual_kv"] == {
    "per_query_head": 9 + context_tokens,
    "unique_per_kv_head": 12 + context_tokens,
    "dense": 36,
  }


def test_what_predictions_were_made_by_is_beside_them(gqa, scripted, tmp_path):
  options = asking.Options(top_k=3, batch_size=2)
  ask(scripted(), suite(gqa), options, tmp_path / "out")
  made = predictions.settings(tmp_path / "out", "gqa")
  assert made["model"] == "a model" and made["batch_size"] == 2
  assert made["budget"] == {"top_k": 3, "share": None}
  assert made["prompt"].startswith("Which colour is 0?\n")
  assert made["max_tokens"] == 16 and made["frames"] is None
  (digest,) = made["files"].values()
  assert len(digest) == 64
  assert untimed(tmp_path / "out")["tasks"]["gqa"]["made_by"] == made


@pytest.mark.parametrize("deaths", [(0,), (1, 2), (3, 1, 1)])
def test_a_run_that_was_killed_goes_on(gqa, scripted, tmp_path, deaths):
  ask(scripted(), suite(gqa), OPTIONS, tmp_path / "whole")
  asked = 0
  for dies_at in deaths:
    model = scripted(dies_at=dies_at)
    with pytest.raises(KeyboardInterrupt):
      ask(model, suite(gqa), OPTIONS, tmp_path / "out")
    asked += len(model.asked)
    lines = tmp_path / "out" / "predictions" / "gqa" / "0.jsonl"
    with open(lines, "ab") as file:
      file.write(b'{"id": "q5", "te')  # a line that was cut off
  model = scripted()
  ask(model, suite(gqa), OPTIONS, tmp_path / "out")
  assert asked + len(model.asked) == 6
  assert untimed(tmp_path / "out") == untimed(tmp_path / "whole")


@pytest.mark.parametrize(
  "changed",
  [
    asking.Options(top_k=2),
    asking.Options(share=0.5),
    asking.Options(batch_size=3),
    asking.Options(blind=True),
  ],
)
def test_answers_of_other_settings_are_never_mixed(
  gqa, scripted, tmp_path, changed
):
  ask(scripted(), suite(gqa), OPTIONS, tmp_path)
  with pytest.raises(errors.GazeError, match="choose another --out"):
    ask(scripted(), suite(gqa), changed, tmp_path)


def test_another_model_or_file_is_refused_by_name(
  gqa, scripted, tmp_path, monkeypatch
):
  ask(scripted(), suite(gqa), OPTIONS, tmp_path)
  monkeypatch.setattr("gaze_jax.api.identity.of", lambda model: "another")
  with pytest.raises(errors.GazeError, match="model = 'a model', .*'another'"):
    ask(scripted(), suite(gqa), OPTIONS, tmp_path)
  monkeypatch.setattr("gaze_jax.api.identity.of", lambda model: "a model")
  path = tmp_path / "data" / "gqa" / "testdev_balanced_questions.json"
  path.write_text(path.read_text() + " ")
  with pytest.raises(errors.GazeError, match="files = "):
    ask(scripted(), suite(gqa), OPTIONS, tmp_path)


def test_a_folder_has_one_writer(gqa, scripted, tmp_path):
  some, out = suite(gqa), tmp_path / "out"
  with whole_file.locked(out / "lock", out):
    with pytest.raises(errors.GazeError, match="another process writes into"):
      ask(scripted(), some, OPTIONS, out)
  assert not (out / "predictions").exists()
  assert ask(scripted(), some, OPTIONS, out)["tasks"]["gqa"]["n"] == 6


def test_weights_are_read_once_for_all_conditions(
  gqa, scripted, tmp_path, monkeypatch
):
  asked = []
  monkeypatch.setattr(
    "gaze_jax.api.identity.of", lambda model: asked.append(model) or "a model"
  )
  ways = curve.conditions([1, 2], OPTIONS)
  some = suite(gqa)
  curve.run(scripted(), some, run.load(some), ways, tmp_path)
  assert len(asked) == 1


def test_a_limit_takes_whole_clusters_and_says_so(gqa, scripted, tmp_path):
  out = ask(scripted(), suite(gqa, limit=3), OPTIONS, tmp_path)
  figures = out["tasks"]["gqa"]
  assert figures["n"] == 4 and not figures["complete"]
  assert "gqa (incomplete) | 75.0 | 58.2 | 4 of 6" in results.markdown(out)
  # The rest is asked when the limit goes.
  model = scripted()
  figures = ask(model, suite(gqa), OPTIONS, tmp_path)["tasks"]["gqa"]
  assert len(model.asked) == 2 and figures["complete"]


def test_missing_predictions_are_refused_but_for_a_part(
  gqa, scripted, tmp_path
):
  ask(scripted(), suite(gqa, limit=2), OPTIONS, tmp_path)
  with pytest.raises(errors.GazeError, match="4 of 6 items have no prediction"):
    score(suite(gqa), tmp_path)
  out = score(suite(gqa, partial=True), tmp_path)["tasks"]["gqa"]
  assert out["n"] == 2 and out["n_expected"] == 6 and not out["complete"]


def test_scoring_again_gives_the_same_file(gqa, scripted, tmp_path):
  ask(scripted(), suite(gqa), OPTIONS, tmp_path)
  before = (tmp_path / "results.json").read_bytes()
  score(suite(gqa), tmp_path)
  assert (tmp_path / "results.json").read_bytes() == before
  lmms = score(suite(gqa, protocol="lmms"), tmp_path)
  assert lmms["tasks"]["gqa"]["protocol"] == "lmms"


def test_pictures_that_are_missing_are_told_before_any_question(
  gqa, scripted, tmp_path
):
  (tmp_path / "data" / "gqa" / "images" / "blue.jpg").unlink()
  model = scripted()
  with pytest.raises(errors.GazeError, match="2 of 6 items lack .*q2: 'images"):
    ask(model, suite(gqa), OPTIONS, tmp_path)
  assert not model.asked
  out = ask(model, suite(gqa, partial=True), OPTIONS, tmp_path)
  figures = out["tasks"]["gqa"]
  # They are wrong, counted, and the result is none of the whole set.
  assert figures["failed"] == 2 and not figures["complete"]
  assert figures["score"] == pytest.approx(100 * 3 / 6)
  for picture in (tmp_path / "data" / "gqa" / "images").iterdir():
    picture.unlink()
  with pytest.raises(errors.GazeError, match="6 of 6"):
    ask(model, suite(gqa, partial=True), OPTIONS, tmp_path / "other")


def test_a_picture_that_cannot_be_read_is_counted(gqa, scripted, tmp_path):
  (tmp_path / "data" / "gqa" / "images" / "blue.jpg").write_bytes(b"no image")
  out = ask(scripted(), suite(gqa), OPTIONS, tmp_path)["tasks"]["gqa"]
  assert out["failed"] == 2 and not out["complete"]
  found = predictions.read(tmp_path, "gqa")["q2"]
  assert found.error.startswith("unreadable image: ") and not found.text


def test_a_question_that_cannot_be_asked_is_counted(gqa, scripted, tmp_path):
  prompt = "Which colour is 5?\nAnswer the question using a single word or"
  model = scripted(refused=(f"{prompt} phrase.",))
  out = ask(model, suite(gqa), OPTIONS, tmp_path)["tasks"]["gqa"]
  assert out["failed"] == 1 and out["score"] == pytest.approx(100 * 4 / 6)
  found = predictions.read(tmp_path, "gqa")
  assert found["q5"].error == "refused: too long by far"
  # Answers after it are about their own items still.
  assert {k: v.text for k, v in found.items() if k != "q5"} == {
    "q0": " red\n",
    "q4": " red\n",
    "q1": " green\n",
    "q2": " blue\n",
    "q6": " blue\n",
  }


def test_blind_shows_nothing(gqa, scripted, tmp_path):
  model = scripted()
  options = asking.Options(blind=True)
  out = ask(model, suite(gqa), options, tmp_path)["tasks"]["gqa"]
  assert all(not r.images and not r.videos for r in model.asked)
  assert out["score"] == 0 and out["complete"]


def test_a_text_with_a_literal_mark_is_not_taken_for_a_picture(
  gqa, scripted, tmp_path
):
  path = tmp_path / "data" / "gqa" / "testdev_balanced_questions.json"
  path.write_text(
    path.read_text().replace("colour is 6", "<image> or <image> is 6")
  )
  out = ask(scripted(), suite(gqa), OPTIONS, tmp_path)["tasks"]["gqa"]
  assert out["failed"] == 1
  assert "literal mark" in predictions.read(tmp_path, "gqa")["q6"].error


def test_a_broken_line_is_named(gqa, scripted, tmp_path):
  ask(scripted(), suite(gqa), OPTIONS, tmp_path)
  lines = tmp_path / "predictions" / "gqa" / "0.jsonl"
  text = lines.read_text().splitlines(keepends=True)
  lines.write_text("".join([*text[:2], "{}\n", *text[2:]]))
  with pytest.raises(errors.GazeError, match=r"0\.jsonl, line 3: no predict"):
    score(suite(gqa), tmp_path)


def test_shards_of_several_runs_are_one(gqa, scripted, tmp_path):
  ask(scripted(), suite(gqa), OPTIONS, tmp_path)
  folder = tmp_path / "predictions" / "gqa"
  lines = (folder / "0.jsonl").read_bytes().splitlines(keepends=True)
  (folder / "0.jsonl").write_bytes(b"".join(lines[:2]))
  (folder / "1.jsonl").write_bytes(b"".join(lines[2:]))
  out = score(suite(gqa), tmp_path)["tasks"]["gqa"]
  assert out["n"] == 6 and out["complete"]


def test_an_average_is_of_an_explicit_list(gqa, scripted, tmp_path):
  out = ask(scripted(), suite(gqa, average=["gqa"]), OPTIONS, tmp_path)
  assert out["average"]["of"] == ["gqa"]
  assert "Mean of gqa, each of 100: 83.3" in results.markdown(out)
  with pytest.raises(
    errors.GazeError, match="--average: mmvp is none of --tasks"
  ):
    score(suite(gqa, average=["mmvp"]), tmp_path)


def test_the_registry_names_each_task_once():
  assert all(name == task.name for name, task in registry.TASKS.items())
  with pytest.raises(errors.GazeError, match="'gqaa' is none of gqa, textvqa"):
    registry.named(["gqaa"])
  with pytest.raises(errors.GazeError, match="name each task once"):
    registry.named(["gqa", "gqa"])
  text = registry.listing()
  assert "gqa: 12578 items, DATA/gqa/" in text
  assert "testdev_balanced_questions.json" in text


def test_an_id_twice_is_refused(gqa):
  task, data = gqa
  (form,) = task.forms[1:]
  twice = task_lib.Files(form.patterns, lambda *a: [*form.read(*a)] * 2)
  double = dataclasses.replace(task, forms=(twice,))
  with pytest.raises(errors.GazeError, match="item 'q0' is in .* twice"):
    task_lib.items(double, data)


def test_an_item_without_a_gold_is_named_before_any_question(
  gqa, scripted, tmp_path
):
  path = tmp_path / "data" / "gqa" / "testdev_balanced_questions.json"
  found = json.loads(path.read_text())
  found["q4"]["answer"] = None
  path.write_text(json.dumps(found))
  model = scripted()
  with pytest.raises(errors.GazeError, match="item 'q4' has no prompt or no g"):
    ask(model, suite(gqa), OPTIONS, tmp_path)
  assert not model.asked


def test_files_of_one_name_are_told_apart(gqa, scripted, tmp_path):
  """MMMU's thirty tables have one name, each in a folder of its own."""
  ask(scripted(), suite(gqa), OPTIONS, tmp_path / "out")
  made = predictions.settings(tmp_path / "out", "gqa")
  assert list(made["files"]) == ["testdev_balanced_questions.json"]
  inner = tmp_path / "data" / "gqa" / "inner"
  inner.mkdir()
  for path in (tmp_path / "data" / "gqa").glob("*"):
    if path != inner:
      path.rename(inner / path.name)
  (inner / "images").rename(tmp_path / "data" / "gqa" / "images")
  ask(scripted(), suite(gqa), OPTIONS, tmp_path / "other")
  made = predictions.settings(tmp_path / "other", "gqa")
  assert list(made["files"]) == ["inner/testdev_balanced_questions.json"]


def test_a_task_says_how_an_answer_begins(gqa, scripted, tmp_path):
  task, data = gqa
  task = dataclasses.replace(task, system="Be brief.", begins="It is (")
  model = scripted()
  ask(model, run.Suite(tasks=[task], data=data), OPTIONS, tmp_path)
  assert {r.begins for r in model.asked} == {"It is ("}
  # The system text is read before what all items of a cluster show.
  assert {system for _, _, system in model.encoded} == {"Be brief."}
  assert {r.system for r in model.asked} == {None}
  made = predictions.settings(tmp_path, "gqa")
  assert (made["system"], made["begins"]) == ("Be brief.", "It is (")


@pytest.mark.parametrize(
  "options, told",
  [
    (OPTIONS, "the trained budget, greedy"),
    (asking.Options(top_k=3), "K = 3, greedy"),
    (
      asking.Options(share=0.25, regions="random"),
      "0.25 of the regions, drawn at random, greedy",
    ),
    (asking.Options(blind=True), "no picture, greedy"),
  ],
)
def test_the_table_says_how_it_was_asked(
  gqa, scripted, tmp_path, options, told
):
  ask(scripted(), suite(gqa), options, tmp_path)
  text = (tmp_path / "results.md").read_text()
  assert "| gqa | " in text and "; scored by protocol `default`; model" in text
  assert f"* gqa: asked with {told}, in float32" in text


def test_other_processes_fail_with_the_first(
  gqa, scripted, tmp_path, monkeypatch
):
  """What process 0 finds on its disk is told to all, before any answers."""
  said = []
  monkeypatch.setattr(run.processes, "share", lambda x: said.append(x) or x)
  ask(scripted(), suite(gqa), OPTIONS, tmp_path)
  with pytest.raises(errors.GazeError, match="choose another --out"):
    ask(scripted(), suite(gqa), asking.Options(top_k=1), tmp_path)
  monkeypatch.setattr(run.processes, "is_first", lambda: False)
  monkeypatch.setattr(run.processes, "share", lambda x: said[-1])
  model = scripted()
  with pytest.raises(errors.GazeError, match="choose another --out"):
    ask(model, suite(gqa), asking.Options(top_k=1), tmp_path)
  assert not model.asked


def test_answers_are_only_scored_with_their_own_files(gqa, scripted, tmp_path):
  """Another copy of the data: ids may be the same and golds others."""
  ask(scripted(), suite(gqa), OPTIONS, tmp_path)
  path = tmp_path / "data" / "gqa" / "testdev_balanced_questions.json"
  path.write_text(path.read_text().replace("pink", "green"))
  with pytest.raises(errors.GazeError, match="made with files = "):
    score(suite(gqa), tmp_path)


def test_what_failed_is_asked_again(gqa, scripted, tmp_path):
  picture = tmp_path / "data" / "gqa" / "images" / "blue.jpg"
  sound = picture.read_bytes()
  picture.write_bytes(b"cut off")
  assert (
    ask(scripted(), suite(gqa), OPTIONS, tmp_path)["tasks"]["gqa"]["failed"]
    == 2
  )
  picture.write_bytes(sound)
  model = scripted()
  out = ask(model, suite(gqa), OPTIONS, tmp_path)["tasks"]["gqa"]
  assert len(model.asked) == 2 and not out["failed"] and out["complete"]
  assert out["score"] == pytest.approx(100 * 5 / 6)


def test_results_of_other_tasks_stay(gqa, scripted, tmp_path):
  task, data = gqa
  ask(scripted(), suite(gqa), OPTIONS, tmp_path)
  other = dataclasses.replace(task, name="gqa2", total="gqa")
  some = run.Suite(tasks=[other], data=data)
  found = ask(scripted(), some, asking.Options(top_k=1), tmp_path)
  assert found["tasks"].keys() == found["timing"].keys() == {"gqa", "gqa2"}
  text = results.markdown(found)
  assert "* gqa: asked with the trained budget" in text
  assert "* gqa2: asked with K = 1" in text


@pytest.mark.parametrize("gold", ["(F)", None])
def test_a_letter_that_no_answer_can_be_is_refused(gold, tmp_path):
  published_letters.mmbench_parquet(tmp_path)
  task = registry.TASKS["mmbench_en_dev"]
  (form,) = task.forms
  spoiled = lambda *files: (
    dataclasses.replace(item, fields=item.fields | {"answer": gold})
    for item in form.read(*files)
  )
  forms = (task_lib.Files(form.patterns, spoiled),)
  some = run.Suite([dataclasses.replace(task, forms=forms)], str(tmp_path))
  with pytest.raises(errors.GazeError, match="no answer to it would be right"):
    run.load(some)


def test_a_part_of_a_table_that_is_missing_is_named(tmp_path):
  published_letters.mmbench_parquet(tmp_path)
  (path,) = tmp_path.rglob("en/dev-*.parquet")
  path.rename(path.with_name("dev-00001-of-00003.parquet"))
  some = run.Suite([registry.TASKS["mmbench_en_dev"]], str(tmp_path))
  with pytest.raises(errors.GazeError, match="dev-00000-of-00003 is missing"):
    run.load(some)


def test_hosts_that_see_other_files_are_told(
  gqa, scripted, tmp_path, monkeypatch
):
  """Process 1 can't read a picture that process 0 can."""
  ask(scripted(), suite(gqa), OPTIONS, tmp_path / "first")
  monkeypatch.setattr(asking.processes, "share", lambda text: "")
  picture = tmp_path / "data" / "gqa" / "images" / "blue.jpg"
  picture.write_bytes(b"cut off")
  task, data = gqa
  items = task_lib.items(task, data)
  with pytest.raises(errors.GazeError, match="'q2': unreadable .* process 0"):
    list(asking.ask(scripted(), task, items, OPTIONS))


def test_points_and_shares_are_averaged_of_a_hundred(scripted, tmp_path):
  published.mme_parquet(tmp_path)
  published.gqa_parquet(tmp_path)
  tasks = [registry.TASKS[name] for name in ("mme", "gqa")]
  some = run.Suite(tasks, str(tmp_path), average=["mme", "gqa"])
  found = ask(scripted(), some, OPTIONS, tmp_path / "out")
  mme, gqa = (found["tasks"][name]["score"] for name in ("mme", "gqa"))
  assert found["average"]["score"] == pytest.approx((mme / 20 + gqa) / 2)
