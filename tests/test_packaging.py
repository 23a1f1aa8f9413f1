"""What is built installs into an empty environment, and holds what it should."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import divjax

ROOT = Path(__file__).parent.parent

USE = """
import jax, divjax
from divjax import fdiv, flows, inference, kernels, losses, ot, problems, ratio
x, y = jax.random.normal(jax.random.key(0), (2, 50, 2))
assert ot.sinkhorn(x, y + 1, epsilon=0.1).converged
print(divjax.__version__, divjax.__file__)
"""


def run(*command, cwd):
    # A path of the caller's own would hide what is installed.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_wheel_and_an_archive_install_into_an_empty_environment(tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), cwd=ROOT)
    (wheel,), (archive,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"divjax"}

    run(sys.executable, "-m", "venv", "environment", cwd=tmp_path)
    python = str(tmp_path / "environment" / "bin" / "python")
    for package, options in ((wheel, ()), (archive, ("--no-deps", "--force-reinstall"))):
        run(python, "-m", "pip", "install", "--quiet", *options, str(package), cwd=tmp_path)
        version, path = run(python, "-c", USE, cwd=tmp_path).split()[-2:]
        assert version == divjax.__version__
        assert path.startswith(str(tmp_path))
