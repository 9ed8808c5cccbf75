"""What JAX has no public name for; the only file that looks into `jax._src`.

Another version of JAX may have moved any of it. A name that is gone is None
here, and `processes` then does without it; see its functions.
"""

import importlib
from typing import Any


def _name(module: str, name: str) -> Any | None:
  """A name of `jax._src`; None if this JAX has none such."""
  try:
    return getattr(importlib.import_module(f"jax._src.{module}"), name)
  except (ImportError, AttributeError):
    return None


# Which process this is in a cluster, before JAX waits for the others.
CLUSTER = _name("clusters", "ClusterEnv")
# What JAX's processes know of each other; `client` is a table of text for all.
STATE = _name("distributed", "global_state")
# The CPU backend, and what carries its collectives between processes.
MAKE_CPU_CLIENT = _name("xla_bridge", "make_cpu_client")
MAKE_GLOO = getattr(_name("lib", "_jax"), "make_gloo_tcp_collectives", None)
