"""SAM 2 on the public `sam2` package: loading, fast image and video paths, taps, and a small SAM 2 of our own."""
