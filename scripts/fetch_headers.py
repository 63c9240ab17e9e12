"""Fetch the headers that the plugin libraries and the C++ runtime are compiled with.

ONNX Runtime's and nlohmann/json's come from Debian's packages libonnxruntime-dev and
nlohmann-json3-dev, downloaded with apt-get (from the suite trixie, whatever this system's own is)
and unpacked without being installed. With them comes what the tests check a model repository with:
Triton's schema of model configurations, out of the Python package tritonclient, likewise.

example:
  python scripts/fetch_headers.py --out build/headers
  cmake -S plugins_trt/ort -B build/plugins -DONNXRUNTIME_ROOT=build/headers/onnxruntime
  cmake -S runtime/cpp -B build/cpp
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.cli import parser, run

SUITE = "trixie"
FOLDERS = {"libonnxruntime-dev": "onnxruntime", "nlohmann-json3-dev": "nlohmann"}
"""Folders of /usr/include by package."""
TRITON_CLIENT = "tritonclient==2.73.0"
TRITON_SCHEMA = "tritonclient/grpc/model_config_pb2.py"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def parse_args() -> argparse.Namespace:
    p = parser(__doc__)
    p.add_argument(
        "--out", type=Path, default=Path("build/headers"), metavar="DIR", help="folder to write"
    )
    return p.parse_args()


def output(*command: str, cwd: Path | None = None) -> str:
    """What a command prints.

    Raises:
        ValueError: it fails, or is not there.
    """
    try:
        done = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ValueError(
            f"{command[0]}: not found; this script needs Debian's apt-get and dpkg. Elsewhere, "
            "pass a folder with onnxruntime_cxx_api.h as -DONNXRUNTIME_ROOT, and install "
            "nlohmann/json"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ValueError(f"{' '.join(command)}: {error.stderr.strip()}") from error
    return done.stdout


def debian_mirror() -> str:
    """The address that this system's own Debian packages come from."""
    origin = ("Created-By: Packages", "Origin: Debian")
    mirrors = output("apt-get", "indextargets", "--format", "$(REPO_URI)", *origin).split()
    mirrors = [m for m in mirrors if "security" not in m]
    if not mirrors:
        raise ValueError("apt-get knows no Debian archive; run 'apt-get update' first")
    return mirrors[0]


def fetch(out: Path) -> list[Path]:
    """Unpacks the headers into folders of `out`, replacing them; returns these folders."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("sources", "lists/partial", "cache/archives/partial"):
            (work / name).mkdir(parents=True)
        (work / "sources" / f"{SUITE}.sources").write_text(
            f"Types: deb\nURIs: {debian_mirror()}\nSuites: {SUITE}\nComponents: main\n"
            f"Signed-By: {KEYRING}\n"
        )
        options = {
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": work / "sources",
            "Dir::State::Lists": work / "lists",
            "Dir::Cache": work / "cache",
        }
        apt = ("apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items()))
        output(*apt, "update")
        output(*apt, "download", *FOLDERS, cwd=work)
        for package in work.glob("*.deb"):
            output("dpkg", "-x", str(package), str(work / "root"))
        for name in FOLDERS.values():
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(work / "root" / "usr" / "include" / name, out / name)
    return [out / name for name in FOLDERS.values()]


def fetch_triton_schema(out: Path) -> Path:
    """Unpacks the schema of Triton's model configurations; returns its file."""
    with tempfile.TemporaryDirectory() as folder:
        output(
            sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, TRITON_CLIENT
        )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(TRITON_SCHEMA, out))


def main() -> None:
    args = parse_args()
    for path in (*fetch(args.out), fetch_triton_schema(args.out)):
        print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
