"""``python -m cryoformer_dist.cli``, as nodes run it."""

from cryoformer_dist.cli.main import main

main()
