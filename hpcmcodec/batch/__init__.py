"""Many files: one function a file for any engine, and a supervisor of worker processes of this package's own.

    from hpcmcodec import batch

    record = batch.encode_file("photo.jpg", "photo.hpcm", quality=60)  # never raises for a bad picture
    record.status, record.exit_code, record.bytes

`encode_file`, `decode_file` and `verify_file` take paths and give a `Record`, which can be pickled. The model stays
loaded in the process, so that an engine such as Dask or Ray calls them in its workers as they are.

    work.py         the functions of one file
    records.py      what is to be done, and what came of it
    plan.py         inputs and outputs: folders, lists, trees, collisions, shards, what is done already
    manifest.py     records as lines of JSON, and how a run goes on from them
    memory.py       what a picture will take, and what there is
    supervisor.py   worker processes that may die or hang
    worker.py       such a process
    cluster.py      the same work on Dask

Importing this loads neither numpy nor Pillow.
"""

from hpcmcodec.batch.records import Record
from hpcmcodec.batch.work import decode_file, encode_file, verify_file

__all__ = ["Record", "decode_file", "encode_file", "verify_file"]
