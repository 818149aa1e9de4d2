"""The process and its system: signals, threads, addresses, files that an operator names, the C library's allocator."""
