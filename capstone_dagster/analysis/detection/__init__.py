"""Pictures to detections: models, where they run, and what their outputs mean."""
