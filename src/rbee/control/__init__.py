"""The control API: a FastAPI application on a Unix socket, one router a resource."""
