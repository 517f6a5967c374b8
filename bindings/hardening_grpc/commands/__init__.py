"""Commands: serve, credential, clients."""
