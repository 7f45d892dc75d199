"""A finished pass, for tests of what is made of its numbers."""

from capstone_dagster.analysis import DetectionSummary

# One second at 25 frames a second, every fifth analysed, with one detection each.
SUMMARY = DetectionSummary(
    frames_decoded=25,
    frames_analyzed=5,
    detections=5,
    tracks=1,
    duration_ms=1000,
    width=640,
    height=360,
    fps=25.0,
    codec="h264",
    creation_time=None,
    first_pts_ms=0,
    last_pts_ms=800,
    sample_interval_ms=200.0,
    longest_interval_ms=200.0,
    seconds=1.5,
    decode_seconds=0.5,
    inference_seconds=1.0,
    model_load_seconds=1.5,
    device="cuda:0",
    backend="torch",
    cpu_fallback=None,
    batch_size=16,
    out_of_memory_backoffs=0,
    gpu_memory_used_mb=None,
    gpu_memory_total_mb=None,
    gpu_utilization_percent=None,
    decoder="software",
    model="yolov8x",
    model_sha256="ab" * 32,
    peak_rss_mb=500.0,
    truncated=False,
    decode_errors=0,
)
