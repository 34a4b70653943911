"""clang-tidy for one source: ``tidy.py BUILD CLANG_TIDY SOURCE``.

A source that is compiled for several instruction sets stands in the compilation database as often;
clang-tidy would read it once for each, and takes one command from this program instead.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main(build: str, clang_tidy: str, source: str) -> int:
    """The exit status of clang-tidy on `source`, whose warnings are printed."""
    commands = json.loads((Path(build) / "compile_commands.json").read_text())
    wanted = Path(source).resolve()
    found = [command for command in commands if Path(command["file"]) == wanted]
    if not found:
        print(f"{source} is not compiled in {build}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "compile_commands.json").write_text(json.dumps(found[:1]))
        done = subprocess.run(
            [clang_tidy, "--quiet", "-p", folder, source],
            capture_output=True,
            text=True,
            check=False,
        )
    print(f"{source}: {'clean' if done.returncode == 0 else 'findings'}\n{done.stdout}".rstrip())
    if done.returncode:
        print(done.stderr[-2000:])
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
