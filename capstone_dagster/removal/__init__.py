"""What goes, and how: one video's every trace on demand (`erasure`), and what is old (`retention`)."""
