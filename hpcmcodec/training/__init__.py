"""Training and export (torch). `python -m hpcmcodec.training --help`."""
