"""The project's tasks; plain `nox` runs every check that is not about packaging or speed.

Those checks, the quickstart and the benchmarks share one development environment under `.nox`, because
installing torch takes longer than most of them. It is brought up to date only when something that it is made
from has changed. The sessions therefore have no environment of nox's own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Final

import nox

nox.needs_version = ">=2025.2.9"

ROOT: Final = Path(__file__).parent
ENVIRONMENTS: Final = ROOT / ".nox"
DEVELOPMENT: Final = ENVIRONMENTS / f"development-{sys.version_info.major}.{sys.version_info.minor}"
WHEELS: Final = ENVIRONMENTS / "wheels"
CONSTRAINTS: Final = ROOT / "constraints.txt"

# Bottom-up, with the names to import; a package may import those before it only.
PACKAGES: Final = {
    "tico-config": ("tico_config",),
    "tico-observers": ("tico_observers",),
    "tico-modules": ("tico_modules",),
    "tico-quantizers": ("tico_quantizers",),
    "tico-pt2e": ("tico_pt2e",),
    "tico-wrapq": ("tico_wrapq",),
    "tico-api": ("tico_api", "tico.quantization"),
}

# OpenMP threads that spin while they wait can stall a run for minutes on a machine with other work.
PATIENT: Final = {"OMP_WAIT_POLICY": "PASSIVE"}

# torch says so once where NumPy is not installed, which none of the packages needs.
WITHOUT_NUMPY: Final = "ignore:Failed to initialize NumPy:UserWarning"


def _program(environment: Path, name: str) -> str:
    """Return the path of a program of `environment`."""
    inside = Path("Scripts", f"{name}.exe") if sys.platform == "win32" else Path("bin", name)
    return str(environment / inside)


def _run(session: nox.Session, environment: Path, *command: str, **variables: str) -> None:
    """Run a program of `environment` in the repository's root, with `variables` set."""
    program, *arguments = command
    session.run(_program(environment, program), *arguments, env=variables, external=True)


def _create(session: nox.Session, environment: Path) -> None:
    """Make `environment` anew, empty, with the Python that runs nox."""
    shutil.rmtree(environment, ignore_errors=True)
    # virtualenv comes with nox and brings its own pip: it works where Python was packaged without ensurepip.
    command = ("-m", "virtualenv", "--quiet", "--no-periodic-update", str(environment))
    session.run(sys.executable, *command, external=True)


def _install(session: nox.Session, environment: Path, *requirements: str) -> None:
    """Install `requirements` into `environment`, under the one pin."""
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "-qq", "--constraint", str(CONSTRAINTS))
    _run(session, environment, "python", *pip, *requirements)


def _tools() -> list[str]:
    """Return the names of what the development environment holds beside the packages."""
    return list(nox.project.dependency_groups(nox.project.load_toml(ROOT / "pyproject.toml"), "dev"))


