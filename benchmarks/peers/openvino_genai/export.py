"""Converts a diffusers model folder to OpenVINO's format: python export.py FROM TO.

optimum-intel does not read fp16 variants, so the weights are first written as fp32, which changes no value. The
conversion keeps fp32, without quantisation.
"""

import sys
import tempfile
from pathlib import Path

import openvino
import torch
from diffusers import StableDiffusionXLPipeline
from openvino_tokenizers import convert_tokenizer
from optimum.exporters.openvino import main_export
from optimum.intel import OVConfig


def export(source: Path, folder: Path) -> None:
    """Write the folder that `openvino_genai.Text2ImagePipeline` reads."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(source, variant="fp16", torch_dtype=torch.float32)
    with tempfile.TemporaryDirectory() as plain:
        pipeline.save_pretrained(plain)
        main_export(plain, folder, task="text-to-image", library_name="diffusers", ov_config=OVConfig(dtype="fp32"))
    for name in ("tokenizer", "tokenizer_2"):
        model = convert_tokenizer(getattr(pipeline, name), with_detokenizer=False)
        openvino.save_model(model, folder / name / "openvino_tokenizer.xml")


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
