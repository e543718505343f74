"""``python -m cryowgen_jax``: the command line where the ``cryowgen`` script is not on the path."""

from cryowgen_jax.cli import main

if __name__ == "__main__":
    main()
