"""Files of images and videos that data name, within one folder."""

import os
import unicodedata

from gaze_jax import foreign
from gaze_jax.data import skipped


def find(name: str, folder: str, kind: str) -> str:
  """The file of a name that may have been written on another system.

  macOS writes accents apart, Windows separates folders by backslashes.

  Args:
    name: as the data have it.
    folder: absolute; no name may lead out of it.
    kind: what it is a file of, "image" or "video".

  Returns:
    Its path.

  Raises:
    skipped.SkipError: there is none.
  """
  other = name.replace("\\", "/")
  forms = [
    unicodedata.normalize(form, one)
    for one in (name, other)
    for form in ("NFC", "NFD")
  ]
  for one in dict.fromkeys([name, other, *forms]):
    # Links inside the folder are the user's own; ".." in the data is not.
    path = os.path.normpath(os.path.join(folder, one))
    if os.path.commonpath([path, folder]) != folder:
      raise skipped.SkipError(
        f"{kind} outside the folder",
        f"{name} leads out of {folder}: set data.image_folder to a folder that"
        f" holds all {kind}s",
      )
    if os.path.isfile(path):
      return path
  what = foreign.no_file(name, folder)
  raise skipped.SkipError(
    f"missing {kind}",
    f"{foreign.short(name)!r} in {folder} (data.image_folder): {what}",
  )
