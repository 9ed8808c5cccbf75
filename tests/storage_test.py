"""What is read and written in a bucket, by a server on loopback."""

import pathlib

import pytest

from gaze_jax import errors
from gaze_jax import json_file
from gaze_jax import storage
from gaze_jax import whole_file
from gaze_jax.train import manifest


def test_names_without_a_scheme_are_paths_here(tmp_path):
  assert storage.path("out/run") == pathlib.Path("out/run")
  assert storage.near(tmp_path) == tmp_path
  (tmp_path / "a").write_text("x")
  assert storage.copy_here(tmp_path / "a") == tmp_path / "a"


def test_what_is_missing_is_said_in_a_line(cloud, monkeypatch):
  monkeypatch.setattr(cloud, "broken", "/b/forbidden/")
  with pytest.raises(errors.GazeError, match="^gs://forbidden: can't be reach"):
    storage.path("gs://forbidden/run")
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(errors.GazeError, match="pip install gcsfs$"):
    storage.path("gs://other/run")


def test_files_are_written_listed_and_read(bucket, cloud):
  whole_file.write(bucket / "b" / "c.json", '{"x": "ä"}')
  whole_file.write(bucket / "a", "")
  assert list(storage.files(bucket)) == [bucket / "a", bucket / "b" / "c.json"]
  assert storage.size(bucket / "b" / "c.json") == 11
  assert json_file.read(bucket / "b" / "c.json", errors.GazeError) == {"x": "ä"}
  # Nobody's list of it is kept: others write, too.
  cloud.put("bucket", f"{bucket.name}/b/d", b"")
  assert len(list(storage.files(bucket))) == 3


def test_a_file_is_copied_here_once_and_again_when_it_is_another(bucket, cloud):
  (bucket / "a").write_bytes(b"one")
  first = storage.copy_here(bucket / "a")
  asked = len(cloud.requests)
  assert storage.copy_here(bucket / "a") == first
  assert not any("alt=media" in one for one in cloud.requests[asked:])
  (bucket / "a").write_bytes(b"three")
  assert first.read_bytes() == b"one"
  assert storage.copy_here(bucket / "a").read_bytes() == b"three"
  with pytest.raises(errors.GazeError, match="/b: can't be copied here"):
    storage.copy_here(bucket / "b")
  assert len(list(first.parent.iterdir())) == 2  # nothing half done


def test_a_mirror_copies_what_has_changed(bucket, cloud):
  (bucket / "log").write_text("1")
  mirror = storage.Mirror(bucket, ["log", "not there"], writes=True)
  assert mirror.folder.name == bucket.name
  assert [p.name for p in mirror.folder.iterdir()] == ["log"]
  (mirror.folder / "more").mkdir()
  (mirror.folder / "more" / "x").write_text("x")
  mirror.copy()
  asked = len(cloud.requests)
  mirror.copy()
  assert len(cloud.requests) == asked
  with (mirror.folder / "log").open("a") as log:
    log.write("2")
  mirror.close()
  assert (bucket / "log").read_text() == "12"
  assert (bucket / "more" / "x").read_text() == "x"
  assert not mirror.folder.exists()
  other = storage.Mirror(bucket, ["log"], writes=False)
  (other.folder / "log").write_text("3")
  other.close()
  assert (bucket / "log").read_text() == "12"


def test_a_mirror_of_a_folder_here_is_the_folder(tmp_path):
  mirror = storage.Mirror(tmp_path, ["log"], writes=True)
  (mirror.folder / "log").write_text("1")
  mirror.close()
  assert (tmp_path / "log").read_text() == "1"


def test_a_mirror_that_can_not_be_kept_is_said(bucket, cloud, monkeypatch):
  mirror = storage.Mirror(bucket, [], writes=True)
  (mirror.folder / "log").write_text("1")
  monkeypatch.setattr(cloud, "broken", "POST /upload")
  with pytest.raises(errors.GazeError, match="the log can't be kept there"):
    mirror.close()


def test_a_step_in_a_bucket_is_whole_or_named(bucket):
  step = bucket / "7"
  (step / "params" / "d" / "x").write_bytes(b"123")
  (step / "params" / "y").write_bytes(b"")
  manifest.write(step, 7, 0.5)
  assert set(manifest.read(step).files) == {"params/d/x", "params/y"}
  manifest.check(step, ["params"])
  (step / "params" / "d" / "x").write_bytes(b"124")
  with pytest.raises(manifest.DamagedError, match="x has another checksum"):
    manifest.check(step, ["params"])
  (step / "params" / "d" / "x").unlink()
  with pytest.raises(manifest.DamagedError, match="x is missing"):
    manifest.check(step, ["params"])
