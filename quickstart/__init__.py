"""The whole road once, in minutes: faces, training, export, a server, and a client that edits faces over gRPC."""
