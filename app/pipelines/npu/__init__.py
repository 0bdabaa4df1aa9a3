"""Everything that only an Ascend NPU needs.

torch_npu's options, CANN's error codes, the host's files. Code that CUDA or the CPU share belongs to `app.pipelines`.
"""
