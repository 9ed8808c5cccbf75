"""llava_json: what is skipped and why, and how much of it is allowed."""

import io
import json
import logging
import os
import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax.data import llava
from gaze_jax.data import media
from gaze_jax.data import samples
from gaze_jax.data import tokenizer as tokenizer_lib
from gaze_jax.data import video

TOKENIZER = tokenizer_lib.Tokenizer.load()
ANY_LENGTH = media.Reader(9999, video.Sampling(8), lambda *_: None)


def human(value):
  return {"from": "human", "value": value}


def gpt(value):
  return {"from": "gpt", "value": value}


def entry(**changes):
  good = dict(
    id="x",
    image="a.png",
    conversations=[human("<image>\nWhat is this?"), gpt("A fox.")],
  )
  return {k: v for k, v in (good | changes).items() if v is not ...}


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  inside = tmp_path / "images"
  inside.mkdir()
  for name in ("a.png", "b.png", "c.png"):
    array = rng.integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(array).save(inside / name)
  Image.fromarray(array).save(tmp_path / "outside.png")
  for name in ("text.png", "film.mp4", "talk.mp3"):
    (inside / name).write_text("hello")
  (inside / "sub").mkdir()
  Image.fromarray(np.zeros((200, 200), np.uint8)).save(inside / "large.png")
  whole = (inside / "a.png").read_bytes()
  (inside / "short.png").write_bytes(whole[: len(whole) // 2])
  return tmp_path


def make(
  folder, entries, *, max_skipped=0.5, config=None, split="train", model=None
):
  path = folder / "data.json"
  path.write_text(json.dumps(entries))
  data = dict(
    source="llava_json",
    path=str(path),
    image_folder=str(folder / "images"),
    max_skipped=max_skipped,
    max_pixels=10_000,
    max_units=2,
    sequence_length=400,
  )
  config = config_lib.from_config_dict(
    dict(data=data | (config or {}), model=model or {})
  )
  return llava.SOURCE.make(config, split)


def test_a_conversation_with_an_image(folder):
  s = make(folder, [entry()])
  sample = s.sample(0)
  assert sample.conversation == (
    samples.Turn("<image>\nWhat is this?", "A fox."),
  )
  expected = np.asarray(Image.open(folder / "images" / "a.png"))
  np.testing.assert_array_equal(sample.images[0], expected)
  np.testing.assert_array_equal(s.canvas(0)[0], expected)
  assert s.text(0).conversation == sample.conversation
  assert s.skipped == {}


def test_several_images_several_turns_and_text_alone(folder):
  s = make(
    folder,
    [
      entry(
        image=["a.png", "b.png"],
        conversations=[
          human("<image><image> Same?"),
          gpt("No."),
          human("Sure?"),
          gpt("Yes."),
        ],
      ),
      entry(image=..., id=..., conversations=[human("Hello"), gpt("You")]),
      entry(image=..., images=["c.png"]),
    ],
  )
  assert [len(x.images) for x in map(s.sample, range(3))] == [2, 0, 1]
  assert len(s.sample(0).conversation) == 2


BAD = {
  "missing image": entry(image="none.png"),
  "corrupt image": entry(image="text.png"),
  "image too large": entry(image="large.png"),
  "absent key": entry(conversations=...),
  "absent key ": entry(conversations=[human("<image> a"), {"from": "gpt"}]),
  "absent key  ": entry(conversations=[{"value": "<image>"}, gpt("x")]),
  "empty turn": entry(conversations=[human("<image> a"), gpt("  ")]),
  "empty turn ": entry(image=..., conversations=[human("\n"), gpt("a")]),
  "image outside the folder": entry(image="../outside.png"),
  "image outside the folder ": entry(image="/etc/hostname"),
  "image outside the folder  ": entry(image="..\\outside.png"),
  "missing image ": entry(image="sub"),
  "missing image  ": entry(image="\udcff\x00.png"),
  "video": entry(image="film.mp4"),
  "audio": entry(image="talk.mp3"),
  "two keys": entry(images=["b.png"]),
  "'system' turn": entry(
    conversations=[
      {"from": "system", "value": "Be brief."},
      *entry()["conversations"],
    ]
  ),
  "image count": entry(conversations=[human("no mark"), gpt("x")]),
  "image count ": entry(image=...),
  "image count  ": entry(image=["a.png", "b.png"]),
  "odd turns": entry(conversations=[human("<image> a")]),
  "odd turns ": entry(conversations=[gpt("<image> a"), human("b")]),
  "odd turns  ": entry(conversations=[]),
  "not a text": entry(conversations=[human(7), gpt("x")]),
  "not a text ": entry(image=7),
  "not a text  ": entry(conversations=[human("<image>\ud800"), gpt("x")]),
  "not an object": ["a list"],
  "not an object ": entry(conversations=["a", "b"]),
  "too long": entry(conversations=[human("<image>" + "ab " * 400), gpt("x")]),
  "too long ": entry(
    image=["a.png"] * 3, conversations=[human("<image>" * 3 + "a"), gpt("x")]
  ),
}


@pytest.mark.parametrize(
  "name, what",
  [
    ("none.png", "'none.png' in .* .data.image_folder.: no such file"),
    ("https://example.org/a.png", "an address.* download it first"),
    ("/a.png", "leads out of .*: set data.image_folder"),
  ],
)
def test_an_image_that_is_not_there_is_named_with_the_remedy(
  folder, caplog, name, what
):
  with caplog.at_level(logging.WARNING, logger="absl"):
    make(folder, [entry(), entry(image=name)])
  assert re.search(what, caplog.text)


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_sample_is_counted_and_named(folder, caplog, reason):
  with caplog.at_level(logging.WARNING, logger="absl"):
    s = make(folder, [entry(), BAD[reason]])
  assert s.skipped == {reason.strip(): 1}
  assert len(s) == 1 and s.sample(0).conversation
  assert "sample 1" in caplog.text and reason.strip() in caplog.text


def test_the_log_names_the_first_of_each_kind_and_counts_all(folder, caplog):
  bad = [BAD["missing image"]] * 3 + [BAD["image count"]] * 2
  with caplog.at_level(logging.WARNING, logger="absl"):
    make(folder, [*bad, *[entry()] * 5])
  said = [
    r.getMessage().removeprefix(f"{folder}/data.json: ") for r in caplog.records
  ]
  assert len(said) == 3
  assert said[0].startswith("skipped sample 0 (id x): missing image: ")
  assert said[1].startswith("skipped sample 3 (id x): image count: ")
  assert said[2] == (
    "5 of 10 samples can't be used (3 missing image, 2 image count)"
  )


def test_lines_are_named_by_their_number(folder, caplog):
  good = json.dumps(entry())
  path = folder / "data.jsonl"
  path.write_text(f"{good}\n{good[:20]}\n\n{good}\n[1]\n")
  with caplog.at_level(logging.WARNING, logger="absl"):
    s = llava.LlavaJson(
      str(path),
      image_folder=f"{folder}/images",
      max_skipped=0.5,
      reader=ANY_LENGTH,
    )
  assert len(s) == 2 and s.skipped == {"not JSON": 1, "not an object": 1}
  assert "skipped line 2: not JSON: " in caplog.text
  assert "skipped line 5: not an object: " in caplog.text


@pytest.mark.parametrize(
  "there, named",
  [
    ("caf\u00e9.png", "cafe\u0301.png"),
    ("cafe\u0301.png", "caf\u00e9.png"),
    ("sub/d.png", "sub\\d.png"),
    ("sub/caf\u00e9.png", ".\\sub\\cafe\u0301.png"),
    ("a\\b.png", "a\\b.png"),  # a name of this system with a backslash in it
  ],
)
def test_names_of_other_systems(folder, there, named):
  picture = (folder / "images" / "a.png").read_bytes()
  (folder / "images" / there).write_bytes(picture)
  s = make(folder, [entry(image=named)])
  assert s.skipped == {} and s.sample(0).images[0].shape == (40, 30, 3)


def test_whatever_a_record_is_called_is_one_line(folder):
  bad = entry(id="a\nb\ud800", image="n\n\ud800.png")
  with pytest.raises(samples.DataError) as error:
    make(folder, [bad])
  text = str(error.value)
  assert "\n" not in text and text.encode() and "(id a b\\ud800)" in text


# Squares of 2 x 2 tokens. 28 x 56 pixels become 4 + 2 x 5 and two context
# tokens, 56 x 28 become 4 + 4 x 3 and two.
TILED = dict(
  vision=dict(image_size=28),
  gaze=dict(context_tokens=1),
  tiling=dict(kind="anyres", pinpoints=[[28, 56], [56, 28]]),
)


def side_on(size, orientation, kind="PNG"):
  """An image file of a height and width, lying on its side or not."""
  out = io.BytesIO()
  exif = Image.Exif()
  exif[0x0112] = orientation
  pixels = np.full((*size, 3), 99, np.uint8)
  Image.fromarray(pixels).save(out, kind, exif=exif)
  return out.getvalue()


def exif_last(png):
  """The same PNG with its eXIf after the pixels."""
  start = png.index(b"eXIf") - 4
  stop = start + 12 + int.from_bytes(png[start : start + 4], "big")
  end = png.index(b"IEND") - 4
  return png[:start] + png[stop:end] + png[start:stop] + png[end:]


def test_a_row_of_tiles_is_measured_by_headers(folder):
  wide, tall = (28, 56), (56, 28)
  files = dict(
    wide=side_on(wide, 1),
    tall=side_on(tall, 1),
    turned=side_on(wide, 6, "JPEG"),
    back=side_on(tall, 6, "JPEG"),
    late=exif_last(side_on(wide, 6)),
  )
  entries = []
  for name, content in files.items():
    (folder / "images" / name).write_bytes(content)
    entries.append(entry(id=name, image=name))
  # <bos>, the image, and <user> what is this? <assistant> a fox. <eos>
  said = len(TOKENIZER.encode("What is this?") + TOKENIZER.encode("A fox.")) + 4
  options = dict(max_skipped=0.9, model=TILED)
  options["config"] = dict(sequence_length=16 + said)
  s = make(folder, entries, **options)
  assert s.skipped == {"too long": 3} and len(s) == 2
  assert [s.canvas(i)[0].shape[:2] for i in (0, 1)] == [wide] * 2
  # Where a file was changed since, the next one comes instead.
  s = make(folder, entries, **options)
  (folder / "images" / "back").write_bytes(side_on(tall, 1))
  again = pickle.loads(pickle.dumps(s))
  for late in (s, again):
    assert late.canvas(1)[0].shape[:2] == wide
    assert late.skipped == {"too long": 4}
  options["config"] = dict(sequence_length=18 + said)
  assert make(folder, entries, **options).skipped == {}


def test_past_the_share_there_is_one_clear_error(folder):
  entries = [entry()] * 6 + [BAD["missing image"]] * 2 + [BAD["image count"]]
  make(folder, entries, max_skipped=0.34)
  with pytest.raises(samples.DataError) as error:
    make(folder, entries, max_skipped=0.3)
  text = str(error.value)
  assert "3 of 9 samples" in text and "data.max_skipped = 0.3" in text
  assert "2 missing image, 1 image count" in text
  assert "sample 6 (id x): missing image" in text and "none.png" in text


def test_nothing_left_is_an_error_whatever_the_share(folder):
  with pytest.raises(samples.DataError, match="1 of 1 samples"):
    make(folder, [BAD["empty turn"]], max_skipped=1.0)


def test_a_body_found_broken_later_gives_the_next_good_sample(folder):
  other = [human("<image> And this?"), gpt("An owl.")]
  entries = [
    entry(),
    entry(image="short.png"),
    entry(image="b.png", conversations=other),
  ]
  s = make(folder, entries)
  assert len(s) == 3 and s.skipped == {}
  np.testing.assert_array_equal(s.sample(1).images[0], s.sample(2).images[0])
  assert s.skipped == {"corrupt image": 1}
  # The same in another order, in text, and in another process.
  again = pickle.loads(pickle.dumps(make(folder, entries)))
  assert again.text(1).conversation == s.sample(2).conversation
  np.testing.assert_array_equal(again.canvas(1)[0], s.sample(2).images[0])
  s.sample(1)
  assert s.skipped == {"corrupt image": 1}


def test_broken_bodies_count_towards_the_share(folder):
  s = make(
    folder, [entry(), entry(image="short.png"), entry()], max_skipped=0.1
  )
  with pytest.raises(samples.DataError, match="1 of 3.*short.png: broken"):
    s.sample(1)


def test_missing_file_and_folder(tmp_path):
  with pytest.raises(samples.DataError, match="can't read .*none.json: no"):
    llava.LlavaJson(
      str(tmp_path / "none.json"),
      image_folder="",
      max_skipped=0.0,
      reader=ANY_LENGTH,
    )
  (tmp_path / "x.json").write_text("[1]")
  with pytest.raises(samples.DataError, match="no such folder"):
    llava.LlavaJson(
      str(tmp_path / "x.json"),
      image_folder=str(tmp_path / "none"),
      max_skipped=0.0,
      reader=ANY_LENGTH,
    )


def test_splits(folder):
  with pytest.raises(config_lib.ConfigError, match="data.eval_path is empty"):
    make(folder, [entry()], split="new")
  with pytest.raises(config_lib.ConfigError, match="no split 'larger'"):
    make(folder, [entry()], split="larger")
  config = dict(eval_path=str(folder / "data.json"))
  assert len(make(folder, [entry()], config=config, split="new")) == 1


def test_what_tells_the_samples_from_others(folder):
  other = [human("<image> b"), gpt("c")]
  entries = [
    entry(),
    entry(image="b.png"),
    entry(image="c.png", conversations=other),
  ]
  base = make(folder, entries)
  moved = folder / "moved"
  shutil.copytree(folder / "images", moved)
  os.utime(moved / "a.png", (1, 1))
  renamed = json.loads(json.dumps(entries))
  (moved / "b.png").rename(moved / "d.png")
  renamed[1] |= dict(image="d.png", id="y", source="elsewhere")
  same = make(folder, renamed, config=dict(image_folder=str(moved)))
  assert same.content() == base.content() and len(base.content()) == 4
  assert same.fingerprint() == base.fingerprint()

  def differs(entries):
    one = make(folder, entries).content()
    return {key for key in one if one[key] != base.content()[key]}

  assert differs(entries[::-1]) == {"texts", "pictures"}
  assert differs([entries[1], entries[0], entries[2]]) == {"pictures"}
  said = [human("<image> b"), gpt("d")]
  answered = [*entries[:2], entry(image="c.png", conversations=said)]
  assert differs(answered) == {"texts", "any_order"}
  assert differs(entries[:2]) == {"samples", "texts", "pictures", "any_order"}
  assert differs([BAD["missing image"], *entries]) == set()
  content = bytearray((folder / "images" / "a.png").read_bytes())
  content[-20] ^= 1
  (folder / "images" / "a.png").write_bytes(content)
  assert differs(entries) == {"pictures", "any_order"}
  assert make(folder, entries).fingerprint() != base.fingerprint()


def test_llava_has_a_split_if_it_has_a_file(tiny_config):
  json = dict(data__source="llava_json", data__path="x.json")
  assert llava.SOURCE.splits(tiny_config(**json)) == {}
  config = tiny_config(**json, data__eval_path="y.json")
  assert llava.SOURCE.splits(config) == {"new": config}


def test_training_needs_a_file(tiny_config):
  config = tiny_config(data__source="llava_json")
  with pytest.raises(config_lib.ConfigError, match="needs data.path"):
    llava.SOURCE.make(config, "train")
