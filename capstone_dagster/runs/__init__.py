"""Retries, cancels and prioritises runs, for the system and for operators; and says what waits, and why."""
