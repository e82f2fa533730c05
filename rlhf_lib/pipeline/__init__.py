"""The whole of RLHF as five stages that read and write one folder."""
