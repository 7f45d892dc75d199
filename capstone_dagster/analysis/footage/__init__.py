"""Video files as frames: what is shown when, and which frames are worth a look."""
