"""Without it the command behind the published memory figures could stop working unseen."""

from __future__ import annotations

import subprocess
import sys


def test_prints_both_builds(root) -> None:
    command = [sys.executable, "-m", "benchmarks.build_memory", "--studies", "30"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["studies", "dataset", "MB", "peak", "RSS", "MB", "seconds"]
    assert [int(row.split()[0]) for row in rows] == [3, 30]
    assert all(20 < int(row.split()[2]) < 2000 for row in rows)
