"""The modes: what a picture can be made from. Each has one module, with its params and its request's fields.

A mode says in its params how a pipeline makes its pictures. The core and the pipelines know no mode. Nothing here knows
the queue, HTTP or torch.
"""
