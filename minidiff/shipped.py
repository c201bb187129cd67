"""Where the shipped weights and data are: beside the package in a checkout, inside it when installed from a wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
WEIGHTS, DATA = (PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name for name in ("weights", "data"))
PICTURES = DATA / "pictures"
