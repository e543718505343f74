QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"  # most tests compile much and compute little
