from pathlib import Path

import pytest

from app.pipelines.ascend_host import cann_version, device_files, driver_version, npu_smi
from tests.ascend_files import NPU_SMI, lay_out, put_npu_smi


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lay_out(tmp_path, devices=8)
    return tmp_path


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_cann_and_the_driver_are_found_where_they_are_installed(root: Path) -> None:
    assert cann_version({}, root) == "9.1.0"
    assert driver_version(root) == "25.0.rc1"


def test_the_cann_that_is_set_up_goes_before_the_one_that_is_installed(root: Path, tmp_path: Path) -> None:
    home = tmp_path / "other"
    (home / "x86_64-linux").mkdir(parents=True)
    (home / "x86_64-linux" / "ascend_toolkit_install.info").write_text("version=8.5.0\n")
    assert cann_version({"ASCEND_HOME_PATH": str(home)}, root) == "8.5.0"


def test_a_host_without_them_says_so(tmp_path: Path) -> None:
    assert cann_version({}, tmp_path) is None
    assert driver_version(tmp_path) is None


@pytest.mark.parametrize(
    ("visible", "index", "expected"),
    [("", 0, "davinci0"), ("", 3, "davinci3"), ("5", 0, "davinci5"), ("2,6", 1, "davinci6")],
)
def test_the_device_file_is_that_of_the_visible_device(root: Path, visible: str, index: int, expected: str) -> None:
    files = device_files({"ASCEND_RT_VISIBLE_DEVICES": visible}, index, root)
    assert [file.path.name for file in files] == [expected, "davinci_manager", "devmm_svm", "hisi_hdc"]
    assert all(file.exists and file.usable for file in files)


def test_a_device_file_that_is_missing_is_named(root: Path) -> None:
    (root / "dev" / "hisi_hdc").unlink()
    assert [file.path.name for file in device_files({}, 0, root) if not file.exists] == ["hisi_hdc"]


def test_npu_smi_names_each_device_and_its_health(tools: Path) -> None:
    put_npu_smi(tools)
    assert list(npu_smi()) == [("910B4", "OK")]
    put_npu_smi(tools, NPU_SMI.replace("HEALTH", "Alarm "))
    assert list(npu_smi()) == [("910B4", "Alarm")]


def test_an_npu_smi_that_fails_says_why(tools: Path) -> None:
    put_npu_smi(tools, "#!/bin/sh\necho 'dcmi module initialize failed. ret is -8005' >&2\nexit 255\n")
    with pytest.raises(OSError, match=r"npu-smi failed: dcmi module initialize failed"):
        list(npu_smi())


@pytest.mark.usefixtures("tools")
def test_a_host_without_npu_smi_says_so() -> None:
    with pytest.raises(FileNotFoundError, match="not in PATH"):
        list(npu_smi())
