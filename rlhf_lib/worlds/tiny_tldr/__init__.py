"""TinyTLDR: short posts, imperfect reference summaries, and a gold score that plays the human."""
