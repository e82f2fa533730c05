"""The notebooks as files: running them in a fixed environment, generated cells, exercises built from solutions."""
