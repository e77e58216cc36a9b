"""Training and export, which need torch. `python -m hpcmcodec.training --help` lists the commands."""
