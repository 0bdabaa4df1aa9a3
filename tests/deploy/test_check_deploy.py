"""`make check-deploy` without a renderer: it says what to install. Needs no kubectl or kustomize."""

import sys
from pathlib import Path

import pytest

from tools.kubernetes import __main__ as check_deploy
from tools.kubernetes import kustomize


def test_without_kubectl_and_kustomize_the_check_says_how_to_get_them_and_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_deploy.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Neither kubectl nor kustomize is installed. ")
    assert "Install kubectl" in error


def test_without_helm_s_code_the_check_says_how_to_get_it_and_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "helm_python", None)  # as if it were not installed
    (tmp_path / "ours.yaml").write_text("target: cpu", encoding="utf-8")
    assert check_deploy.main([str(tmp_path / "ours.yaml")]) == 2
    assert "pip install helm-python-sdk" in capsys.readouterr().err


def test_a_kubectl_that_is_too_old_is_said_to_be_and_kustomize_5_is_used_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    old = tmp_path / "kubectl"
    old.write_text("#!/bin/sh\necho 'Client Version: v1.20.2'\n", encoding="utf-8")
    old.chmod(0o755)
    assert check_deploy.main([]) == 2
    assert capsys.readouterr().err.startswith(f"Too old: {old}. ")
    new = tmp_path / "kustomize"
    new.write_text("#!/bin/sh\necho v5.0.1\n", encoding="utf-8")
    new.chmod(0o755)
    assert kustomize.renderer() == ["kustomize", "build"]
