"""Files of Circle, which Samsung's converter makes of programs in an environment of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tico_config import ArtifactError, ConfigError, Found, Problem


def to_circle(
    program: str | os.PathLike[str], path: str | os.PathLike[str], converter: str | os.PathLike[str]
) -> Path:
    """Have ``pt2-to-circle`` make the Circle file `path` of a file that ``PT2(dialect="circle")`` wrote.

    Samsung's `tico`, which brings the converter, takes the place of `tico.quantization` where both are
    installed: `converter` is the path of ``pt2-to-circle`` in another environment.

    Raises:
        ConfigError: there is no such converter, or `path` exists.
        ArtifactError: the converter refuses the program; the error has its last line.
    """
    tool, made = Path(converter), Path(path)
    if not tool.is_file():
        remedy = "install Samsung's tico in an environment of its own, and pass its bin/pt2-to-circle"
        raise ConfigError(
            Problem(field="converter", value=str(tool), expected="the program pt2-to-circle", remedy=remedy)
        )
    if made.exists():
        raise ConfigError(Problem(field="path", value=str(made), expected="one that does not exist yet"))
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(tool), "-i", os.fspath(program), "-o", str(made)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=outside)
    if done.returncode or not made.is_file():
        made.unlink(missing_ok=True)
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        sentence = f"pt2-to-circle refuses the program: {lines[-1]}"
        found, expected = Found(f"exit status {done.returncode}"), "a program that it takes"
        raise ArtifactError(Problem(field="program", value=found, expected=expected, sentence=sentence))
    return made
