"""What the scripts about the server share: prepared requests, expected answers, clients, and watching a process."""
