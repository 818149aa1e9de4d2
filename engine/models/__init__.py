"""The models that are served, each with its queues, and how one takes the place of another; no protobuf."""
