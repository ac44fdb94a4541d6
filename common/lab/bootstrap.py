"""Makes .venv, pinned by requirements.lock, once; run by the Makefile with any Python: `bootstrap.py [extra ...]`.

Nothing is installed again while pyproject.toml and requirements.lock stay as they are: stamps in .venv hold their
digest. One process at a time does the work, the others wait for it. Standard library only, and syntax that an older
Python can read, so that it can say what is wrong.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
OLDEST = (3, 11)
WIDTH = 100  # of the line that shows what pip is doing
HEAD = 4096  # bytes of a script in which its interpreter stands
TAIL = 15  # lines of pip's output that are shown when it fails


def main(extras: list[str]) -> int:
    """Make or complete the environment; an exit code."""
    if sys.version_info < OLDEST:
        found = f"{sys.executable} is {sys.version_info[0]}.{sys.version_info[1]}"
        return fail(f"Python 3.11 or newer is needed and {found}; try make PYTHON=/path/to/python3.11")
    try:
        with open(os.path.join(ROOT, "pyproject.toml")) as lock:  # a file that is there, and stays
            fcntl.flock(lock, fcntl.LOCK_EX)
            return prepare(extras)
    except OSError as error:
        return fail(f"the environment can't be made: {error}")


def prepare(extras: list[str]) -> int:
    """Install what no stamp says is there."""
    digest = hashlib.sha256(ROOT.encode())  # an environment does not survive the move of its folder
    for name in ("pyproject.toml", "requirements.lock"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    state = digest.hexdigest()
    if not os.path.exists(stamp("core")) or not works():
        say("making .venv (once; some minutes, most of them torch's download)")
        made = subprocess.run(
            [sys.executable, "-I", "-m", "venv", "--clear", VENV], stdout=subprocess.PIPE, text=True
        )
        if made.returncode:
            return fail(f"python -m venv failed: {made.stdout}")
    missing = [name for name in ["core"] + extras if read(stamp(name)) != state]
    if missing:
        wanted = [name for name in missing if name != "core"]
        say(f"installing {', '.join(missing)}")
        code = install("-e", ROOT + (f"[{','.join(wanted)}]" if wanted else ""))
        if code:
            return code
        for name in missing:
            with open(stamp(name), "w") as file:
                file.write(state)
    # what make compares with pyproject.toml and requirements.lock
    os.utime(stamp("core"))
    return 0


def install(*arguments: str) -> int:
    """pip install under the lock, with one line that shows where it is."""
    command = [
        PYTHON,
        "-I",
        "-m",
        "pip",
        "install",
        "--no-user",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    command += ["-c", os.path.join(ROOT, "requirements.lock")]
    lines = []
    with subprocess.Popen(
        command + list(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    ) as pip:
        for line in pip.stdout or ():
            lines.append(line.rstrip())
            if sys.stderr.isatty():
                sys.stderr.write("\r" + line.strip()[:WIDTH].ljust(WIDTH))
                sys.stderr.flush()
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * WIDTH + "\r")
    if pip.returncode:
        sys.stderr.write("\n".join(lines[-TAIL:]) + "\n")
        errors = [line for line in lines if line.startswith("ERROR")] or ["see above"]
        return fail(f"pip could not install the environment ({errors[-1]}); the same command tries again")
    return 0


def works() -> bool:
    """Whether the environment's interpreter still runs, and is not one of a folder that was moved."""
    code = "import sys; print(sys.prefix)"
    try:
        ran = subprocess.run(
            [PYTHON, "-I", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return False
    ours = os.path.realpath(os.path.join(VENV, "bin"))
    return (
        ran.returncode == 0
        and os.path.realpath(ran.stdout.strip()) == os.path.realpath(VENV)
        and all(os.path.realpath(os.path.dirname(path)) == ours for path in interpreters())
    )


def interpreters() -> list[str]:
    """The Python of a .venv that each script in our bin names in its first lines, such as jupyter's."""
    folder = os.path.join(VENV, "bin")
    found = []
    for name in os.listdir(folder):
        try:
            with open(os.path.join(folder, name), "rb") as file:
                head = file.read(HEAD).decode("utf-8", "replace")
        except OSError:
            continue
        # '#!/folder/.venv/bin/python' or, where that is too long or has a blank, sh and an exec of it on line two
        match = re.match(r"#!(?:/bin/sh\n'{3}exec' )?\"?([^\n]*?/\.venv/bin/python[^\s\"]*)", head)
        if match:
            found.append(match.group(1))
    return found


def stamp(name: str) -> str:
    """The file that says that the core or an extra is installed."""
    return os.path.join(VENV, ".stamp-" + name)


def read(path: str) -> str:
    """A file's content, empty where there is none."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def say(line: str) -> None:
    """One line for the person who waits."""
    sys.stderr.write(line + "\n")


def fail(line: str) -> int:
    """One line of error, and the exit code."""
    say("error: " + " ".join(line.split()))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
