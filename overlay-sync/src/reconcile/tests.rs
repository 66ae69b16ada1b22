//! The reconciler on a kernel in memory with made-up time.
