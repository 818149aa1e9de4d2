"""The engine on a Ray cluster: replicas of it behind Ray Serve's gRPC ingress."""
