"""Deletion: of one video with every trace, on demand (`erasure`), and of old data (`retention`)."""
