"""Several real processes, and one that is alone."""

import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from gaze_jax.runtime import jax_private
from gaze_jax.runtime import processes

ROOT = pathlib.Path(__file__).parent.parent.parent
VARIABLES = (
  *("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
  *("JAX_LOCAL_DEVICE_IDS", "JOB_COMPLETION_INDEX"),
)

# Sums the numbers of all devices, then says where it listens.
SUM = """
import os
import signal
import sys

from gaze_jax.runtime import processes

processes.initialize(timeout=60)

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

if jax.process_index() == 1 and not os.path.exists(sys.argv[1]):
  open(sys.argv[1], "w").close()
  os.kill(os.getpid(), signal.SIGKILL)
n = jax.device_count()
mesh = jax.make_mesh((n,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("x"))
numbers = jax.make_array_from_callback(
  (n,), sharding, lambda i: jnp.arange(1.0, n + 1)[i]
)
add = lambda x: jax.lax.psum(x, "x")
specs = dict(in_specs=PartitionSpec("x"), out_specs=PartitionSpec())
total = jax.jit(jax.shard_map(add, mesh=mesh, **specs))(numbers)
mine = [f"/proc/self/fd/{f}" for f in os.listdir("/proc/self/fd")]
mine = {os.readlink(f) for f in mine if os.path.exists(f)}
ports = []
for name in ("tcp", "tcp6"):
  with open(f"/proc/self/net/{name}") as table:
    rows = [row.split() for row in table.read().splitlines()[1:]]
  ports += [r[1] for r in rows if r[3] == "0A" and f"socket:[{r[9]}]" in mine]
first = jax.process_index() == 0
said = f"first {first}: {float(total[0])} at {' '.join(ports)}"
print(said, file=sys.stderr)
"""
# Fails as its arguments say, process by process; the rest waits for it.
FAIL = """
import sys
import time

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.runtime import processes

says = sys.argv[-2:]
del sys.argv[-2:]

def main():
  processes.initialize(timeout=60)
  import jax
  from jax.experimental import multihost_utils
  meet = lambda: multihost_utils.process_allgather(jax.numpy.ones(1))
  meet()
  what = says[jax.process_index()]
  if what == "bug":
    raise ZeroDivisionError(what)
  if what != "waits":
    time.sleep(0.3 * (1 - jax.process_index()))
    raise errors.GazeError(what)
  meet()

cli.main(main, leave=processes.leave)
"""


# The same before anybody meets, on a JAX without its private names.
FAIL_ALONE = """
import sys

from gaze_jax import cli
from gaze_jax import errors
from gaze_jax.runtime import jax_private
from gaze_jax.runtime import processes

jax_private.CLUSTER = jax_private.STATE = None
jax_private.MAKE_CPU_CLIENT = jax_private.MAKE_GLOO = None
says = sys.argv.pop()

def main():
  processes.initialize(timeout=60)
  raise errors.GazeError(says)

cli.main(main, leave=processes.leave)
"""
# Process 0 takes its time over what it shares.
SHARE = """
import sys
import time

import jax

from gaze_jax.runtime import jax_private
from gaze_jax.runtime import processes

processes._SHARE_SECONDS = 1
processes.initialize(timeout=60, trains=False)
first = processes.is_first()
assert processes.count() == 2
if sys.argv[1] == "collective":
  jax.devices()
  jax_private.STATE = None
time.sleep(2.5 * first)
said = ["what is it?", "", None, "é" * 3000]
got = [processes.share(text if first else "no") for text in said]
print("same" if got == said else got, file=sys.stderr)
"""
NAMES = ("CLUSTER", "STATE", "MAKE_CPU_CLIENT", "MAKE_GLOO")


def run(*arguments, **variables):
  """Exit code and lines of stderr; no test waits for a minute."""
  done = subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
    capture_output=True,
    text=True,
    timeout=55,
  )
  return done.returncode, done.stderr.splitlines()


def run_two(script, *arguments):
  local = ["launch/local.py", "--processes=2", "--devices=2", "--"]
  return run(*local, sys.executable, "-c", script, *arguments)


# Threads of Gloo write piece by piece what they say, each between the other's.
GLOO = re.compile(
  r"\[1\] |\[Gloo\] Rank | is connected to | peer ranks\. |\d"
  r"|Expected number of connected peer ranks is : "
)


