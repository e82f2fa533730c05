"""One page for each algorithm. Read `train_ppo` first; every word on that page is a function to open."""
