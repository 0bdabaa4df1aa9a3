"""Logs, metrics and traces.

A module here turns what the core reports into log lines, Prometheus metrics or OpenTelemetry spans. It decides nothing:
without this room the service would answer the same.
"""
