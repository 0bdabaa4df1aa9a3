"""The documentation site: `make site` builds it from the project's Markdown documents."""
