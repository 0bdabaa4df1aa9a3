"""The tools for agents over HTTP, at /mcp.

Streamable HTTP of the Model Context Protocol, without sessions. Only the endpoint; the tools are in `app.mcp`. Imported
only if the extra `mcp` is installed and wanted.
"""
