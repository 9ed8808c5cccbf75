"""Which frames come out, by number; and what is refused and how.

Frame number i of a clip is grey of 8 i, so a picture says which it is.
"""

import inspect
import io
import math
import struct
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from gaze_jax import errors
from gaze_jax.data import animation
from gaze_jax.data import video

SIZE = (32, 48)
LIMIT = SIZE[0] * SIZE[1]


def grey(number, size=SIZE):
  return np.full((*size, 3), 8 * number, np.uint8)


def write(path, pictures, codec="libx264", rate=25, rotation=0, **options):
  """Encodes pictures; options are the encoder's."""
  pixels = {"gif": "rgb8", "ffv1": "bgr0"}.get(codec, "yuv420p")
  container = options.pop("container", {})
  with av.open(str(path), "w", options=container) as out:
    stream = out.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width = pictures[0].shape[:2]
    stream.pix_fmt = pixels
    if rotation:
      stream.set_display_rotation(rotation)
    for picture in pictures:
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      out.mux(stream.encode(frame))
    out.mux(stream.encode())
  return path


def clip(path, count=20, **options):
  return write(path, [grey(i) for i in range(count)], **options)


def numbers(pictures):
  return [round(float(p.mean()) / 8) for p in pictures]


def refused(path, *, frames=4, max_pixels=LIMIT):
  """The one line that says why; it begins with the file."""
  with pytest.raises(errors.GazeError) as caught:
    video.read(path, frames, max_pixels)
  message = str(caught.value)
  assert message.startswith(f"{path}: ") and "\n" not in message
  return message.removeprefix(f"{path}: ")


class Spy:
  """Counts the frames that are decoded; or has it that there are none."""

  def __init__(self, monkeypatch):
    self.decoded, self.silent, opened = 0, False, video._open

    class Container:
      def __init__(self, inner):
        self.inner = inner

      def __enter__(self):
        self.inner.__enter__()
        return self

      def __exit__(self, *error):
        return self.inner.__exit__(*error)

      def __getattr__(self, name):
        return getattr(self.inner, name)

      def decode(container, stream):
        for frame in () if self.silent else container.inner.decode(stream):
          self.decoded += 1
          yield frame

    monkeypatch.setattr(video, "_open", lambda *a: Container(opened(*a)))


# Which frames.


def test_centres_by_hand():
  even = lambda count, parts: video.centres(range(count), count, parts)
  assert even(20, 5) == [2, 6, 10, 14, 18]
  assert even(20, 1) == [10]
  assert even(21, 1) == [10]
  assert even(7, 2) == [1, 5]
  assert even(10, 4) == [1, 3, 6, 8]
  assert even(5, 4) == [0, 1, 3, 4]
  assert even(4, 4) == even(4, 9) == [0, 1, 2, 3]
  assert even(1, 3) == [0]


REORDERED = {"bf": "2", "x264-params": "b-adapt=0:scenecut=0"}


@pytest.mark.parametrize(
  "name, codec, options",
  [
    ("a.mp4", "libx264", {}),
    ("a.mp4", "libx264", REORDERED | {"g": "6"}),
    ("a.mov", "mpeg4", {"g": "1"}),
    ("a.mkv", "ffv1", {}),
    ("a.mkv", "libx264", REORDERED | {"g": "5"}),
    ("a.webm", "libvpx-vp9", {"g": "4"}),
    ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("a.avi", "mpeg4", {}),
    ("a.avi", "libx264", REORDERED),
    ("a.avi", "mpeg2video", {"bf": "2", "b": "4000000"}),
    ("a.ts", "libx264", REORDERED),
    ("a.mpg", "mpeg2video", {"bf": "2", "b": "4000000"}),
    ("a.flv", "flv", {}),
    ("a.wmv", "wmv2", {}),
    ("a.gif", "gif", {}),
  ],
)
def test_the_chosen_frames_are_at_the_centres(tmp_path, name, codec, options):
  path = clip(tmp_path / name, codec=codec, **options)
  for frames, expected in {5: [2, 6, 10, 14, 18], 3: [3, 10, 16]}.items():
    pictures = video.read(path, frames, LIMIT)
    assert numbers(pictures) == expected
    for picture in pictures:
      assert picture.dtype == np.uint8 and picture.shape == (*SIZE, 3)
      assert picture.flags.c_contiguous
  assert numbers(video.read(str(path), 100, LIMIT)) == list(range(20))


