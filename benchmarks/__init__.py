"""Speed, memory and quality. Each file is a command, `python -m benchmarks.NAME`; no test imports them."""
