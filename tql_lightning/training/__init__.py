"""How any algorithm's update runs: loop, optimiser, compile and CUDA graphs, processes, resume, faults."""
