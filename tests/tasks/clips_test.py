"""Videos of items: where they are found, and which frames are read."""

import numpy as np
import pytest
from tasks import published_videos

from gaze_jax.data import skipped
from gaze_jax.data import video
from gaze_jax.tasks import asking
from gaze_jax.tasks import media

# --- Frames.


def frames(path, count):
  """The numbers of frames that are read, by their colour, and what is told."""
  shown = asking.read_video(str(path), count, 32 * 32)
  told = [round(float(pixels.mean()) / 8) for pixels in shown.frames]
  assert told == list(shown.numbers)
  return told, shown


@pytest.mark.parametrize(
  "length, count, expected",
  [
    (20, 1, [0]),
    (20, 2, [0, 19]),
    (20, 4, [0, 6, 12, 19]),  # 6.33 and 12.67 are cut off
    (20, 8, [0, 2, 5, 8, 10, 13, 16, 19]),
    (20, 20, list(range(20))),
    (4, 32, [0, 1, 2, 3]),  # each once
    (1, 32, [0]),
    (5, 4, [0, 1, 2, 4]),
  ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_frames_are_those_of_a_linspace(
  tmp_path, suffix, length, count, expected
):
  path = tmp_path / f"a{suffix}"
  published_videos.video(path, length)
  told, shown = frames(path, count)
  assert told == expected
  assert told == sorted(set(np.linspace(0, length - 1, count).astype(int)))
  assert shown.seconds == pytest.approx([n / 5 for n in expected], abs=1e-3)


def test_a_frame_beyond_the_limit_is_refused(tmp_path):
  path = tmp_path / "a.mp4"
  published_videos.video(path)
  with pytest.raises(
    video.VideoError, match=r"a\.mp4.* 32 x 32 = 1024 .* 1023"
  ):
    asking.read_video(str(path), 2, 32 * 32 - 1)


# --- Clips.


@pytest.mark.parametrize(
  "there, name",
  [
    ("a.mp4", "a"),
    ("a.MP4", "a"),
    ("a.mkv", "a"),
    ("a.webm", "a.mp4"),  # unpacked as another kind
    ("a.MP4", "a.mp4"),
    ("a.b.mp4", "a.b"),  # a full stop in a name
    ("d/a.mp4", "d/a"),
  ],
)
def test_a_clip_is_found_by_its_name(tmp_path, there, name):
  (tmp_path / "y" / there).parent.mkdir(parents=True)
  (tmp_path / "y" / there).touch()
  clip = media.Clip(str(tmp_path), ("x", "y", ""), name)
  assert clip.source() == str(tmp_path / "y" / there)


def test_the_first_folder_that_has_a_clip(tmp_path):
  for inside in ("y", "x"):
    (tmp_path / inside).mkdir()
    (tmp_path / inside / "a.mkv").touch()
  (tmp_path / "a.mp4").touch()
  clip = media.Clip(str(tmp_path), ("x", "y", ""), "a")
  assert clip.source() == str(tmp_path / "x" / "a.mkv")


def test_a_missing_video_says_where_it_was_looked_for(tmp_path):
  (tmp_path / "x").mkdir()
  (tmp_path / "x" / "a.txt").touch()
  (tmp_path / "a.mp4").mkdir()
  clip = media.Clip(str(tmp_path), ("x", "y", ""), "a")
  with pytest.raises(skipped.SkipError) as caught:
    clip.source()
  assert caught.value.reason == "missing video"
  assert str(caught.value) == (
    f"'a' (.mp4, .MP4, .mkv, .webm, .avi, .mov) is in none of x, y, . of"
    f" {tmp_path}"
  )
