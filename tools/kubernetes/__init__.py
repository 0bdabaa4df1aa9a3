"""Checks of deploy/kubernetes against Kubernetes' schemas and against the service."""
