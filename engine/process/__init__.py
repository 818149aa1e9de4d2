"""The process and its system: signals, threads, addresses, files that somebody names, the C library's allocator."""
