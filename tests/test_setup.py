"""The way from a checkout to a working ``.venv``: pins, Makefile, CI script."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PINS = [
    Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] not in " #"
]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def pins_of(python: str) -> dict[str, str]:
    """Pinned version by package on Linux."""
    where = {
        "python_version": python,
        "python_full_version": python + ".9",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    chosen = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(where)]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in chosen}
    assert len(versions) == len(chosen), "a package is pinned twice"
    return versions


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_python_has_one_exact_version_of_each_direct_dependency(python):
    pins = pins_of(python)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(text) for texts in lists for text in texts]
    assert {"torch", "ray", "deepspeed", "pytest", "numpy"} <= {need.name for need in wanted}
    for need in wanted:
        assert Version(pins[canonicalize_name(need.name)]) in need.specifier, need
    assert pins["torch"] == "2.13.0"


def test_the_pins_are_versions_and_nothing_else():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "--index" not in text.replace("`", "")
    for pin in PINS:
        assert re.fullmatch(r"==[^,*+]+", str(pin.specifier)) and pin.url is None, pin


def test_what_is_installed_is_what_is_pinned():
    pins = pins_of(f"{sys.version_info.major}.{sys.version_info.minor}")
    seen: set[tuple[str, str]] = set()
    todo = [("distft", extra) for extra in ("", "dev")]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        distribution = metadata.distribution(name)
        if name != "distft":
            assert name in pins, f"{name} is installed for distft and has no pin"
            assert Version(distribution.version).public == pins[name], name
        for text in distribution.requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(need.name), wanted) for wanted in ("", *need.extras)]
    assert len({name for name, _ in seen}) > 60


# -- Makefile: the real one in a folder of its own, with a Python that writes down what it is asked -----------------

PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >> "$LOG"
case "$1 $2" in
    "-c "*) exit ${PYTHON_SUITS:-0};;
    "-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
    "-m pip") exit ${PIP_EXIT:-0};;
esac
"""


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder.parent / "log"
        self.bin = folder.parent / "bin"
        folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.bin.mkdir()
        for tool in ("sh", "cat", "rm", "mkdir", "cp", "test", "echo", "printf", "pwd"):
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)

    def python(self, name: str) -> None:
        path = self.bin / name
        path.write_text(PYTHON)
        path.chmod(0o755)

    def make(self, *arguments: str, **environment: str) -> tuple[int, list[str], str]:
        """Exit code, what the Python was asked for besides its version, and what was printed."""
        self.log.write_text("")
        done = subprocess.run(
            [shutil.which("make") or "make", *arguments],
            cwd=self.folder,
            env={"PATH": str(self.bin), "LOG": str(self.log), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        asked = [line for line in self.log.read_text().splitlines() if line.startswith("-m")]
        return done.returncode, asked, done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "it's a check out")


INSTALL = "-m pip install --disable-pip-version-check -c constraints.txt -e .[dev,excel,mlflow]"
TEST = "-m pytest -m not proof -n 2 --dist loadfile"


@needs_make
def test_make_alone_lists_the_targets_and_makes_nothing(checkout):
    code, asked, printed = checkout.make()
    assert code == 0 and asked == [] and not (checkout.folder / ".venv").exists()
    for target in ("run", "serve", "test", "proof", "check", "format", "clean"):
        assert re.search(rf"^make {target} ", printed, re.MULTILINE)


@needs_make
def test_the_environment_is_made_once_and_kept(checkout):
    checkout.python("python3")
    assert checkout.make("test")[:2] == (0, ["-m venv --clear .venv", INSTALL, TEST])
    assert checkout.make("test", "ARGS=-k clean")[:2] == (0, [TEST + " -k clean"])
    assert checkout.make("proof")[:2] == (0, ["-m pytest -m proof -n 2 --dist loadfile"])
    assert checkout.make("proof", "LANES=-n 3")[:2] == (0, ["-m pytest -m proof -n 3"])
    assert checkout.make("check")[1] == ["-m ruff check .", "-m ruff format --check .", "-m mypy"]


@needs_make
@pytest.mark.parametrize("changed", ["constraints.txt", "pyproject.toml"])
def test_a_changed_pin_is_installed(checkout, changed):
    checkout.python("python3")
    checkout.make("test")
    later = (checkout.folder / ".venv" / ".installed").stat().st_mtime + 5
    os.utime(checkout.folder / changed, (later, later))
    assert checkout.make("test")[1] == [INSTALL, TEST]


@needs_make
def test_an_interrupted_installation_is_repeated(checkout):
    checkout.python("python3")
    code, asked, _ = checkout.make("test", PIP_EXIT="1")
    assert code != 0 and asked == ["-m venv --clear .venv", INSTALL]
    assert checkout.make("test")[:2] == (0, [INSTALL, TEST])


@needs_make
def test_a_moved_checkout_is_installed_where_it_is(checkout, tmp_path):
    checkout.python("python3")
    checkout.make("test")
    checkout.folder = checkout.folder.rename(tmp_path / "elsewhere")
    assert checkout.make("test")[1] == [INSTALL, TEST]
    assert checkout.make("test")[1] == [TEST]


@needs_make
def test_a_python_that_does_not_fit_is_passed_over(checkout):
    checkout.python("python3")
    (checkout.bin / "python3").write_text("#!/bin/sh\nexit 1\n")
    checkout.python("python3.12")
    assert checkout.make("test")[:2] == (0, ["-m venv --clear .venv", INSTALL, TEST])


@needs_make
@pytest.mark.parametrize("arguments", [(), ("PYTHON=/usr/local/my python",)])
def test_no_python_or_one_that_is_too_old_ends_with_one_clear_line(checkout, arguments):
    for _ in range(2):
        code, asked, printed = checkout.make("test", *arguments, PYTHON_SUITS="1")
        ours = [line for line in printed.splitlines() if not line.startswith("make:")]
        assert code == 2 and asked == []
        assert len(ours) == 1 and "Python 3.10, 3.11, 3.12 or 3.13" in ours[0] and "make PYTHON=" in ours[0]
        checkout.python("python3")


@needs_make
def test_the_first_run_serves_what_it_made(checkout):
    plan = checkout.make("-n", "run")[2].splitlines()
    assert plan[-2:] == [
        ".venv/bin/distft run jobs/quickstart.yaml",
        ".venv/bin/distft serve runs/quickstart/bundle --probe",
    ]
    assert checkout.make("-n", "serve", "PORT=8080")[2].splitlines()[-1].endswith("bundle --port 8080 --no-auth")


# -- CI ----------------------------------------------------------------------------------------------------------

MAKE = """#!/bin/sh
echo "make $1" >> "$LOG"
test "$1" != "$FAILING" || exit 7
case "$2" in *--junitxml=*) file="${2#*--junitxml=}"; eval "printf '%s' \\"\\$REPORT\\" > $file";; esac
"""
PASSED = '<testsuites><testsuite><testcase classname="a" name="b"/></testsuite></testsuites>'
SKIPPED = PASSED.replace("/></testsuite>", '><skipped message="no browser"/></testcase></testsuite>')


@pytest.fixture
def ci(tmp_path: Path) -> Path:
    """The CI script in a folder whose system packages are all there and whose make writes down its targets."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin").mkdir()
    for tool in ("make", "chromium", "chromedriver", "ip", "ps", "python3"):
        path = tmp_path / "bin" / tool
        path.write_text(MAKE if tool == "make" else "#!/bin/sh\n")
        path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("failing", "report", "code", "targets"),
    [
        ("", PASSED, 0, ["check", "test", "proof"]),
        ("check", PASSED, 7, ["check"]),
        ("test", PASSED, 7, ["check", "test"]),
        ("proof", PASSED, 7, ["check", "test", "proof"]),
        ("", SKIPPED, 1, ["check", "test"]),
        ("", "<testsuites/>", 1, ["check", "test"]),
    ],
)
def test_ci_stops_at_the_first_failure_and_counts_a_skipped_test_as_one(ci, failing, report, code, targets):
    environment = {"PATH": f"{ci / 'bin'}:{os.environ['PATH']}", "LOG": str(ci / "log")}
    done = subprocess.run(
        [str(ci / ".ci" / "run")],
        env={**environment, "FAILING": failing, "REPORT": report},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert (ci / "log").read_text().split("\n")[:-1] == [f"make {target}" for target in targets]
    assert ("skipped: a::b: no browser" in done.stdout) == (report == SKIPPED)


def test_the_ci_script_can_be_run():
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR


def test_the_licence_is_the_one_that_the_package_names():
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in licence
    assert licence.rstrip().endswith("limitations under the License.") and len(licence) == 11_358
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