def _fingerprint() -> str:
    """Digest everything that decides what the development environment holds."""
    digest = hashlib.sha256(json.dumps([str(ROOT), _tools()]).encode())
    for path in (CONSTRAINTS, *sorted(ROOT.glob("packages/*/pyproject.toml"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _develop(session: nox.Session) -> None:
    """Bring the development environment up to date, which takes no time where it is."""
    stamp = DEVELOPMENT / "installed.sha256"
    fingerprint = _fingerprint()
    if not Path(_program(DEVELOPMENT, "python")).exists():
        _create(session, DEVELOPMENT)
    if stamp.exists() and stamp.read_text() == fingerprint:
        return
    # torch comes first and alone, so that nothing that asks for it can have another one chosen.
    _install(session, DEVELOPMENT, "torch")
    _install(session, DEVELOPMENT, *_tools())
    editable = [argument for package in PACKAGES for argument in ("--editable", f"packages/{package}")]
    _install(session, DEVELOPMENT, "--no-build-isolation", *editable)
    stamp.write_text(fingerprint)


def _pytest(session: nox.Session, *arguments: str, **variables: str) -> None:
    """Run pytest on `arguments` and on whatever follows `--` on the command line."""
    command = ("python", "-m", "pytest", "-q", *arguments, *session.posargs)
    _run(session, DEVELOPMENT, *command, **PATIENT, **variables)


def _existing(*patterns: str) -> list[str]:
    """Return the paths that match `patterns`, relative to the root."""
    return [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """Run the tests by example, or only the files named after `--`."""
    _develop(session)
    elsewhere = ("--ignore=tests/property", "--ignore=tests/docs")
    named = any(Path(argument.partition("::")[0]).exists() for argument in session.posargs)
    _pytest(session, *([] if named else ["tests", *_existing("packages/*/tests"), *elsewhere]))


@nox.session(python=False)
def properties(session: nox.Session) -> None:
    """Run the laws, on the same examples every time."""
    _develop(session)
    _pytest(session, "tests/property", HYPOTHESIS_PROFILE="ci")


@nox.session(python=False)
def types(session: nox.Session) -> None:
    """Check the types of the sources, the tests, the examples, the benchmarks and this file."""
    _develop(session)
    folders = _existing("packages/*/src", "tests", "examples", "benchmarks")
    _run(session, DEVELOPMENT, "mypy", *folders, "noxfile.py")
    # Modules of the same name can't be checked together.
    for package_tests in _existing("packages/*/tests"):
        _run(session, DEVELOPMENT, "mypy", package_tests)


@nox.session(python=False)
def layers(session: nox.Session) -> None:
    """Check that import goes down only."""
    _develop(session)
    _run(session, DEVELOPMENT, "lint-imports", "--no-cache", "--no-logo")
    _pytest(session, "tests/architecture")


@nox.session(python=False)
def lint(session: nox.Session) -> None:
    """Check the style and the format."""
    _develop(session)
    _run(session, DEVELOPMENT, "ruff", "check", "--quiet")
    _run(session, DEVELOPMENT, "ruff", "format", "--check", "--quiet")


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """Run every code block of the documents and every example of the docstrings."""
    _develop(session)
    _pytest(session, "tests/docs")


@nox.session(python=False, default=False)
def quickstart(session: nox.Session) -> None:
    """Quantize a trained LLaMA end to end; options follow `--`."""
    _develop(session)
    _run(session, DEVELOPMENT, "python", "examples/quickstart.py", *session.posargs, **PATIENT)


@nox.session(python=False, default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmark named after `--`, with the options that follow its name."""
    names = [Path(path).stem for path in _existing("benchmarks/*.py")]
    name, *options = session.posargs or [""]
    if name not in names:
        session.error(f"`nox -s bench -- NAME [OPTIONS]` needs one of these names: {', '.join(names)}")
    _develop(session)
    _run(session, DEVELOPMENT, "python", f"benchmarks/{name}.py", *options, PYTHONPATH="examples")


@nox.session(python=False, default=False)
def mutation(session: nox.Session) -> None:
    """Change one guard at a time and list the changes that no test notices; parts of paths follow `--`."""
    _develop(session)
    _run(session, DEVELOPMENT, "python", "tests/support/run_mutants.py", *session.posargs, **PATIENT)


@nox.session(python=False, default=False)
def wheels(session: nox.Session) -> None:
    """Build each wheel, install it with what it declares and nothing else, and test its public names."""
    _develop(session)
    shutil.rmtree(WHEELS, ignore_errors=True)
    built = {package: _build(session, package) for package in PACKAGES}
    # The index can't answer for a sibling: its name stands for the file that was just built.
    siblings = WHEELS / "siblings.txt"
    siblings.write_text("".join(f"{package} @ {wheel.as_uri()}\n" for package, wheel in built.items()))
    # pytest stays outside the environments, which hold what a wheel declares and no more.
    _install(session, DEVELOPMENT, "--target", str(WHEELS / "pytest"), "pytest")
    light, heavy = WHEELS / "without-torch", WHEELS / "with-torch"
    _create(session, light)
    _test_installed(session, light, "tico-config", siblings)
    _create(session, heavy)
    # Bottom-up, so that each package is tested before those above it are there.
    for package in [*PACKAGES][1:]:
        _test_installed(session, heavy, package, siblings)


def _build(session: nox.Session, package: str) -> Path:
    """Build the source distribution of `package`, and its wheel from that; return the wheel."""
    folder = WHEELS / "dist" / package
    build = (_program(DEVELOPMENT, "pyproject-build"), "--no-isolation", "--outdir", str(folder))
    session.run(*build, f"packages/{package}", external=True, silent=True)
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(source) as archive:
        _require(session, source, archive.getnames(), "LICENSE", "README.md")
    with zipfile.ZipFile(wheel) as wheel_archive:
        typed = (f"{name.replace('.', '/')}/py.typed" for name in PACKAGES[package])
        _require(session, wheel, wheel_archive.namelist(), "LICENSE", *typed)
    return wheel


def _require(session: nox.Session, archive: Path, members: list[str], *endings: str) -> None:
    """Stop unless for each of `endings` some member of `archive` ends with it."""
    missing = [ending for ending in endings if not any(f"/{name}".endswith(f"/{ending}") for name in members)]
    if missing:
        session.error(f"{archive.name} lacks {', '.join(missing)}")


def _test_installed(session: nox.Session, environment: Path, package: str, siblings: Path) -> None:
    """Install `package` into `environment`, import it there, and run the test of its public names."""
    position = [*PACKAGES].index(package)
    above = [name for names in [*PACKAGES.values()][position + 1 :] for name in names]
    hidden = above if position else ["torch", *above]
    _install(session, environment, "--constraint", str(siblings), package)
    _run(session, environment, "python", "-m", "pip", "check")
    script = ("tests/support/import_alone.py", " ".join(PACKAGES[package]), " ".join(hidden))
    _run(session, environment, "python", "-I", "-W", "error", "-W", WITHOUT_NUMPY, *script)
    test = ("-p", "no:cacheprovider", f"packages/{package}/tests/test_public_api.py")
    variables = PATIENT | {"PYTHONPATH": str(WHEELS / "pytest")}
    _run(session, environment, "python", "-m", "pytest", "-q", *test, **variables)
