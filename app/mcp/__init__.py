"""The tools for agents: text to image, image to image.

The Model Context Protocol's server on the use case. Only what HTTP and stdio share: the endpoint is `app.api.mcp`, the
command `app.cli.mcp`. Imported only if the extra `mcp` is installed and wanted.
"""
