"""Kernels are kept between processes, in a bounded number of folders, and loaded only where tensors are computed."""

import subprocess
import sys

from repro.serve.model.kernels.compiled import FOLDERS_KEPT, _make


def test_a_new_version_of_the_kernels_takes_the_oldest_folders_away(tmp_path):
    folders = [tmp_path / f"{version:02}" for version in range(FOLDERS_KEPT + 4)]
    for folder in folders:
        assert _make(folder)
        (folder / "kernel").touch()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folders[-FOLDERS_KEPT - 1 :]}


def test_without_a_folder_to_write_to_kernels_are_not_kept(tmp_path):
    (tmp_path / "file").touch()
    assert not _make(tmp_path / "file" / "folder")


def test_an_engine_of_stamps_imports_no_compiler():
    code = "import repro.serve.engine, repro.run.run, sys; print('numba' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == "False"
