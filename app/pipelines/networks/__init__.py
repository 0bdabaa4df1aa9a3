"""The model's networks in the form that a device runs fastest.

Plain, exact in batches on a CPU, or compiled into graphs; `choice` selects the form. Tensors in, tensors out; prompts,
schedulers and pictures belong to `app.pipelines`.
"""
