"""Subtitles: read from their files, and those that a prompt shows."""

import pytest
from tasks import published_videos

from gaze_jax.data import samples
from gaze_jax.tasks import registry
from gaze_jax.tasks import subtitles
from gaze_jax.tasks import task as task_lib

SELECT = (
  "Select the best answer to the following multiple-choice question based on"
  " the video and the subtitles. Respond with only the letter (A, B, C, or D)"
  " of the correct option."
)


def cue(start, end, said):
  return f"1\n{start} --> {end}\n{said}\n\n"


def seconds(start, end, said):
  """A cue within the first minute."""
  return cue(f"00:00:{start:06.3f}", f"00:00:{end:06.3f}", said)


@pytest.fixture
def written(tmp_path):
  def write(text):
    path = tmp_path / "a.srt"
    path.write_bytes(text.encode())
    return str(path)

  return write


# --- Files.


@pytest.mark.parametrize(
  "said, text",
  [
    ('<font color="white" size=".72c">Hello there</font>', "Hello there"),
    ("<i>Hello</i> <b>there</b>", "Hello there"),
    ("Hello\nthere", "Hello there"),  # several lines
    ("<i>Hello\n  there</i>  ", "Hello there"),
    ("I <3 you", "I <3 you"),
    ("a < b and c > d", "a < b and c > d"),  # no tag
    ("Über café 选", "Über café 选"),
    ("12", "12"),
  ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_the_text_of_a_subtitle(written, said, text, ends):
  path = written(seconds(1, 2, said).replace("\n", ends))
  assert subtitles.read(path) == [subtitles.Line(1.0, 2.0, text)]


@pytest.mark.parametrize(
  "start, end, expected",
  [
    ("00:00:01,500", "00:00:02,000", (1.5, 2.0)),
    ("01:02:03,004", "01:02:04,050", (3723.004, 3724.05)),
    ("0:00:01.500", "0:00:02.000", (1.5, 2.0)),
    ("100:00:00,000", "100:00:01,000", (360000.0, 360001.0)),
  ],
)
def test_the_times_of_a_subtitle(written, start, end, expected):
  (line,) = subtitles.read(written(cue(start, end, "x")))
  assert (line.start, line.end) == pytest.approx(expected)


@pytest.mark.parametrize(
  "text",
  [
    "\n",
    "no subtitle",
    seconds(1, 2, ""),
    seconds(1, 2, "<i> </i>"),
  ],
)
def test_no_subtitle_at_all(written, text):
  assert subtitles.read(written(text)) == []
  assert subtitles.at(written(text), [1.5]) == ""


def test_a_mark_of_byte_order_and_blank_lines_of_spaces(written):
  text = (
    "\ufeff" + seconds(0, 1, "one").strip() + "\n  \n" + seconds(1, 2, "two")
  )
  said = [line.text for line in subtitles.read(written(text))]
  assert said == ["one", "two"]


def test_files_that_cant_be_read(written, tmp_path):
  for content in (b"", b"\xff\xfe1\0", b"1\n\xff\n"):
    path = tmp_path / "b.srt"
    path.write_bytes(content)
    with pytest.raises(samples.DataError, match=r"b\.srt"):
      subtitles.read(str(path))


# --- Times.

SOME = (
  seconds(4, 6, "late")
  + seconds(0, 2, "early")
  + seconds(1, 5, "long")  # beside both
  + seconds(8, 9, "never")
)


@pytest.mark.parametrize(
  "times, said",
  [
    ([0.0], ["early"]),
    ([1.0], ["early", "long"]),
    ([2.0], ["long"]),  # a line's end is not of it
    ([5.9], ["late"]),
    ([4.5, 0.5], ["early", "long", "late"]),  # in the order of time
    ([1.0, 1.5, 1.9], ["early", "long"]),  # each once
    ([7.0], []),
    ([], []),
  ],
)
def test_lines_that_are_shown_at_some_times(written, times, said):
  assert subtitles.at(written(SOME), times) == "\n".join(said)


def test_lines_end_as_on_windows(written):
  expected = subtitles.read(written(SOME))
  path = written(SOME.replace("\n", "\r\n"))
  assert subtitles.read(path) == expected
  assert subtitles.at(path, [1.0, 4.5]) == "early\nlong\nlate"


def test_a_line_that_is_said_twice_is_there_twice(written):
  path = written(seconds(0, 1, "Go") + seconds(2, 3, "Go"))
  assert subtitles.at(path, [0.5, 2.5]) == "Go\nGo"


# --- Subtitles in a prompt.


def sub_items(data):
  task = registry.TASKS["videomme_sub"]
  return task, task_lib.items(task, str(data))


def sub_prompt(said):
  return (
    f"This video's subtitles are listed below: \n{said}\n{SELECT}\nHow many"
    " {}?\nA. One.\nB. Two.\nC. Three.\nD. Four.\nThe best answer is:"
  )


def test_subtitles_of_the_sampled_frames(tmp_path):
  """Of frames at 0, 0.2, 0.4 and 0.6 seconds; the third video has none."""
  published_videos.video_mme(tmp_path)
  task, items = sub_items(tmp_path)
  none = sub_prompt("No subtitles available").format("fish")
  for count, said in (
    (1, "Hello there"),
    (2, "Hello there\nLook, a cat"),
  ):
    requests, failed = published_videos.asked(task, items, frames=count)
    assert not failed and [r.question for r in requests] == [
      *(sub_prompt(said).format(x) for x in ("cats", "birds", "dogs")),
      none,
    ]


def test_no_frame_with_a_subtitle(tmp_path):
  published_videos.video_mme(tmp_path)
  path = tmp_path / "videomme" / "subtitle" / "a-B_c.srt"
  path.write_text("1\n00:01:00,000 --> 00:02:00,000\nlate\n")
  task, items = sub_items(tmp_path)
  requests, _ = published_videos.asked(task, items[:1])
  none = sub_prompt("No subtitles available").format("cats")
  assert requests[0].question == none


@pytest.mark.parametrize("name", ["videomme", "videomme_official"])
def test_subtitles_are_no_part_of_the_plain_task(tmp_path, name):
  published_videos.video_mme(tmp_path)
  for path in (tmp_path / "videomme" / "subtitle").iterdir():
    path.write_bytes(b"\xff\xfe broken")
  task = registry.TASKS[name]
  items = task_lib.items(task, str(tmp_path))
  assert not any(item.subtitles for item in items)
  requests, failed = published_videos.asked(task, items, blind=True)
  assert len(requests) == 4 and not failed
  assert not any(r.videos or "cat\n" in r.question for r in requests)


def test_subtitles_without_a_video(tmp_path):
  """A blind model reads those of the frames that it does not see."""
  published_videos.video_mme(tmp_path)
  task, items = sub_items(tmp_path)
  (request, *_), _ = published_videos.asked(task, items, frames=1, blind=True)
  assert request.videos == ()
  assert request.question == sub_prompt("Hello there").format("cats")


def test_subtitles_that_cant_be_read_fail_their_items(tmp_path):
  published_videos.video_mme(tmp_path)
  path = tmp_path / "videomme" / "subtitle" / "-xYz.srt"
  path.write_bytes(b"1\n\xff\xfe\n")
  task, items = sub_items(tmp_path)
  requests, failed = published_videos.asked(task, items, frames=1)
  assert len(requests) == 3 and failed[0].id == "002-1"
  assert "-xYz.srt" in failed[0].error
