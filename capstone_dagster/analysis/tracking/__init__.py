"""Detections to tracks: who is who from picture to picture, one track for one visit."""
