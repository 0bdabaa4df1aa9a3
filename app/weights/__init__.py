"""Where weights come from: the demo model, a folder, or a hub.

Hubs are openMind Hub and the Hugging Face Hub. A source becomes a verified local folder. Nothing here imports torch
or loads a tensor.
"""
