"""What is installed is what stands in the repository."""
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_file_and_no_top_level_kernels(tmp_path):
    """kernels/ must arrive as tinyllm.kernels: a package called "kernels" exists and others import it."""
    code = ("import sys, os; os.chdir(sys.argv[1]); from setuptools import build_meta; "
            "print(build_meta.build_wheel(sys.argv[2]))")
    source = tmp_path / "source"
    for name in ("tinyllm", "kernels"):
        for path in (ROOT / name).rglob("*.py"):
            target = source / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tinyllm").rglob("*.py")}
    expected |= {"tinyllm/" + path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").rglob("*.py")}
    assert packed == expected
