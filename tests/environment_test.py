"""The scripts around the suite: which Python they find, what they run."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BASH = shutil.which("bash")
SHIM = "#!/bin/sh\nexit 127\n"  # pyenv's, of a version that is not chosen
# The probe ends with the versions that will do.
PYTHON = """#!/bin/sh
for wanted; do if [ "$wanted" = {} ]; then exit 0; fi; done
exit 1
"""


@pytest.fixture
def machine(tmp_path):
  """Interpreters by name or pyenv's version; runs find_python among them."""

  def find(on_path, in_pyenv, *versions, **variables):
    put = lambda path, text: (
      path.parent.mkdir(parents=True, exist_ok=True),
      path.write_text(text),
      path.chmod(0o755),
    )
    (tmp_path / "bin").mkdir()
    for name, version in on_path.items():
      text = PYTHON.format(version) if version else SHIM
      put(tmp_path / "bin" / name, text)
    for folder, version in in_pyenv.items():
      text = PYTHON.format(version) if version else SHIM
      put(tmp_path / ".pyenv/versions" / folder / "bin/python", text)
    done = subprocess.run(
      [BASH, "-c", f"source {ROOT}/launch/environment.sh; find_python $0 $@"]
      + list(versions),
      env=dict(PATH=str(tmp_path / "bin"), HOME=str(tmp_path)) | variables,
      capture_output=True,
      text=True,
    )
    found = done.stdout.strip().replace(f"{tmp_path}/.pyenv/versions", "pyenv")
    return found or done.stderr.strip()

  return find


@pytest.mark.parametrize(
  "on_path, in_pyenv, versions, found",
  [
    (["python3.11", "python3.12"], [], "3.11 3.12", "python3.11"),
    (["python3.12"], [], "3.11 3.12", "python3.12"),
    (["python3.12"], ["3.11.7"], "3.11 3.12", "python3.12"),
    (["python3.11"], ["3.12.1"], "3.12", "pyenv/3.12.1/bin/python"),
    ([], ["3.10.1", "3.12.1"], "3.11 3.12", "pyenv/3.12.1/bin/python"),
    ([], ["3.12.1", "3.11.7"], "3.11 3.12", "pyenv/3.11.7/bin/python"),
    ([], ["3.1.2", "3.13.0"], "3.12", "error: needs Python 3.12 with its venv"),
    ([], [], "3.11 3.12", "error: needs Python 3.11 or 3.12 with its venv"),
  ],
)
def test_which_python(machine, on_path, in_pyenv, versions, found):
  named = {name: name.removeprefix("python") for name in on_path}
  kept = {folder: folder.rpartition(".")[0] for folder in in_pyenv}
  assert machine(named, kept, *versions.split()).startswith(found)


def test_what_does_not_start_is_passed_over(machine):
  on_path = {"python3.11": None, "python3.12": None, "python3": "3.9"}
  in_pyenv = {"3.12.0": None, "3.12.1": "3.12"}
  found = machine(on_path, in_pyenv, "3.11", "3.12")
  assert found == "pyenv/3.12.1/bin/python"


def test_python3_may_be_of_the_version(machine):
  assert machine({"python3": "3.12"}, {}, "3.11", "3.12") == "python3"


def test_pyenv_may_be_elsewhere(machine, tmp_path):
  (tmp_path / ".pyenv/versions/3.11.7/bin").mkdir(parents=True)
  moved = dict(PYENV_ROOT=str(tmp_path / "gone"))
  assert "error" in machine({}, {"3.11.7": "3.11"}, "3.11", **moved)


def test_a_python_that_is_named_is_the_only_one(machine):
  on_path = {"python3.11": "3.11", "mine": "3.12", "old": "3.9"}
  both = ("3.11", "3.12")
  assert machine(on_path, {}, *both, PYTHON="mine") == "mine"


def test_a_python_that_is_named_and_is_none(machine):
  says = machine({"python3.11": "3.11"}, {}, "3.11", "3.12", PYTHON="old")
  assert says == (
    "error: needs Python 3.11 or 3.12 with its venv module; PYTHON=old is none"
  )


@pytest.fixture
def repository(tmp_path):
  """A copy of the scripts whose steps say what they would do."""
  for folder in (".ci", "launch"):
    shutil.copytree(ROOT / folder, tmp_path / folder)
  return tmp_path


def ci(repository, found):
  """Lines of .ci/run; `found`: what find_python answers, by its arguments."""
  cases = "\n".join(f'"{k}") echo {v} ;;' for k, v in found.items())
  (repository / "launch/environment.sh").write_text(
    f'find_python() {{ case "$*" in\n{cases}\n*) return 1 ;; esac }}\n'
  )
  (repository / "launch/test.sh").write_text(
    'echo "test.sh $* ${PYTHON:-} ${GAZE_VENV:-}"\n'
  )
  names = ("PYTHON", "GAZE_VENV")
  done = subprocess.run(
    [BASH, ".ci/run"],
    cwd=repository,
    env={k: v for k, v in os.environ.items() if k not in names},
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, "")
  lines = done.stdout.splitlines()
  return [" ".join(x.split()) for x in lines if "took" not in x]


FOUND = {"3.12": "p/python", "3.11 3.12": "python3.11"}


def test_ci_runs_both_pythons_and_both_tiers(repository):
  assert ci(repository, FOUND)[1::2] == [
    "test.sh",
    "test.sh p/python .venv312",
    "test.sh -m nightly",
  ]


@pytest.mark.parametrize(
  "found, says",
  [
    ({"3.11 3.12": "python3.11"}, "no Python 3.12, neither on PATH nor in"),
    (
      {"3.12": "python3.12", "3.11 3.12": "python3.12"},
      "the above ran on Python 3.12",
    ),
  ],
)
def test_ci_says_why_3_12_did_not_run_beside(repository, found, says):
  _, fast, line, _, nightly = ci(repository, found)
  assert (fast, nightly) == ("test.sh", "test.sh -m nightly")
  assert says in line


def run_tests(repository, *arguments):
  """What launch/test.sh gives to pytest, in an environment that is there."""
  (repository / "launch/environment.sh").write_text(
    "repository=.; python=echo\n"
    + "".join(
      f"{name}() {{ :; }}\n"
      for name in (
        *("make_environment", "install_reference", "install_tpu_compiler"),
        "install_browser",
      )
    )
  )
  done = subprocess.run(
    [BASH, "launch/test.sh", *arguments],
    cwd=repository,
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.splitlines()[-1]


def test_durations_are_told_whatever_is_run(repository):
  shown = "-m pytest -q --numprocesses=auto --dist=worksteal --durations=25"
  assert run_tests(repository) == shown
  more = ("-n", "0", "-m", "nightly", "tests/ops")
  assert run_tests(repository, *more) == f"{shown} {' '.join(more)}"
