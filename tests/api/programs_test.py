"""A pod of few programs: what a process that answers all kinds compiles."""

import dataclasses

import jax
import pytest

from gaze_jax import api
from gaze_jax.decode import programs

# A question's words, images, and frames of a video.
SPREAD = [
  *((1, 0, 0), (5, 0, 0), (50, 0, 0)),
  *((1, 1, 0), (3, 1, 0), (2, 4, 0), (2, 0, 4), (1, 1, 3)),
]
HOW = [{}, dict(temperature=0.8)]
# All of them, in a process that begins with none:
#   prompt text: 8, 16, 64 tokens, and 8 tokens before 12 and 48 pages   5
#   8 tokens that a picture follows, with room for 12 and 48 pages       2
#   the tower, the embedding and a chunk of units: of 1 and of 4         6
#   first token and loop: before 8, 12 and 48 pages, greedy or sampled  12
MOST = 25
# None of these is more than a number to a program.
SAME = [
  *(dict(top_k=k) for k in (0, 1, 7, 10**9)),
  *(dict(share=s) for s in (0.0, 0.3, 1.0)),
  *(dict(max_tokens=n) for n in (1, 5, 17, 64)),
  dict(stop=["\0"]),
]
SAME_SAMPLED = [
  *(dict(seed=s) for s in (1, 2**31)),
  *(dict(temperature=t) for t in (0.1, 2.0)),
  *(dict(top_p=0.5), dict(sample_top_k=3), dict(max_tokens=9, top_k=4)),
]


@pytest.fixture(scope="module")
def ask(model, picture):
  """Asks with so many words, images and frames; a model of its own."""
  ours = model(top_k=3)
  ours = dataclasses.replace(ours, limits=api.Limits(slots=4096))

  def make(kind, **options):
    words, images, frames = kind
    given = dict(
      images=[picture(i) for i in range(images)],
      videos=[[picture(i) for i in range(frames)]] if frames else [],
    )
    options = dict(max_tokens=3) | options
    # As in every test: another precision is another program.
    with jax.default_matmul_precision("float32"):
      return ours.generate("is " * words, **given, **options)

  return make


@pytest.fixture(scope="module")
def compiled(ask):
  """How many programs all kinds of questions took, beginning with none."""
  jax.clear_caches()
  before = programs.compiled()
  for how in HOW:
    for kind in SPREAD:
      ask(kind, **how)
  return programs.compiled() - before


@pytest.mark.nightly
def test_all_kinds_of_questions_take_few_programs(compiled):
  assert 0 < compiled <= MOST


@pytest.mark.nightly
def test_budgets_seeds_and_lengths_compile_nothing(compiled, ask):
  del compiled  # everything is
  before = programs.compiled()
  for kind in [(1, 0, 0), (2, 1, 0), (1, 1, 3)]:
    for options in SAME:
      ask(kind, **options)
    for options in SAME_SAMPLED:
      ask(kind, **(dict(temperature=0.8) | options))
  assert programs.compiled() == before


@pytest.mark.nightly
def test_dropped_programs_come_back_and_say_the_same(ask, monkeypatch):
  kept = lambda: sum(p._jitted._cache_size() for p in programs.Program._all)
  jax.clear_caches()
  want = ask((1, 1, 0))
  assert kept() == 7
  monkeypatch.setattr(programs, "_left", 0)
  monkeypatch.setattr(programs, "MOST_MAPPINGS", 1)  # dropped at each new one
  for kind in [(50, 0, 0), (1, 1, 0), (50, 0, 0)]:
    before = programs.compiled()
    said = ask(kind)
    assert programs.compiled() > before and kept() <= 1
    if kind == (1, 1, 0):
      assert said.text == want.text and said.tokens == want.tokens
      assert said.entries == want.entries
