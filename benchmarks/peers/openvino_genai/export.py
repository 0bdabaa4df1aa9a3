"""Converts a diffusers model folder to OpenVINO's format: python export.py FROM TO fp32|fp16.

The folder's weights are fp16, and neither format changes a value. optimum-intel does not read fp16 variants, so their
files are linked to names without the variant. Nothing else is loaded: SDXL-Turbo then needs about 17 GB.
"""

import sys
import tempfile
from pathlib import Path

import openvino
import torch
from openvino_tokenizers import convert_tokenizer
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig
from transformers import AutoTokenizer

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def export(source: Path, folder: Path, dtype: str) -> None:
    """Write the folder that `openvino_genai.Text2ImagePipeline` reads."""
    with tempfile.TemporaryDirectory() as plain:
        _link(source, Path(plain))
        main_export(
            plain,
            folder,
            task="text-to-image",
            library_name="diffusers",
            ov_config=OVConfig(dtype=dtype),
            model_loading_kwargs={"torch_dtype": _DTYPES[dtype]},  # else the text encoders are loaded in fp16
        )
    for name in ("tokenizer", "tokenizer_2"):
        model = convert_tokenizer(AutoTokenizer.from_pretrained(source / name), with_detokenizer=False)
        openvino.save_model(model, folder / name / "openvino_tokenizer.xml")


def _link(source: Path, plain: Path) -> None:
    """Link every file of the model, without the name of the variant."""
    for file in source.resolve().rglob("*.*"):
        if file.is_file():
            link = plain / file.relative_to(source.resolve())
            link.parent.mkdir(exist_ok=True)
            link.with_name(file.name.replace(".fp16.", ".")).symlink_to(file)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
