"""From queue to run: what a message means, which upload it speaks of, and the one run it asks for."""
