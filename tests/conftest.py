"""Fixtures that every room's tests share: small layouts and random heads."""

import atexit
import dataclasses
import gc
import importlib.metadata
import os
import shutil
import signal
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs are compiled once a session, for the tests and their subprocesses.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _cache = tempfile.mkdtemp(prefix="gaze_jax_tests_")
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# And compiled cheaply, as tests compile for longer than they compute: without
# most of LLVM's passes, each program in one piece, and fusions emitted as loops
# at once rather than through MLIR (a third of the time; XLA dies of a flag that
# it does not know, and jaxlib 0.12 has this one no more). What is compared and
# how closely stays as it is. JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as users
# do.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0":
  _flags = ["--xla_cpu_parallel_codegen_split_count=1"]
  if importlib.metadata.version("jaxlib").startswith("0.10."):
    _flags.append("--xla_cpu_use_fusion_emitters=false")
  os.environ["XLA_FLAGS"] = " ".join([*_flags, os.environ.get("XLA_FLAGS", "")])

import hypothesis
import jax
import numpy as np
import pytest

import gcs_server
import tiers
from gaze_jax import config as config_lib
from gaze_jax import storage
from gaze_jax.decode import programs
from gaze_jax.layout import row as row_lib

# A suite in the background of a shell is told to ignore Ctrl-C, and so would be
# the programs that tests press it in.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
  "gaze", deadline=None, derandomize=True, max_examples=20
)
hypothesis.settings.load_profile("gaze")


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items):
  tiers.mark_the_rest(items)


@dataclasses.dataclass
class Heads:
  """Random heads for a row: q [B, S, Q, D], k and v [B, S, H, D]."""

  q: np.ndarray
  k: np.ndarray
  v: np.ndarray


@pytest.fixture
def heads():
  def make(batch, slots, query_heads=4, kv_heads=2, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.normal(size=(batch, slots, n, dim)).astype(np.float32)
    return Heads(draw(query_heads), draw(kv_heads), draw(kv_heads))

  return make


@pytest.fixture
def small_shape():
  """48 slots, up to 3 units of up to 25 tokens, 3 x 3 regions, 2 context."""
  return row_lib.RowShape(
    slots=48,
    units=3,
    unit_tokens=25,
    regions=12,
    region_length=9,
    answer_slots=12,
    region=(3, 3, 1),
    context_tokens=2,
  )


def tiny_settings():
  """A whole run in seconds: 5 x 5 visual tokens in 9 regions of 1 to 4."""
  return dict(
    model=dict(
      vision=dict(
        frozen=True,
        image_size=70,
        width=16,
        depth=1,
        heads=2,
        mlp_dim=32,
        position_grid=5,
      ),
      decoder=dict(
        width=32, depth=2, query_heads=4, kv_heads=2, head_dim=8, mlp_dim=64
      ),
      gaze=dict(region=(2, 2, 1), top_k=2, context_tokens=2),
    ),
    data=dict(
      source="emoji_scenes",
      samples=12,
      questions=2,
      sequence_length=96,
      answer_slots=16,
      workers=0,
    ),
    train=dict(
      steps=6,
      batch_size=4,
      warmup_steps=2,
      log_every=1,
      save_every=2,
      features="cached",
      k_schedule=dict(dense_until=0.2, final_at=0.8),
    ),
    eval=dict(samples=5, other_samples=2, budgets=(0, 2, 4), batch_size=4),
  )


@pytest.fixture(scope="session")
def tiny_config():
  """Makes a tiny `Config`; keywords are dotted names with __ for the dot."""

  def make(**changes):
    raw = tiny_settings()
    for name, value in changes.items():
      *path, key = name.split("__")
      table = raw
      for part in path:
        table = table.setdefault(part, {})
      table[key] = value
    return config_lib.from_config_dict(raw)

  return make


@pytest.fixture
def tiny_config_file(tmp_path):
  """A config file as the commands take it."""
  path = tmp_path / "tiny.py"
  path.write_text(
    "from ml_collections import ConfigDict\n\n\n"
    f"def get_config():\n  return ConfigDict({tiny_settings()!r})\n"
  )
  return path


@pytest.fixture(scope="session")
def cloud():
  """Google Cloud Storage, for this process and those that it starts."""
  store = gcs_server.Store()
  with (
    gcs_server.serve(store) as environment,
    pytest.MonkeyPatch.context() as patch,
  ):
    for name, value in environment.items():
      patch.setenv(name, value)
    yield store


@pytest.fixture
def bucket(cloud, tmp_path, monkeypatch):
  """A directory in a bucket, and a cache of its own for copies from there."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return storage.path(f"gs://bucket/{tmp_path.name}")


# Of the 65,530 mappings that Linux lets a process have. A test that leaves more
# than many behind has its programs dropped, and none may come near the end.
_MANY_MAPPINGS, _MOST_MAPPINGS = 15_000, 30_000


@pytest.fixture(autouse=True)
def _few_programs():
  """Forgets compiled programs before there are too many to map another."""
  start = time.perf_counter()
  yield
  # To count them takes 20 ms, in which little is compiled.
  if time.perf_counter() - start < 0.1:
    return
  mappings = programs.mappings()
  if mappings > _MANY_MAPPINGS:
    jax.clear_caches()
    gc.collect()
  assert mappings <= _MOST_MAPPINGS, f"a test left {mappings} mappings"


@pytest.fixture(autouse=True)
def _float32_matmuls():
  with jax.default_matmul_precision("float32"):
    yield


@pytest.fixture(scope="module")
def optimized():
  """Compiles a module's programs with all of LLVM's passes.

  For files that compute for longer than they compile. Programs in memory go
  before and after: JAX keeps them by arguments, not by how they were compiled,
  and a test that compares two runs to the bit would get one of each.
  """
  option = "jax_disable_most_optimizations"
  before = jax.config.read(option)
  jax.clear_caches()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(option.upper(), "0")  # for subprocesses
    jax.config.update(option, False)
    yield
  jax.config.update(option, before)
  jax.clear_caches()
