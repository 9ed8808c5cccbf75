"""What the launchers for clusters would run, and what they refuse.

After a change of what they print, look at the difference, then write it with
`GAZE_WRITE_GOLDEN=1 python -m pytest tests/launchers_test.py`.
"""

import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
# Characters that a shell, YAML or Kubernetes would take for something else.
COMMAND = [
  *("python", "launch/train.py", "--config=configs/cambrian_4b.py"),
  """--workdir=/runs/it's "one" $(HOME) {x}: `y` & \\z""",
]
SETTINGS = {
  "slurm.sbatch": dict(nodes="4", gpus="8", cpus="64"),
  "tpu_vm.sh": dict(name="my-tpu", zone="us-central1-a"),
  "xpk.sh": dict(
    name="first-run",
    cluster="my-cluster",
    zone="us-central1-a",
    tpu="v5litepod-256",
    image="registry.example/gaze_jax:1",
  ),
  "jobset.sh": dict(
    name="first-run",
    image="registry.example/gaze_jax:1",
    accelerator="tpu-v5-lite-podslice",
    topology="16x16",
    claim="runs",
  ),
}


def launch(script, *arguments, **settings):
  """Exit code, stdout and stderr."""
  given = [f"--{name.replace('_', '-')}={v}" for name, v in settings.items()]
  environment = {k: v for k, v in os.environ.items() if "SLURM" not in k}
  done = subprocess.run(
    ["bash", str(ROOT / "launch" / script), *given, *arguments],
    cwd="/",
    env=environment,
    capture_output=True,
    text=True,
    timeout=60,
  )
  return done.returncode, done.stdout, done.stderr


def shown(script, **settings):
  code, out, err = launch(script, "--dry-run", "--", *COMMAND, **settings)
  assert (code, err) == (0, "")
  return out.replace(str(ROOT), "REPOSITORY")


def check_golden(name, text):
  path = GOLDEN / name
  if os.environ.get("GAZE_WRITE_GOLDEN"):
    path.write_text(text, encoding="utf-8")
  assert text == path.read_text(encoding="utf-8")


def host_command(line):
  """The words that a host's shell makes of the last word of a command."""
  words = shlex.split(line)
  assert words[-1].startswith("--command=")
  return shlex.split(words[-1].removeprefix("--command="))


def test_slurm():
  out = shown("slurm.sbatch", **SETTINGS["slurm.sbatch"])
  check_golden("slurm.txt", out)
  submitted, step = (shlex.split(line) for line in out.splitlines())
  assert submitted[-4:] == step[-4:] == COMMAND
  # A process for each GPU, and what is handed to Slurm.
  more = dict(split="yes", time="1-12:00:00", partition="p", account="a")
  out = shown("slurm.sbatch", **SETTINGS["slurm.sbatch"], **more)
  submitted, step = out.splitlines()
  assert "--ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8" in submitted
  assert "--time=1-12:00:00 --partition=p --account=a" in submitted
  assert step.startswith("srun --ntasks-per-node=8 --cpus-per-task=8 ")


def test_tpu_vm():
  out = shown("tpu_vm.sh", **SETTINGS["tpu_vm.sh"])
  check_golden("tpu_vm.txt", out)
  assert host_command(out)[-4:] == COMMAND
  out = shown(
    "tpu_vm.sh", **SETTINGS["tpu_vm.sh"], project="p", directory="a b"
  )
  assert " --project=p " in out
  assert host_command(out)[:5] == ["cd", "a b", "&&", "exec", "python"]


def test_xpk():
  out = shown("xpk.sh", **SETTINGS["xpk.sh"])
  check_golden("xpk.txt", out)
  assert host_command(out)[-4:] == COMMAND


