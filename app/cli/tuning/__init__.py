"""The command `tune`: finds the fastest settings for the operator's own device that paint the same pictures.

The parent process imports no torch. Each trial is a process of its own. Measuring fixed settings belongs to `bench`.
"""