def test_lossless_frames_come_out_as_they_went_in(tmp_path):
  rng = np.random.default_rng(0)
  pictures = list(rng.integers(0, 256, (6, *SIZE, 3), np.uint8))
  path = write(tmp_path / "a.mkv", pictures, codec="ffv1")
  np.testing.assert_array_equal(video.read(path, 6, LIMIT), pictures)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_animations_by_pillow(tmp_path, kind):
  """Where each frame but the first is a small change of the one before."""
  path = tmp_path / f"a.{kind.lower()}"
  pictures = []
  for i in range(12):
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[: i + 1, :4] = 255
    pictures.append(picture)
  first, *rest = map(Image.fromarray, pictures)
  first.save(path, kind, save_all=True, append_images=rest, duration=50)
  out = video.read(path, 3, LIMIT)
  np.testing.assert_array_equal(out, [pictures[i] for i in (2, 6, 10)])


def test_transparency_lies_over_white(tmp_path):
  picture = Image.new("P", (48, 32), 1)
  picture.putpalette([0, 0, 0, 9, 9, 9])
  picture.putpixel((0, 0), 0)
  path = tmp_path / "a.gif"
  picture.save(path, transparency=0)
  (out,) = video.read(path, 4, LIMIT)
  assert out[0, :2].tolist() == [[255] * 3, [9] * 3]
  half = np.full((*SIZE, 4), (200, 100, 0, 51), np.uint8)
  path = tmp_path / "a.png"
  frames = [Image.fromarray(half), Image.fromarray(half // 2)]
  frames[0].save(path, save_all=True, append_images=frames[1:], disposal=1,
                 blend=0)  # fmt: skip
  # 200 / 5 + 255 * 4 / 5, and so on.
  assert video.read(path, 2, LIMIT)[0][3, 3].tolist() == [244, 224, 204]


@pytest.mark.parametrize("turned", [90, -90, 180])
def test_a_rotation_is_applied(tmp_path, turned):
  """As ffmpeg writes it: by so many degrees against the clock."""
  picture = grey(0)
  picture[:8, :8] = 255  # at the top on the left
  path = write(tmp_path / "a.mp4", [picture] * 3, rotation=turned)
  (out,) = video.read(path, 1, LIMIT)
  assert out.shape[:2] == (SIZE if turned == 180 else SIZE[::-1])
  corner = {90: (-4, 4), -90: (4, -4), 180: (-4, -4)}[turned]
  bright = {at: out[at].mean() > 128 for at in
            [(4, 4), (4, -4), (-4, 4), (-4, -4)]}  # fmt: skip
  assert [at for at in bright if bright[at]] == [corner]


def test_a_matrix_of_a_phone_held_upright(tmp_path):
  """(0 1 -1 0), which every phone writes, turns by the clock."""
  picture = grey(0)
  picture[:8, :8] = 255
  path = write(tmp_path / "a.mp4", [picture] * 3)
  raw = bytearray(path.read_bytes())
  at = raw.index(b"tkhd") + 4 + 40
  one, none = (65536).to_bytes(4, "big"), bytes(4)
  assert raw[at : at + 4] == one
  minus = (2**32 - 65536).to_bytes(4, "big")
  raw[at : at + 20] = none + one + none + minus + none
  path.write_bytes(raw)
  (out,) = video.read(path, 1, LIMIT)
  assert out.shape == (48, 32, 3) and out[4, -4].mean() > 128


@pytest.mark.parametrize("space", [1, 5])  # BT.709 and BT.601
def test_colours_are_converted_by_the_space_that_the_file_names(
  tmp_path, space
):
  colour = np.full((*SIZE, 3), (200, 30, 60), np.uint8)
  path = tmp_path / "a.mp4"
  with av.open(str(path), "w") as out:
    stream = out.add_stream("libx264", rate=5)
    stream.height, stream.width = SIZE
    stream.pix_fmt = "yuv420p"
    stream.codec_context.colorspace = space
    frame = av.VideoFrame.from_ndarray(colour, format="rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=space)
    out.mux(stream.encode(frame))
    out.mux(stream.encode())
  (picture,) = video.read(path, 1, LIMIT)
  np.testing.assert_allclose(picture.mean((0, 1)), (200, 30, 60), atol=3)


def test_a_broadcast_that_starts_over_is_counted(tmp_path):
  path = clip(tmp_path / "a.ts", 10)
  later = write(tmp_path / "b.ts", [grey(10 + i) for i in range(10)])
  path.write_bytes(path.read_bytes() + later.read_bytes())
  assert numbers(video.read(path, 4, LIMIT)) == [2, 7, 12, 17]


def test_a_gap_of_a_broadcast_matters_where_it_is_chosen(tmp_path):
  rng = np.random.default_rng(0)
  pictures = [grey(i) for i in range(20)]
  pictures[11] = rng.integers(0, 256, (*SIZE, 3), np.uint8)  # the most bytes
  path = write(tmp_path / "a.ts", pictures, codec="mpeg4", g="1")
  raw = path.read_bytes()
  parts = [raw[i : i + 188] for i in range(0, len(raw), 188)]
  # Of stream 256, and not the first part of a frame.
  inner = [i for i, part in enumerate(parts) if part[1:3] == b"\x01\x00"]
  del parts[inner[len(inner) // 2]]
  path.write_bytes(b"".join(parts))
  assert numbers(video.read(path, 5, LIMIT)) == [2, 6, 10, 14, 18]
  assert refused(path, frames=20) == "truncated or broken video"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_sound_between_the_frames_counts_for_nothing(tmp_path, name):
  with av.open(str(tmp_path / name), "w") as out:
    heard = out.add_stream("aac", rate=8000, layout="mono")
    seen = out.add_stream("libx264", rate=25, options={"g": "4"})
    seen.height, seen.width = SIZE
    seen.pix_fmt = "yuv420p"
    for i in range(20):
      picture = av.VideoFrame.from_ndarray(grey(i), format="rgb24")
      out.mux(seen.encode(picture))
      out.mux(heard.encode(silence(320, i)))
    out.mux(seen.encode())
    out.mux(heard.encode())
  path = tmp_path / name
  assert numbers(video.read(path, 5, LIMIT)) == [2, 6, 10, 14, 18]


# How much is decoded.


def test_decoding_goes_from_key_frame_to_key_frame(tmp_path, monkeypatch):
  path = clip(tmp_path / "a.mp4", 31, g="5", **REORDERED)
  spy = Spy(monkeypatch)
  assert numbers(video.read(path, 3, LIMIT)) == [5, 15, 25]
  assert spy.decoded == 3  # each is a key frame
  spy.decoded = 0
  assert numbers(video.read(path, 2, LIMIT)) == [7, 23]
  assert spy.decoded == 3 + 4
  monkeypatch.setattr(video, "_INDEXED", ())
  spy.decoded = 0
  assert numbers(video.read(path, 2, LIMIT)) == [7, 23]
  assert spy.decoded == 24  # and none after the last one


@pytest.mark.parametrize("astray", ["late", "failed"])
def test_a_seek_that_leads_elsewhere_is_taken_back(
  tmp_path, monkeypatch, astray
):
  path = clip(tmp_path / "a.mp4", 31, g="5")
  spy = Spy(monkeypatch)
  choose = video._frames_at

  def elsewhere(container, *args):
    real = container.inner.seek
    # The last key frame, whatever is sought; or past the end.
    to = 30 * 512 if astray == "late" else 10**9
    back = astray == "late"
    container.seek = lambda at, stream: real(to, stream=stream, backward=back)
    yield from choose(container, *args)

  monkeypatch.setattr(video, "_frames_at", elsewhere)
  assert numbers(video.read(path, 3, LIMIT)) == [5, 15, 25]
  assert spy.decoded >= 26  # from the start, after all


# What the header says, and what is there.


@pytest.mark.parametrize(
  "name, codec",
  [("a.mkv", "mpeg4"), ("a.webm", "libvpx"), ("a.mp4", "mpeg4"),
   ("a.mov", "mpeg4"), ("a.ts", "libx264"), ("a.flv", "flv"),
   ("a.nut.mkv", "ffv1")],
)  # fmt: skip
def test_a_video_that_starts_late(tmp_path, name, codec):
  path = tmp_path / name
  with av.open(
    str(path), "w", options={"avoid_negative_ts": "disabled"}
  ) as out:
    stream = out.add_stream(codec, rate=5)
    stream.height, stream.width = SIZE
    stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
    packets = []
    for i in range(20):
      frame = av.VideoFrame.from_ndarray(grey(i), format="rgb24")
      frame.pts = 25 + i  # from five seconds on
      packets += stream.encode(frame)
    for packet in [*packets, *stream.encode()]:
      out.mux(packet)
  assert numbers(video.read(path, 5, LIMIT)) == [2, 6, 10, 14, 18]
  assert len(video.read(path, 99, LIMIT)) == 20


@pytest.mark.parametrize("said", [0.0, 100.0, 13_000.0, 1e9, -5.0, math.nan])
def test_a_duration_that_is_not_true(tmp_path, said):
  """Matroska's, in ms: 0.8 seconds are there."""
  path = clip(tmp_path / "a.mkv")
  raw = bytearray(path.read_bytes())
  at = raw.index(b"\x44\x89\x88") + 3
  raw[at : at + 8] = struct.pack(">d", said)
  path.write_bytes(raw)
  assert numbers(video.read(path, 5, LIMIT)) == [2, 6, 10, 14, 18]


@pytest.mark.parametrize("box", [b"mvhd", b"tkhd", b"mdhd"])
@pytest.mark.parametrize("said", [0, 1, 2**31 - 1, 2**32 - 1])
def test_a_duration_of_MP4_that_is_not_true(tmp_path, box, said):
  path = clip(tmp_path / "a.mp4")
  raw = bytearray(path.read_bytes())
  at = raw.index(box) + 4 + (20 if box == b"tkhd" else 16)
  raw[at : at + 4] = said.to_bytes(4, "big")
  path.write_bytes(raw)
  assert numbers(video.read(path, 5, LIMIT)) == [2, 6, 10, 14, 18]


@pytest.mark.parametrize("said", [0, 5, 2**31 - 1])
def test_a_number_of_frames_of_AVI_that_is_not_true(tmp_path, said):
  path = clip(tmp_path / "a.avi", codec="mpeg4")
  raw = bytearray(path.read_bytes())
  for at in (raw.index(b"avih") + 8 + 16, raw.index(b"strh") + 8 + 32):
    raw[at : at + 4] = said.to_bytes(4, "little")
  path.write_bytes(raw)
  assert numbers(video.read(path, 5, LIMIT)) == [2, 6, 10, 14, 18]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_headers_that_say_nothing(tmp_path, name):
  """As a stream is recorded: no duration, no size, no index."""
  container = {"live": "1"}
  if name == "a.mp4":
    container = {"movflags": "frag_keyframe+empty_moov"}
  path = clip(tmp_path / name, g="4", container=container)
  assert numbers(video.read(path, 5, LIMIT)) == [2, 6, 10, 14, 18]


@pytest.mark.parametrize(
  "name, codec", [("a.mkv", "mpeg4"), ("a.webm", "libvpx"), ("a.mp4", "mpeg4")]
)
def test_a_last_frame_that_is_held(tmp_path, name, codec):
  path = tmp_path / name
  with av.open(str(path), "w") as out:
    stream = out.add_stream(codec, rate=1)
    stream.height, stream.width = SIZE
    stream.pix_fmt = "yuv420p"
    packets = []
    for i in range(4):
      frame = av.VideoFrame.from_ndarray(grey(3 + i), format="rgb24")
      frame.pts = i
      packets += stream.encode(frame)
    packets += stream.encode()
    packets[-1].duration = 10
    for packet in packets:
      out.mux(packet)
  assert numbers(video.read(path, 9, LIMIT)) == [3, 4, 5, 6]


def test_frames_at_uneven_times_and_before_the_start(tmp_path):
  path = tmp_path / "a.mkv"
  times = [0, 1, 2, 40, 41, 300, 301, 302, 303, 900]
  with av.open(str(path), "w") as out:
    stream = out.add_stream("libx264", rate=10, options={"bf": "2", "g": "4"})
    stream.height, stream.width = SIZE
    stream.pix_fmt = "yuv420p"
    for i, time in enumerate(times):
      frame = av.VideoFrame.from_ndarray(grey(3 + i), format="rgb24")
      frame.pts = time
      out.mux(stream.encode(frame))
    out.mux(stream.encode())
  assert numbers(video.read(path, 99, LIMIT)) == list(range(3, 13))
  # Of 1,000: what is shown at 250 came at 41, and at 750 what came at 303.
  assert numbers(video.read(path, 2, LIMIT)) == [3 + 4, 3 + 8]
  # A frame that is held is taken once: 50, 150 and 250, 350 to 850, 950.
  assert numbers(video.read(path, 9, LIMIT))[-2:] == [3 + 8, 3 + 9]


@pytest.mark.parametrize(
  "codec, pixels", [("libx264", "yuv420p10le"), ("ffv1", "bgra"),
                    ("ffv1", "gray16le"), ("libx264", "yuv444p")]
)  # fmt: skip
def test_pixels_of_other_kinds(tmp_path, codec, pixels):
  path = tmp_path / "a.mkv"
  with av.open(str(path), "w") as out:
    stream = out.add_stream(codec, rate=5)
    stream.height, stream.width = SIZE
    stream.pix_fmt = pixels
    for i in range(6):
      frame = av.VideoFrame.from_ndarray(grey(3 + i), format="rgb24")
      out.mux(stream.encode(frame.reformat(format=pixels)))
    out.mux(stream.encode())
  assert numbers(video.read(path, 9, LIMIT)) == list(range(3, 9))


# What is refused.


def test_frames_below_one(tmp_path):
  path = clip(tmp_path / "a.mp4", 3)
  assert refused(path, frames=0) == (
    "0 frames are asked for: ask for a whole number, 1 or more"
  )
  assert refused(path, frames=-2).startswith("-2 frames")
  with pytest.raises(video.VideoError, match=": 2.5 frames.* a whole number"):
    inspect.unwrap(video.read)(path, 2.5, LIMIT)  # types are checked here alone


def test_what_is_no_file(tmp_path):
  assert refused(tmp_path / "none.mp4") == "no such file"
  assert refused(tmp_path) == "a folder, and a file is needed"
  assert refused("https://example.org/a.mp4").startswith("an address")
  with pytest.raises(video.VideoError, match="written out") as error:
    video.read("data:video/mp4;base64," + "A" * 10**5, 4, LIMIT)
  assert len(str(error.value)) < 500


def test_what_is_no_video(tmp_path):
  path = tmp_path / "a.mp4"
  path.write_bytes(b"hello world\n" * 50)
  message = refused(path)
  assert message.startswith("not a video, or a truncated one (")
  assert message.endswith("flv, asf, ogg, gif, png, webp, avif")
  for content, what in (
    (b"", "the file is empty"),
    (bytes(5000), "the file is empty"),
    (b"<html>404", "a web page"),
  ):
    path.write_bytes(content)
    assert refused(path).startswith(what)
  for kind in ("PNG", "JPEG", "WEBP", "AVIF", "BMP"):
    Image.fromarray(grey(3)).save(path, kind)
    assert refused(path).startswith("not a video")


def test_what_names_other_files_is_not_opened(tmp_path, monkeypatch):
  inner = clip(tmp_path / "inner.ts", 3)
  lists = {
    "a.m3u8": f"#EXTM3U\n#EXTINF:1,\n{inner.name}\n#EXT-X-ENDLIST\n",
    "a.ffconcat": f"ffconcat version 1.0\nfile {inner.name}\n",
    "a.txt": "a text, which ffmpeg would show as a terminal\n" * 40,
  }
  for name, text in lists.items():
    (tmp_path / name).write_text(text)
    assert refused(tmp_path / name).startswith("not a video")
  # Nor does a name turn into a protocol.
  monkeypatch.chdir(tmp_path)
  clip(tmp_path / "whole.mp4", 3).rename(tmp_path / "concat:inner.ts")
  assert numbers(video.read("concat:inner.ts", 3, LIMIT)) == [0, 1, 2]


def silence(samples, number):
  frame = av.AudioFrame.from_ndarray(
    np.zeros((1, samples), np.float32), format="fltp", layout="mono"
  )
  frame.rate, frame.pts = 8000, samples * number
  return frame


def sound(path, picture=False):
  with av.open(str(path), "w") as out:
    stream = out.add_stream("aac", rate=8000, layout="mono")
    if picture:
      cover = out.add_stream("mjpeg", rate=1)
      cover.height, cover.width = SIZE
      cover.pix_fmt = "yuvj420p"
      cover.disposition = av.stream.Disposition.attached_pic
    out.mux(stream.encode(silence(8000, 0)))
    out.mux(stream.encode())
    if picture:
      still = av.VideoFrame.from_ndarray(grey(3), format="rgb24")
      out.mux(cover.encode(still))
      out.mux(cover.encode())
  return path


def test_sound_alone_is_no_video(tmp_path):
  for path in (
    sound(tmp_path / "a.mp4"),
    sound(tmp_path / "b.mp4", picture=True),  # a cover is no video either
  ):
    assert refused(path) == "no video in it, only sound or other data"


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
  path = clip(tmp_path / "a.mp4", 3)
  spy = Spy(monkeypatch)
  assert refused(path, max_pixels=LIMIT - 1) == (
    "frames of 48 x 32 = 1536 pixels, the limit is 1535 (data.max_pixels)"
  )
  assert not spy.decoded
  assert len(video.read(path, 4, LIMIT)) == 3


@pytest.mark.parametrize(
  "size, says", [((64, 96), "96 x 64 = 6144"), ((480, 640), "broken video")]
)
def test_frames_that_grow_midway_are_refused(tmp_path, size, says):
  """Ours is the limit on what is chosen, the decoder's on what it makes."""
  path = tmp_path / "a.mkv"
  with av.open(str(path), "w") as out:
    stream = out.add_stream("mjpeg", rate=25)
    stream.height, stream.width = SIZE
    stream.pix_fmt = "yuvj420p"
    for i in range(10):
      jpeg = io.BytesIO()
      Image.fromarray(grey(i, size if i >= 5 else SIZE)).save(jpeg, "JPEG")
      packet = av.Packet(jpeg.getvalue())
      packet.stream, packet.pts, packet.dts = stream, i, i
      out.mux(packet)
  assert says in refused(path, frames=10)
  assert numbers(video.read(path, 1, 2 * size[0] * size[1])) == [5]


@pytest.mark.parametrize(
  "name, codec, options",
  [
    ("a.mp4", "libx264", {}),  # its index is at the end
    ("a.mp4", "libx264", {"container": {"movflags": "faststart"}}),
    ("a.mkv", "ffv1", {}),
    ("a.avi", "mpeg4", {}),
  ],
)
def test_a_truncated_video_is_refused(tmp_path, name, codec, options):
  rng = np.random.default_rng(0)
  pictures = list(rng.integers(0, 256, (20, *SIZE, 3), np.uint8))
  path = write(tmp_path / name, pictures, codec=codec, rate=2, **options)
  assert len(video.read(path, 30, LIMIT)) == 20
  whole = path.read_bytes()
  for part in (0.1, 0.5, 0.8):
    path.write_bytes(whole[: int(part * len(whole))])
    assert any(word in refused(path) for word in ("truncated", "broken"))


def test_a_part_of_a_frame_shows_though_it_is_not_asked_for(tmp_path):
  path = clip(tmp_path / "a.avi", codec="mpeg4")
  whole = path.read_bytes()
  path.write_bytes(whole[: whole.index(b"idx1") - 200])
  assert refused(path, frames=1) == "truncated or broken video"


@pytest.mark.parametrize(
  "name, codec", [("a.mkv", "ffv1"), ("a.webm", "libvpx"), ("a.gif", "gif")]
)
@pytest.mark.parametrize("part", [0.3, 0.52, 0.95, 0.999])
def test_a_part_that_ends_past_the_end_is_truncated(
  tmp_path, name, codec, part
):
  rng = np.random.default_rng(0)
  pictures = list(rng.integers(0, 256, (20, *SIZE, 3), np.uint8))
  path = write(tmp_path / name, pictures, codec=codec, rate=2)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(part * len(whole))])
  if name == "a.gif" and part == 0.999:  # its last block is not needed
    path.write_bytes(whole[:-2])
  assert refused(path) == "truncated: a part of it is missing"


def animated(path, kind, **options):
  rng = np.random.default_rng(0)
  pictures = list(rng.integers(0, 256, (9, *SIZE, 3), np.uint8))
  first, *rest = map(Image.fromarray, pictures)
  first.save(path, kind, save_all=True, append_images=rest, **options)
  return pictures


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "AVIF"])
@pytest.mark.parametrize("part", [0.3, 0.63, 0.95, 0.999])
def test_a_truncated_animation_is_refused(tmp_path, kind, part):
  path = tmp_path / "a"
  animated(path, kind)
  assert len(video.read(path, 99, LIMIT)) == 9
  whole = path.read_bytes()
  path.write_bytes(whole[: int(part * len(whole)) - 2])
  says = ("truncated", "broken", "not an image file")
  assert any(word in refused(path) for word in says)


@pytest.mark.parametrize("said", [1, 3, 9, 4_000_000])
def test_a_number_of_frames_of_PNG_that_is_not_true(tmp_path, said):
  """As many as are there, and no more than it says."""
  path = tmp_path / "a.png"
  pictures = animated(path, "PNG", duration=50)
  raw = bytearray(path.read_bytes())
  at = raw.index(b"acTL")
  raw[at + 4 : at + 8] = said.to_bytes(4, "big")
  raw[at + 12 : at + 16] = zlib.crc32(raw[at : at + 12]).to_bytes(4, "big")
  path.write_bytes(raw)
  if said == 1:
    assert refused(path) == "not a video, but a picture"
    return
  out = video.read(path, 99, LIMIT)
  np.testing.assert_array_equal(out, pictures[:said])


def test_a_picture_for_those_that_can_not_play_an_animation(tmp_path):
  path = tmp_path / "a.png"
  pictures = animated(path, "PNG", duration=50, default_image=True)
  np.testing.assert_array_equal(video.read(path, 99, LIMIT), pictures[1:])


@pytest.mark.parametrize("fps, frames, want", [
  (0.0, 3, [1, 4, 7]), (5.0, 99, [1, 4, 7]), (0.1, 99, [4]), (5.0, 2, [2, 6])
])  # fmt: skip
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.avi"])
def test_frames_a_second(tmp_path, name, fps, frames, want):
  # 9 frames at 15 a second are 0.6 s: three parts at 5 a second.
  codec = dict(gif="gif", avi="mpeg4").get(name[2:], "libx264")
  path = clip(tmp_path / name, 9, codec=codec, rate=15)
  assert numbers(video.read(path, video.Sampling(frames, fps), LIMIT)) == want


def test_an_endless_animation_is_refused(tmp_path, monkeypatch):
  path = clip(tmp_path / "a.gif", 9, codec="gif")
  monkeypatch.setattr(animation, "_MOST_PIXELS", 9 * LIMIT - 1)
  assert refused(path) == (
    "more than 8 frames of 48 x 32 pixels are too much to decode: cut it"
  )
  monkeypatch.setattr(animation, "_MOST_PIXELS", 9 * LIMIT)
  assert len(video.read(path, 9, LIMIT)) == 9


def test_a_GIF_needs_no_end(tmp_path):
  path = clip(tmp_path / "a.gif", 9, codec="gif")
  whole = path.read_bytes()
  assert whole[-1:] == b";"
  path.write_bytes(whole[:-1])
  assert numbers(video.read(path, 3, LIMIT)) == [1, 4, 7]


def test_an_animated_WebP(tmp_path):
  path = tmp_path / "a.mp4"
  pictures = animated(path, "WEBP", lossless=True)
  out = video.read(path, 3, LIMIT)
  np.testing.assert_array_equal(out, [pictures[i] for i in (1, 4, 7)])
  assert len(video.read(path, 99, LIMIT)) == 9
  assert "1536 pixels, the limit is 1535" in refused(path, max_pixels=LIMIT - 1)


def test_a_corrupt_video_is_refused(tmp_path):
  path = clip(tmp_path / "a.mp4", 20)
  raw = bytearray(path.read_bytes())
  start = raw.index(b"mdat") + 700
  raw[start : start + 200] = bytes(b ^ 0x5A for b in raw[start : start + 200])
  path.write_bytes(raw)
  assert refused(path, frames=20).startswith("broken video (InvalidDataError")


def test_a_video_without_frames_is_refused(tmp_path):
  path = tmp_path / "a.avi"
  with av.open(str(path), "w") as out:
    stream = out.add_stream("mpeg4", rate=5)
    stream.height, stream.width = SIZE
    stream.pix_fmt = "yuv420p"
    out.start_encoding()
  assert refused(path) == "no frame in it"


@pytest.mark.parametrize(
  "name, codec", [("a.avi", "mpeg4"), ("a.mp4", "mpeg4")]
)
def test_a_video_that_shows_nothing_is_refused(
  tmp_path, monkeypatch, name, codec
):
  path = clip(tmp_path / name, 3, codec=codec)
  spy = Spy(monkeypatch)
  spy.silent = True
  assert refused(path) == "no frame in it that can be decoded"


def test_endless_work_is_refused(tmp_path, monkeypatch):
  path = clip(tmp_path / "a.mp4", 9)
  spy = Spy(monkeypatch)
  monkeypatch.setattr(video, "_MOST_PIXELS", 9 * LIMIT - 1)
  assert refused(path) == (
    "9 frames of 48 x 32 pixels are too much to decode: cut it"
  )
  monkeypatch.setattr(video, "_MOST_PIXELS", 9 * LIMIT)
  assert len(video.read(path, 9, LIMIT)) == 9
  monkeypatch.setattr(video, "_MOST_PACKETS", 8)
  spy.decoded = 0
  assert refused(path) == "longer than the hours that are read: cut it"
  assert not spy.decoded
