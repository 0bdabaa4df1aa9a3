import os
from pathlib import Path

import pytest

from app.pipelines.npu.host import cann_version, device_files, device_number, driver_version, npu_smi
from tests.support.ascend_files import NPU_SMI, lay_out, put_npu_smi


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
    [("", 0, 0), ("", 3, 3), ("5", 0, 5), ("2,6", 1, 6), ("²", 0, 0), ("9" * 5000, 0, 9999)],
)
def test_the_device_is_the_one_that_cann_is_told_to_use(root: Path, visible: str, index: int, expected: int) -> None:
    assert device_number({"ASCEND_RT_VISIBLE_DEVICES": visible}, index, root) == expected


def test_in_a_container_devices_are_counted_from_0_and_keep_the_host_s_numbers(tmp_path: Path) -> None:
    lay_out(tmp_path, devices=0)
    for number in (10, 3):
        (tmp_path / "dev" / f"davinci{number}").touch()
    assert [device_number({}, index, tmp_path) for index in (0, 1)] == [3, 10]
    assert device_number({"ASCEND_RT_VISIBLE_DEVICES": "1"}, 0, tmp_path) == 10


def test_a_device_has_a_file_of_its_own_and_those_that_all_share(root: Path) -> None:
    files = device_files(3, root)
    assert [file.name for file in files] == ["davinci3", "davinci_manager", "devmm_svm", "hisi_hdc"]
    assert all(file.exists() and os.access(file, os.R_OK | os.W_OK) for file in files)


def test_a_device_file_that_is_missing_is_named(root: Path) -> None:
    (root / "dev" / "hisi_hdc").unlink()
    assert [file.name for file in device_files(0, root) if not file.exists()] == ["hisi_hdc"]


def test_npu_smi_names_each_device_and_its_health(tools: Path) -> None:
    put_npu_smi(tools)
    assert list(npu_smi()) == [(0, "910B4", "OK")]
    put_npu_smi(tools, NPU_SMI.replace("HEALTH", "Alarm "))
    assert list(npu_smi()) == [(0, "910B4", "Alarm")]


def test_an_npu_smi_that_fails_says_why(tools: Path) -> None:
    put_npu_smi(tools, "#!/bin/sh\necho 'dcmi module initialize failed. ret is -8005' >&2\nexit 255\n")
    with pytest.raises(OSError, match=r"npu-smi failed: dcmi module initialize failed"):
        list(npu_smi())


def test_an_npu_smi_that_writes_what_is_no_text_is_read_all_the_same(tools: Path) -> None:
    put_npu_smi(tools, "#!/bin/sh\nprintf '\\377\\n| 4     910B4               | OK            |\\n'\n")
    assert list(npu_smi()) == [(4, "910B4", "OK")]


def test_an_npu_smi_that_hangs_is_not_waited_for_for_ever(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.pipelines.npu.host._NPU_SMI_TIMEOUT_S", 0.1)
    put_npu_smi(tools, "#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.1 s"):
        list(npu_smi())


def test_a_host_without_npu_smi_says_so(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(FileNotFoundError, match="not in PATH"):
        list(npu_smi())
