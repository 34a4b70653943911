"""Packs a folder of a fuzzer's inputs: python tests/fuzz/pack.py FOLDER tests/fuzz/corpus/row.zip

The same inputs make the same archive, byte for byte: names sorted, no times.
"""

import sys
import zipfile
from pathlib import Path


def main() -> None:
    folder, archive = map(Path, sys.argv[1:])
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(folder.iterdir()):
            entry = zipfile.ZipInfo(file.name)
            packed.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()
