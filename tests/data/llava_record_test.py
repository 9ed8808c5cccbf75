"""Records of LLaVA's format: what is used, and the true reason why not."""

import collections

import pytest

from gaze_jax.data import json_records
from gaze_jax.data import llava_record
from gaze_jax.data import samples
from gaze_jax.data import skipped as skipped_lib

NAN = float("nan")


def human(value):
  return {"from": "human", "value": value}


def gpt(value):
  return {"from": "gpt", "value": value}


def system(value):
  return {"from": "system", "value": value}


TALK = [human("<image>\nWhat?"), gpt("A fox.")]
PLAIN = [human("Hi"), gpt("Yo")]
WANT = samples.Turn("<image>\nWhat?", "A fox.")


def record(said=TALK, **keys):
  return {"conversations": said} | keys


Read = collections.namedtuple(
  "Read", "turns images system videos", defaults=[()]
)


def read(*args, **keys):
  sample, media = llava_record.read(record(*args, **keys))
  return Read(sample.conversation, media.images, sample.system, media.videos)


def skipped(value):
  with pytest.raises(skipped_lib.SkipError) as error:
    llava_record.read(value)
  assert "\n" not in str(error.value)
  return error.value.reason, str(error.value)


@pytest.mark.parametrize("empty", [None, "", [], [None], [""], NAN, {}, " "])
def test_an_empty_key_is_as_good_as_none(empty):
  for keys in (
    dict(image=empty, images=["a.png"]),
    dict(image="a.png", images=empty),
    dict(image="a.png", video=empty, audio=empty, messages=empty, system=empty),
    dict(image="a.png", videos=empty),
  ):
    assert read(**keys) == Read((WANT,), ("a.png",), None)
  talk = read(PLAIN, image=empty, images=empty)
  assert talk.images == () and talk.turns == (samples.Turn("Hi", "Yo"),)
  said = [dict(turn, role=empty, content=empty) for turn in PLAIN]
  assert read(said).turns == talk.turns


def test_two_keys_that_agree_and_two_that_do_not():
  assert read(image="a.png", images=["a.png"]).images == ("a.png",)
  assert read(image=["a.png"], messages=TALK).turns == (WANT,)
  for keys in (
    dict(image="a.png", images=["b.png"]),
    dict(image="a.png", messages=PLAIN),
    {"image": "a.png", json_records.REPEATED: ["image"]},
  ):
    assert skipped(record() | keys)[0] == "two keys"
  for turn in (
    human("Hi") | {"content": "Ho"},
    human("Hi") | {json_records.REPEATED: ["value"]},
    human("Hi") | {"role": "assistant"},
  ):
    reason, said = skipped(record([turn, gpt("Yo")]))
    assert reason == "two keys" and said.startswith("turn 0: ")


def test_a_caption_asks_with_a_picture_alone():
  said = [human("<image>"), gpt("a red square"), human("<image>\n"), gpt("b")]
  talk = read(said, images=["a.png", "b.png"])
  assert [t.question for t in talk.turns] == ["<image>", "<image>\n"]
  assert skipped(record([human(" "), gpt("a")]))[0] == "empty turn"
  assert skipped(record([*TALK, human(""), gpt("a")]))[0] == "empty turn"
  assert skipped(record([human("<image>"), gpt("<image>")], image="a"))[0] == (
    "empty turn"
  )


def test_a_greeting_is_left_out():
  for greeting in ([gpt("Hi!")], [gpt("Hi!"), gpt("<image>")]):
    assert read([*greeting, *TALK], image="a.png").turns == (WANT,)
    talk = read([system("Be brief."), *greeting, *TALK], image="a.png")
    assert (talk.turns, talk.system) == ((WANT,), "Be brief.")


def test_a_system_turn_is_kept_as_such():
  assert read([system("Be brief."), *PLAIN]).system == "Be brief."
  assert read(PLAIN, system="Be brief.").system == "Be brief."
  both = [system("Be brief."), *PLAIN]
  assert read(both, system="Be brief.").system == "Be brief."
  assert read([system(""), *PLAIN]).system is None
  assert skipped(record(both, system="Be long."))[0] == "two keys"
  assert skipped(record(PLAIN, system=7))[0] == "not a text"
  reason, said = skipped(record([*PLAIN, system("x"), *PLAIN]))
  assert reason == "odd turns" and "turn 2 is from 'system'" in said


def test_the_mark_of_the_other_kind_is_named():
  talk = [human("<image> What?"), gpt("A.")]
  reason, said = skipped(record(talk, video="a.mp4"))
  assert reason == "video count"
  assert said == "<image> in the text, and videos are marked by <video>"
  talk = [human("<video> What?"), gpt("A.")]
  reason, said = skipped(record(talk, image="a.png"))
  assert reason == "image count"
  assert said == "<video> in the text, and images are marked by <image>"


def test_a_question_without_an_answer_is_left_out_at_the_end():
  assert read([*TALK, human("And?")], image="a.png").turns == (WANT,)
  # What it shows is left out with it.
  said = [*TALK, human("<image> And this?")]
  assert read(said, image=["a.png", "b.png"]).images == ("a.png",)
  assert skipped(record(said, image=["a.png"] * 3))[0] == "image count"
  assert read([*PLAIN, human(None)]).turns == (samples.Turn("Hi", "Yo"),)
  for said in ([human("Hi")], [gpt("Hi")], [system("Hi")], [system("a")] * 2):
    assert skipped(record(said))[0] == "odd turns"


