"""As much of lmms-eval as our model touches, where it is not installed."""

import sys
import types


class CacheHook:
  def __init__(self):
    self.kept = []

  def add_partial(self, kind, key, text):
    self.kept.append((kind, key, text))


class Lmms:
  is_simple = True

  def __init__(self):
    self.cache_hook, self.task_dict = CacheHook(), {}


def install(monkeypatch):
  """Puts stand-ins where lmms-eval's modules would be."""
  manifest = types.SimpleNamespace
  for name, values in {
    "lmms_eval": {},
    "lmms_eval.api": {},
    "lmms_eval.api.model": {"lmms": Lmms},
    "lmms_eval.models": {},
    "lmms_eval.models.registry_v2": {"ModelManifest": manifest},
  }.items():
    module = types.ModuleType(name)
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, name, module)
    above, _, last = name.rpartition(".")
    if above:
      monkeypatch.setattr(sys.modules[above], last, module, raising=False)
