"""What runs the algorithms: models, sampling, optimisation, metrics. Nothing here knows which algorithm runs."""
