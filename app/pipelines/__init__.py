"""The seam (`base`) and the code behind it: the only code that imports torch, torch_npu and diffusers.

Loading the model, opening the device, one batched call, and the translation of device errors. Nothing here knows the
queue, HTTP or files of pictures. `fake` stands in for all of it.
"""
