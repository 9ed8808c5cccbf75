"""What is an image or a video, and what is refused by name."""

import jaxtyping
import numpy as np
import pytest
from PIL import Image

from gaze_jax import errors
from gaze_jax.api import media


def shade(number):
  return np.full((70, 70, 3), number, np.uint8)


def test_a_picture_is_the_same_however_it_comes(model, tmp_path):
  path = tmp_path / "a.png"
  Image.new("RGBA", (70, 70), (255, 0, 0, 0)).save(path)
  config = model().config
  for picture in (path, str(path), path.read_bytes(), Image.open(path)):
    for given in (dict(images=[picture]), dict(videos=[[picture]])):
      ((_, views),) = media.see(config, **given)
      assert (views[0].picture == 255).all()


@pytest.mark.parametrize(
  "given, says",
  [
    (dict(images="a.png"), "images: str; give a list"),
    (dict(videos="a.mp4"), "videos: str; give a list"),
    (dict(images=Image.new("RGB", (9, 9))), "images: Image; give a list"),
    (dict(images=[shade(1), None]), "image 2: NoneType; give a file"),
    (dict(images=[[[1, 2]]]), "image 1: list; give a file, its bytes"),
    (dict(images=[shade(1) / 255]), "image 1: float64 .70, 70, 3.; .* uint8"),
    (dict(videos=[b"RIFF"]), "video 1: bytes; give a file, or a list of"),
    (dict(videos=[[shade(1)], 3]), "video 2: int; give a file, or a list"),
    (dict(videos=[[shade(1), "none.png"]]), "none.png: no such file"),
    (dict(videos=[[shade(1), b"x"]]), "video 1, frame 2: not an image file"),
    (dict(videos=[shade(1)]), "video 1, frame 1: uint8 .70, 3.; an array"),
  ],
)
def test_what_is_no_picture_is_named(model, monkeypatch, given, says):
  # A user's program has no types that are checked.
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  with pytest.raises(errors.GazeError, match=says):
    media.see(model().config, **given)
