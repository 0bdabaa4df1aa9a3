"""Checks of deploy/kubernetes and deploy/helm against Kubernetes' schemas and against the service."""
