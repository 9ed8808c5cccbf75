"""configs/recipes.py without a compiler, and the table that is made of it."""

import math
import pathlib
import re

from gaze_jax import cli
from gaze_jax.aot import report as report_lib
from gaze_jax.parallel import mesh as mesh_lib
from gaze_jax.parallel import rules

PATH = pathlib.Path(__file__).parent.parent.parent / "configs/recipes.py"


def test_every_recipe_lies_on_its_slice():
  recipes = cli.read_recipes(PATH)
  wanted = {
    f"cambrian_{size}-stage{stage}-{slice_}"
    for size in ("4b", "7b")
    for stage in (1, 2)
    for slice_ in ("v5e-64", "v5e-256", "v6e-64", "v5p-64", "8x80GB")
  }
  assert recipes.keys() == wanted
  for name, (config, topology) in recipes.items():
    shape = topology.split(":")[1].removesuffix("x80GB")
    chips = math.prod(map(int, re.findall(r"\d+", shape)))
    cores = 2 if "v5p" in name else 1
    assert name.endswith("GB") or int(name.rsplit("-", 1)[1]) == cores * chips
    sizes = mesh_lib.axis_sizes(config.parallel, chips)
    rules.check(config, sizes)
    rows = 512 if "stage1" in name else 256
    assert config.train.batch_size == rows
    micro = rules.ways("batch", sizes) * config.train.accumulation
    assert rows % micro == 0, name
    frozen = config.model.vision.frozen, config.model.decoder.frozen
    assert frozen == (("stage1" in name),) * 2
    assert config.model.decoder.width == (2560 if "4b" in name else 3584)


def test_the_first_stage_reads_its_captions_once():
  for model in ("cambrian_4b", "cambrian_7b"):
    train = cli.read_recipes(PATH)[f"{model}-stage1-v5e-64"][0].train
    assert 0 <= 558_128 - train.steps * train.batch_size < train.batch_size


def test_the_table():
  report = dict(
    mesh=dict(data=8, fsdp=32, tensor=1, sequence=1),
    rows=256,
    hbm_bytes=10_440_000_000,
    hbm_limit_bytes=16_911_433_728,
    flops=86.6e12,
    compile_seconds=46.5,
    collectives={"all-gather": dict(count=3, bytes=2_500_000_000)},
    settings=dict(accumulation=1, remat="full", vision_remat="none"),
    least_seconds=0.4398,
    command="launch/eval.py",
  )
  guess = report | dict(collectives=None, flops=1372e12)
  text = report_lib.markdown(
    dict(
      recipes={
        "m-stage2-v5e-256": dict(
          programs=dict(train=report, eval=report | dict(settings={}))
        ),
        "m-stage2-8x80GB": dict(programs=dict(train=guess)),
      }
    )
  )
  lines = text.splitlines()
  assert lines[2] == (
    "| `m-stage2-v5e-256` | data 8 x fsdp 32 | 256 | 1 | full, none | 10.4 GB"
    " | 16.9 GB | 86.6 | 2.5 GB | 46 s |"
  )
  assert lines[3].endswith("| 1,370 | - | arithmetic |")
  assert lines[-1] == (
    "| m v5e-256 | eval | launch/eval.py | data 8 x fsdp 32 | 256 | 10.4 GB"
    " | 16.9 GB | 440 ms | 86.6 | 2.5 GB | 46 s |"
  )
  assert len({line.count("|") for line in lines[:4]}) == 1
