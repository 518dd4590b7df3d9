"""``python -m gradatoms_cli``, for ``torchrun``."""

from gradatoms_cli.main import main

main()
