"""Layer 3: what is offered. The REST API, jobs and deployments."""
