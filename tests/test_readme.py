"""The README tells the truth: its links lead somewhere, its list holds every file, its snippet runs."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_lead_to_files():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), f"README.md links to {link}, which does not exist"


def test_every_file_of_the_engine_has_one_row_and_the_rows_are_numbered():
    rows = re.findall(r"^\| (\d+) \| \[[^]]+\]\(([^)]+)\)", README, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "tinyllm").rglob("*.py") if p.name != "__init__.py"}
    assert sorted(link for _, link in rows) == sorted(files)


def test_every_kernel_file_stands_in_the_kernels_reading_order():
    order = (ROOT / "kernels/__init__.py").read_text(encoding="utf-8").split('"""')[1]
    assert {p.name for p in (ROOT / "kernels").glob("*.py")} - {"__init__.py"} == set(re.findall(r"\w+\.py", order))


def test_every_example_is_listed():
    for path in (ROOT / "examples").glob("*.py"):
        assert path.name in README, f"examples/{path.name} is not in README.md"


def test_the_snippet_runs(tmp_path):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[\[[\d\s]+\]\]\s*", done.stdout)
