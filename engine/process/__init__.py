"""The process and its system: signals, threads, files that an operator names, the C library's allocator."""
