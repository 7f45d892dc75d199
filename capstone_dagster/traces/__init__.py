"""One trace a video: from its upload through queue, launch and steps to the database."""