def test_roles_by_their_other_names():
  said = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<image>\nWhat?"},
    {"role": "assistant", "content": "A fox."},
  ]
  want = Read((WANT,), ("a.png",), "Be brief.")
  assert read(None, messages=said, image="a.png") == want
  mixed = [{"from": "User", "value": "Hi"}, {"from": "GPT", "value": "Yo"}]
  assert read(mixed).turns == (samples.Turn("Hi", "Yo"),)


@pytest.mark.parametrize("who", ["tool", "observation", "", 7, ["human"]])
def test_who_is_not_known_is_named(who):
  said = [human("a"), {"from": who, "value": "b"}, gpt("c")]
  reason, text = skipped(record(said))
  assert reason in ("odd turns", "absent key") and "turn 1" in text
  assert who == "" or repr(str(who)) in text


@pytest.mark.parametrize("key, value", [("weight", 0), ("train", False)])
def test_an_answer_that_is_not_to_be_learned_is_not_learned(key, value):
  said = [human("a"), gpt("b") | {key: value}, human("c"), gpt("d")]
  reason, text = skipped(record(said))
  assert reason == "answer weight" and f"turn 1 has {key!r}: {value}" in text
  for harmless in (1, 1.0, True, None, ""):
    said[1][key] = harmless
    assert len(read(said).turns) == 2
  assert read([human("a") | {key: value}, gpt("b")]).turns  # never learned


def test_what_is_no_text_is_named_with_the_remedy():
  parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
  said = skipped(record([human(parts), gpt("b")], image="a.png"))[1]
  assert "turn 0 is of type list" in said and "one text, with <image>" in said
  said = skipped(record([human("How many?"), gpt(3)]))[1]
  assert "turn 1 is of type int, not a text: write it in quotes" in said
  said = skipped(record(image={"bytes": "", "path": "a.png"}))[1]
  assert "write each image to a file" in said


def test_turns_out_of_turn_are_named():
  for said in (
    [human("a"), human("b"), gpt("c")],
    [*PLAIN, gpt("c"), gpt("d")],
  ):
    reason, text = skipped(record(said))
    assert reason == "odd turns" and "after one from" in text


@pytest.mark.parametrize("mark", ["<video>", "<image>", ""])
@pytest.mark.parametrize(
  "key, reason",
  [
    ("Video_Path", "video"),
    ("frames", "video"),
    ("audio", "audio"),
    ("audio-urls", "audio"),
    ("speech", "audio"),
    ("pdf", "document"),
    ("documents", "document"),
    ("point_cloud", "cloud"),
  ],
)
def test_other_media_are_never_learned_blind(key, reason, mark):
  said = [human(f"{mark}What happens?"), gpt("A ball falls.")]
  for value in ("c.mp4", ["c.mp4"], {"path": "c.mp4"}):
    for pictures in ({}, dict(image="a.png")):
      got = skipped(record(said, **{key: value}, **pictures))
      assert got[0] == reason and repr(key) in got[1]


def test_videos_stand_where_their_marks_are():
  said = [human("<video>\nWhat?"), gpt("a"), human("<image> <video>"), gpt("b")]
  got = read(said, image="a.png", video=["c.mp4", "d.mp4"])
  assert got.images == ("a.png",) and got.videos == ("c.mp4", "d.mp4")
  assert read(said[:2], video="c.mp4", videos=["c.mp4"]).videos == ("c.mp4",)
  assert read([*said[:2], human("<video>")], video=["c", "d"]).videos == ("c",)
  assert skipped(record(said[:2], video="c", videos=["d"]))[0] == "two keys"


def test_a_mark_for_a_video_without_one():
  talk = [human("<video>\nWhat?"), gpt("a")]
  assert skipped(record(talk))[0] == "video count"
  assert skipped(record(PLAIN, video="c.mp4"))[0] == "video count"
  assert "literal text" in skipped(record(talk))[1]
  assert skipped(record(talk, video=7))[0] == "not a text"
  assert skipped(record(talk, image="c.mp4"))[0] in (
    "image count",
    "video count",
  )
  assert read([human("HTML?"), gpt("<video> plays.")]).turns


@pytest.mark.parametrize("key", ["image_path", "img", "photos", "file_name"])
def test_pictures_under_other_keys(key):
  reason, said = skipped(record(PLAIN, **{key: "a.png"}))
  assert reason == "image key" and repr(key) in said
  assert read(image="a.png", **{key: "a.png"}).images == ("a.png",)


def test_what_only_looks_like_media_is_read():
  others = dict(
    video_id="v1", image_id="7", audio=False, frames=8, points=[[1]]
  )
  others |= dict(source="coco.json", doc_id="d", width=3, url="http://x/a.png")
  assert read(image="a.png", **others).turns == (WANT,)
  assert read(PLAIN, **others).images == ()


@pytest.mark.parametrize("mark", ["<Image>", "<image 1>", "< image >", "<img>"])
def test_marks_that_are_almost_right_are_named(mark):
  reason, said = skipped(record([human(f"{mark} a"), gpt("b")], image="a.png"))
  assert reason == "image count" and f"{mark} is no mark" in said
  assert "0 <image> in the text for 1 images" in said


def test_a_mark_cannot_be_written_as_text():
  said = [human("What does <image> do in SVG?"), gpt("It shows a picture.")]
  assert "literal text" in skipped(record(said))[1]
  said = [human("<image> Write SVG."), gpt('<image href="a.png"/> <image>')]
  assert read(said, image="a.png").turns[0].answer == said[1]["value"]
