"""What is measured: each module runs inside a fresh child process and returns numbers."""
