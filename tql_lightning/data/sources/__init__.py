"""One file per dataset format; each has a function that returns a `TransitionDataset`."""
