"""The server: verified bundles behind gRPC, with dynamic batching and without torch."""
