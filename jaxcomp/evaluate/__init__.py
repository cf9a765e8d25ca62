"""What users care about, measured: bytes on disk, detection accuracy, and their trade-off."""
