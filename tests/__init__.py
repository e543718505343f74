from importlib.metadata import version

# Most tests compile much and compute little. Programs this small gain nothing from being split for several threads.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):  # the last to have the older emitters, which compile a third faster
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
