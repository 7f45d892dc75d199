"""The Dagster assets: an upload's frames and detections, and the events derived from them."""
