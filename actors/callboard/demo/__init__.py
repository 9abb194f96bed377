"""`callboard demo`: one batch of audits, run twice under the same SIGKILLs, and judged by a server nobody kills."""
