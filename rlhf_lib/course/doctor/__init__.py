"""The doctor: reads the log of a run and says which classes of bugs fit, with the evidence."""
