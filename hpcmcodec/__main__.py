"""``python -m hpcmcodec``: the command line, also where the ``hpcm`` script is not on the path."""

from hpcmcodec.cli import main

if __name__ == "__main__":
    main()
