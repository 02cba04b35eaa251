"""The diffusion head of §2.1: its forward process, its network and its solvers."""
