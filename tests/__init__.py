from importlib.metadata import version

QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"  # most tests compile much and compute little
if version("jaxlib").startswith("0.10."):  # the last to have the older emitters, which compile a third faster
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
