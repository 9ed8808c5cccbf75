"""The tables of recipes in docs/scale.md, from the command's JSON."""

from typing import Any

_HEADER = (
  "recipe", "mesh", "rows", "micro-batches", "remat (decoder, tower)",
  "HBM a chip", "of", "TFLOP a chip", "sent a chip", "compiled in",
)  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
  """Two tables: training steps by recipe, and what reads and answers prompts.

  Args:
    found: what `check.recipes` returns.
  """
  training, serving = [], []
  for name, one in found["recipes"].items():
    for program, report in one["programs"].items():
      if program == "train":
        training.append(_training(name, report))
      else:
        model, _, slice_ = name.split("-", 2)
        serving.append([f"{model} {slice_}", program, *_common(report)])
  head = ["model", "program", *_HEADER[1:3], *_HEADER[5:]]
  return f"{_table(_HEADER, training)}\n{_table(head, serving)}"


def _training(name: str, report: dict[str, Any]) -> list[str]:
  mesh, rows, *rest = _common(report)
  s = report["settings"]
  remat = f"{s['remat']}, {s['vision_remat']}"
  return [f"`{name}`", mesh, rows, str(s["accumulation"]), remat, *rest]


def _common(report: dict[str, Any]) -> list[str]:
  sizes = report["mesh"].items()
  sent = report["collectives"]
  return [
    " x ".join(f"{axis} {n}" for axis, n in sizes if n > 1),
    str(report["rows"]),
    f"{report['hbm_bytes'] / 1e9:.1f} GB",
    f"{report['hbm_limit_bytes'] / 1e9:.1f} GB",
    _three(report["flops"] / 1e12),
    f"{_three(sum(c['bytes'] for c in sent.values()) / 1e9)} GB"
    if sent
    else "-",
    f"{report['compile_seconds']:.0f} s" if sent else "arithmetic",
  ]


def _three(x: float) -> str:
  """Three digits, and no power of ten."""
  return f"{float(f'{x:.3g}'):,g}"


def _table(header: Any, rows: list[list[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)
