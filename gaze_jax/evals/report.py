"""A report as Markdown."""

from typing import Any


def markdown(report: dict[str, Any]) -> str:
  """Tables of what `run.evaluate` returned."""
  parts = [
    f"# Evaluation at step {report['step']}",
    "Exact match with its 95 % interval (Wilson), every line from one"
    " checkpoint. Visual KV: entries read a query head, and the union over a"
    " KV group, over the visual tokens. `prior` answers with the most frequent"
    " training answer to the same question.",
    f"## {report['data']['path'] or 'New samples'}",
    _table(report["accuracy"]),
  ]
  if report["routing_accuracy"]:
    parts += ["## Where it looked", _routing(report["routing_accuracy"])]
  for name, split in report["other_splits"].items():
    parts += [f"## Split: {name}", _table(split["conditions"])]
  return "\n\n".join(parts) + "\n"


def _table(conditions: dict[str, dict[str, Any]]) -> str:
  kinds = {k for c in conditions.values() for k in c["interval_95"]}
  columns = [*sorted(kinds - {"overall"}), "overall"]
  head = ["condition", *columns, "n", "visual KV", "unique"]
  lines = [_row(head), _row(["---"] * len(head))]
  for name, c in conditions.items():
    cells = [_cell(c, k) for k in columns]
    lines.append(
      _row(
        [
          name,
          *cells,
          str(c["n"]),
          _share(c.get("visual_kv_fraction")),
          _share(c.get("unique_visual_kv_fraction")),
        ]
      )
    )
  return "\n".join(lines)


def _routing(routing: dict[str, Any]) -> str:
  layers = ", ".join(f"{100 * a:.1f} %" for a in routing["layers"])
  return (
    "Share of the chosen regions that show the thing asked about (at least"
    f" {100 * routing['region_counts_when_covered']:.0f} % of the region"
    f" covered), by layer: {layers}; random regions"
    f" {100 * routing['random']:.1f} % ({routing['n']} questions)."
  )


def _cell(condition: dict[str, Any], kind: str) -> str:
  if kind not in condition:
    return ""
  low, high = condition["interval_95"][kind]
  return f"{condition[kind]:.2f} ({low:.2f}-{high:.2f})"


def _share(fraction: float | None) -> str:
  return "" if fraction is None else f"{100 * fraction:.1f} %"


def _row(cells: list[str]) -> str:
  return f"| {' | '.join(cells)} |"
