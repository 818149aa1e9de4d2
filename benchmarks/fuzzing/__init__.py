"""What the fuzzer is made of: bad requests, bad files, bad connections, and what a clean answer to them is."""
