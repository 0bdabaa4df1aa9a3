"""Writes a model in OpenVINO's format with int8 weights: python quantize.py FROM TO.

Weight-only quantisation as optimum-intel does it by default: 8 bits, asymmetric, one scale for each output channel.
"""

import shutil
import sys
from pathlib import Path

from optimum.intel import OVDiffusionPipeline, OVWeightQuantizationConfig


def quantize(source: Path, folder: Path) -> None:
    """Write the folder that `openvino_genai.Text2ImagePipeline` reads."""
    config = OVWeightQuantizationConfig(bits=8)
    pipeline = OVDiffusionPipeline.from_pretrained(source, quantization_config=config, compile=False)
    pipeline.save_pretrained(folder)
    for name in ("tokenizer", "tokenizer_2"):  # OpenVINO's tokenizers, which optimum-intel does not load
        shutil.copytree(source / name, folder / name, dirs_exist_ok=True)


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]))
