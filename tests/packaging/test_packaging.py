"""Wheel and source distribution are built, and the wheel works in an environment that has nothing else of ours."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dispatcher

ROOT = Path(__file__).parents[2]
UV = str(ROOT / ".uv" / "bin" / "uv")
BUILD = [UV, "build", "--quiet", "--offline", "--no-build-isolation", "--python", sys.executable]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, made without the network from what git would clone."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([*BUILD, "--out-dir", str(folder), str(ROOT)], check=True, timeout=100)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment into which the wheel was installed, beside its pinned requirements."""
    environment = tmp_path_factory.mktemp("installed") / "venv"
    (wheel,) = built.glob("*.whl")
    quiet = {**os.environ, "VIRTUAL_ENV": str(environment), "UV_LINK_MODE": "copy"}
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True, timeout=100)
    for what in (["--require-hashes", "-r", str(ROOT / "requirements/runtime.txt")], ["--no-deps", str(wheel)]):
        subprocess.run([UV, "pip", "install", "--quiet", *what], env=quiet, check=True, timeout=100)
    return environment / "bin"


def run(program: Path, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [program, *arguments], cwd=cwd, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60
    )


def test_pip_install_gives_a_working_dispatcher_of_this_version(installed: Path, tmp_path: Path) -> None:
    said = run(installed / "dispatcher", "--version", cwd=tmp_path)
    assert said.stdout == f"dispatcher, version {dispatcher.__version__}\n"
    played = run(installed / "dispatcher", "simulate", "recorded", "--minutes", "1", cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    assert "projected-wait" in played.stdout
    started = run(installed / "dispatcher", "run", cwd=tmp_path)
    assert (started.returncode, "DISPATCHER_MASTER_QUEUE_URL: is required" in started.stderr) == (2, True)


def test_extras_that_are_not_there_are_asked_for_by_name(installed: Path, tmp_path: Path) -> None:
    demo = run(installed / "dispatcher", "demo", cwd=tmp_path)
    assert (demo.returncode, "pip install 'regional-dispatcher[demo]'" in demo.stderr) == (1, True)
    plot = run(installed / "dispatcher", "simulate", "--minutes", "1", "--plot", "x.svg", cwd=tmp_path)
    assert (plot.returncode, "pip install 'regional-dispatcher[plot]'" in plot.stderr) == (1, True)


def test_everything_that_the_program_reads_is_in_the_wheel_and_nothing_of_the_tests(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert f"-{dispatcher.__version__}-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    here = {str(path.relative_to(ROOT)) for path in (ROOT / "dispatcher").rglob("*") if path.is_file()}
    wanted = {name for name in here if "__pycache__" not in name}
    assert wanted <= names
    assert {name.split("/")[0] for name in names} == {"dispatcher", wheel.name.rsplit("-py3", 1)[0] + ".dist-info"}


def test_the_source_distribution_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    subprocess.run([*BUILD, "--wheel", "--out-dir", str(tmp_path / "again"), str(unpacked)], check=True, timeout=100)
    (again,), (wheel,) = (tmp_path / "again").glob("*.whl"), built.glob("*.whl")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()