def test_jobset():
  out = shown("jobset.sh", **SETTINGS["jobset.sh"])
  check_golden("jobset.yaml", out)
  assert "${" not in out.replace("$$(HOME) {x}", "")
  job = yaml.safe_load(out)["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 64
  (container,) = job["template"]["spec"]["containers"]
  # To Kubernetes $$ is a dollar sign.
  words = [word.replace("$$", "$") for word in container["command"]]
  assert words[-4:] == COMMAND
  # Three axes, and another number of chips on a host.
  changed = SETTINGS["jobset.sh"] | dict(topology="4x4x8", chips="8")
  assert "parallelism: 16\n" in shown("jobset.sh", **changed)


@pytest.mark.parametrize("script", SETTINGS)
def test_what_is_missing_is_named_with_an_example(script):
  code, out, err = launch(script, "--dry-run")
  assert code == 1 and out == "" and err.count("\n") == 1
  example = err.split("such as bash ")[1].split()
  for name in SETTINGS[script]:
    assert f"--{name}, " in err
    assert any(word.startswith(f"--{name}=") for word in example)
  assert "the command after --" in err
  # The example is taken.
  code, _, err = launch(script, "--dry-run", *example[1:])
  assert (code, err) == (0, "")


@pytest.mark.parametrize(
  "script, argument, says",
  [
    ("tpu_vm.sh", "--nme=x", "--nme: no such setting; there are --directory"),
    ("tpu_vm.sh", "--=x", "--: no such setting"),
    ("tpu_vm.sh", "name", "name: give settings as --name=value"),
    ("tpu_vm.sh", "--x[$(touch {})]=1", "no such setting"),
    ("tpu_vm.sh", "--name=$(touch {})", "it must be like"),
    ("tpu_vm.sh", "--directory=a\nb", "it must be like one line"),
    ("xpk.sh", "--image=a;b", "--image='a;b': it must be like"),
    ("xpk.sh", "--slices=two", "--slices=two: it must be like"),
    ("jobset.sh", "--image=a: b", "--image='a: b': it must be like"),
    ("jobset.sh", "--topology=a[$(touch {})]", "it must be like"),
    ("jobset.sh", "--topology=3x3", "9 chips: not a multiple of the 4"),
    ("slurm.sbatch", "--gpus=0", "--gpus=0: it must be like"),
  ],
)
def test_settings_that_are_refused(tmp_path, script, argument, says):
  touched = tmp_path / "touched"
  code, out, err = launch(
    script,
    *("--dry-run", argument.format(touched)),
    *("--", "true"),
    **{
      name: value
      for name, value in SETTINGS[script].items()
      if not argument.startswith(f"--{name}=")
    },
  )
  assert code == 1 and out == "" and err.count("\n") == 1
  assert err.startswith("error: ") and says in err
  assert not touched.exists()


# Slurm's commands, as far as a job uses them: a step writes its process number
# and ends as it is told, or when `scancel` signals it.
SRUN = """#!/usr/bin/env bash
trap 'exit 0' TERM
echo $$ > "$folder/step"
[[ -z "${step_code-}" ]] || exit "$step_code"
while :; do sleep 0.02; done
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$folder/log"
sleep 0.2
kill "-${1#--signal=}" "$(cat "$folder/step")"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$folder/log"
"""


@pytest.mark.parametrize(
  "number, step_code, code, called",
  [
    # Before the time is over it saves, and is queued again.
    (signal.SIGUSR1, "", 0, ["scancel --signal=TERM 7", "scontrol requeue 7"]),
    # Told to end it waits for its tasks, which were told by Slurm.
    (signal.SIGTERM, "", 0, []),
    (None, "1", 1, []),
    (None, "0", 0, []),
  ],
)
def test_a_job_of_slurm(tmp_path, number, step_code, code, called):
  tools = dict(srun=SRUN, scancel=SCANCEL, scontrol=SCONTROL)
  for name, text in tools.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  settings = SETTINGS["slurm.sbatch"].items()
  job = subprocess.Popen(
    ["bash", "launch/slurm.sbatch", *(f"--{k}={v}" for k, v in settings)]
    + ["--", *COMMAND],
    cwd=ROOT,
    env=os.environ
    | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    | {"folder": str(tmp_path), "step_code": step_code},
  )
  if number:
    deadline = time.time() + 20
    while not (tmp_path / "step").exists() or not step_of(tmp_path):
      assert time.time() < deadline
      time.sleep(0.02)
    job.send_signal(number)
    if number == signal.SIGTERM:
      time.sleep(0.3)
      assert job.poll() is None
      os.kill(step_of(tmp_path), number)
  assert job.wait(timeout=30) == code
  log = tmp_path / "log"
  assert (log.read_text().splitlines() if log.exists() else []) == called


def step_of(folder):
  return int((folder / "step").read_text() or 0)