def expected(line):
  return "waits for 1 other" in line or not GLOO.sub("", line)


def on_loopback(ports):
  hosts = {port.split(":")[0] for port in ports.split()}
  return hosts <= {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.nightly
def test_two_processes_of_two_devices_after_one_was_killed(tmp_path):
  code, said = run_two(SUM, tmp_path / "killed")
  assert code == 0, said
  assert sum("all start again" in x for x in said) == 1
  sums = [re.search(r"first (\w+): (\S+) at (.*)", x) for x in said]
  sums = [found.groups() for found in sums if found]
  assert sorted(s[:2] for s in sums) == [("False", "10.0"), ("True", "10.0")]
  assert all(ports and on_loopback(ports) for *_, ports in sums)
  # Both said, both times, before they waited, for whom.
  waits = [x.removeprefix("[1] ") for x in said if "waits for 1 other" in x]
  assert len(waits) == 4
  assert {x[:14] for x in waits} == {"process 0 of 2", "process 1 of 2"}
  assert all("at 127.0.0.1:" in x and "up to 60 s" in x for x in waits)


def test_one_process_alone_listens_on_loopback_and_says_nothing(tmp_path):
  code, said = run("-c", SUM, tmp_path / "x", JAX_PLATFORMS="cpu")
  assert code == 0, said
  (line,) = said
  assert line.startswith("first True: 1.0 at ")
  assert len(line.split(" at ")[1].split()) == 1  # the coordinator alone
  assert on_loopback(line.split(" at ")[1])


def test_one_process_may_be_left_as_it_is(environment, monkeypatch):
  environment()
  monkeypatch.setattr(processes, "_this", None)
  monkeypatch.setattr(jax.distributed, "initialize", None)
  processes.initialize(trains=False)
  assert processes.count() == 1 and processes.is_first()
  assert processes.share("mine") == "mine"


@pytest.mark.parametrize(
  "count, least, most", [(1, 365 * 24 * 3600, math.inf), (2, 100, 100)]
)
def test_one_process_alone_may_be_suspended(
  environment, monkeypatch, count, least, most
):
  """JAX would abort it when it goes on: for 100 seconds nobody had heard it."""
  asked = {}
  join = lambda *a, **k: asked.update(k)
  monkeypatch.setattr(processes, "_this", None)
  monkeypatch.setattr(jax.distributed, "initialize", join)
  monkeypatch.setattr(processes, "_set_collectives", lambda this: None)
  monkeypatch.setattr(sys, "excepthook", sys.excepthook)
  environment(
    JAX_COORDINATOR_ADDRESS="127.0.0.1:1",
    JAX_NUM_PROCESSES=str(count),
    JAX_PROCESS_ID="0",
  )
  processes.initialize()
  assert least <= asked["heartbeat_timeout_seconds"] <= most


@pytest.mark.nightly
@pytest.mark.parametrize("how", ["table", "collective"])
def test_what_process_0_has_is_shared(how):
  code, said = run_two(SHARE, how)
  assert code == 0, said
  # What Gloo writes may end in a line of ours.
  ours = [GLOO.sub("", x) for x in said if not expected(x)]
  assert ours == ["same", "same"], said


@pytest.mark.nightly
def test_what_both_have_to_say_process_0_says():
  code, said = run_two(FAIL, "it is full", "it is full")
  assert code == 1
  assert [x for x in said if not expected(x)] == ["error: it is full"]
  code, said = run_two(FAIL, "no file", "it is full")
  assert code == 1
  assert sorted(x for x in said if not expected(x)) == [
    "[1] process 1: error: it is full",
    "error: no file",
  ]


@pytest.mark.nightly
def test_what_one_has_to_say_comes_with_its_number():
  code, said = run_two(FAIL, "waits", "it is full")
  assert code == 1
  first, *rest = [x for x in said if not expected(x)]
  assert first == "[1] process 1: error: it is full"
  # The other one may be ended before it notices.
  assert not rest or rest[0].startswith("process 0: another process is gone")
  code, said = run_two(FAIL, "waits", "bug")
  assert code == 1 and "[1] ZeroDivisionError: bug" in said


@pytest.mark.nightly
def test_a_missing_peer_is_named_before_jax_aborts():
  command = ["import sys; from gaze_jax.runtime import processes"]
  command += ["processes.initialize(timeout=1)"]
  code, said = run(
    *("-c", "; ".join(command)),
    JAX_COORDINATOR_ADDRESS="127.0.0.1:1",
    JAX_NUM_PROCESSES="3",
    JAX_PROCESS_ID="2",
  )
  assert code == -6
  assert said[0] == (
    "process 2 of 3 waits for 2 others at 127.0.0.1:1, where process 0"
    " listens, for up to 1 s"
  )


@pytest.fixture
def environment(monkeypatch):
  def change(**variables):
    for name in VARIABLES:
      monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return change


def test_who_a_process_is(environment):
  environment()
  assert processes._identify(1) is None
  given = dict(
    JAX_COORDINATOR_ADDRESS="10.0.0.1:7",
    JAX_NUM_PROCESSES="4",
    JAX_PROCESS_ID="3",
  )
  environment(**given)
  place = processes._identify(1)
  assert place == processes._Member(3, 4, "10.0.0.1:7", None)
  assert not place.on_one_machine
  environment(**given, JAX_LOCAL_DEVICE_IDS="1,2")
  assert processes._identify(1).local_devices == [1, 2]
  environment(**SLURM)
  assert processes._identify(1) == processes._Member(2, 3, "node7:61440", [0])
  environment(**SLURM, JAX_LOCAL_DEVICE_IDS="0,1")
  assert processes._identify(1).local_devices == [0, 1]
  environment(**SLURM | given)  # ours go before the cluster's
  assert processes._identify(1) == place


SLURM = dict(
  SLURM_JOB_ID="61440",
  SLURM_STEP_NODELIST="node[7-9]",
  SLURM_NTASKS="3",
  SLURM_PROCID="2",
  SLURM_LOCALID="0",
)


def test_this_jax_has_its_private_names():
  assert all(getattr(jax_private, name) is not None for name in NAMES)
  assert jax_private._name("clusters", "Gone") is None
  assert jax_private._name("gone", "ClusterEnv") is None


@pytest.fixture
def without_names(monkeypatch):
  for name in NAMES:
    monkeypatch.setattr(jax_private, name, None)
  monkeypatch.setattr(processes, "_this", None)
  monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def test_without_the_names_jax_itself_finds_the_others(
  environment, without_names, monkeypatch
):
  asked = []
  joined = lambda *a, **k: asked.append((a, k))
  monkeypatch.setattr(jax.distributed, "initialize", joined)
  environment(**SLURM)
  assert processes._identify(1) is None
  processes.initialize(timeout=7)
  assert asked == [((), dict(initialization_timeout=7))]
  assert processes._this_process().processes == 1


def test_without_the_names_it_is_alone_where_jax_finds_nobody(
  environment, without_names, monkeypatch
):
  asked = []

  def initialize(*given, **more):
    asked.append(given)
    if not given:
      raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  monkeypatch.setattr(processes, "_set_collectives", lambda this: None)
  environment()
  processes.initialize()
  assert [len(given) for given in asked] == [0, 3]
  assert asked[1][1:] == (1, 0)
  environment(JOB_COMPLETION_INDEX="0")
  with pytest.raises(processes.ProcessesError, match="a pod of an indexed Job"):
    processes.initialize()


def test_without_the_names_each_says_what_it_has_to_say():
  code, said = run_two(FAIL_ALONE, "it is full")
  assert code == 1
  assert sorted(x for x in said if not expected(x)) == [
    "[1] process 1: error: it is full",
    "error: it is full",
  ]


@pytest.mark.parametrize(
  "variables, says",
  [
    (
      dict(JAX_NUM_PROCESSES="2"),
      "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID not",
    ),
    (dict(JAX_PROCESS_ID="one"), "JAX_PROCESS_ID is 'one': give a whole"),
    (
      dict(
        JAX_COORDINATOR_ADDRESS="a:1",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID="2",
      ),
      "JAX_PROCESS_ID is 2: of 2 processes",
    ),
    (dict(JOB_COMPLETION_INDEX="0"), "a pod of an indexed Job"),
  ],
)
def test_an_environment_that_says_half_of_it(environment, variables, says):
  environment(**variables)
  with pytest.raises(processes.ProcessesError, match=says):
    processes._identify(1)
