"""The parts of `gpu_suite.py`; every item of a part runs in a process of its own."""
