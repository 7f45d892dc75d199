"""Log lines: their fields, their redaction, their way to CloudWatch, and reading a video's log back."""
