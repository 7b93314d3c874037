"""Images as bytes: checked, converted, read from and written to object storage.

The modules in the order data flows: ``formats`` says what is accepted; ``parts``, ``blocks`` and ``png`` read
a file without decoding it whole, and ``check`` decodes it, so that an ``image`` is one that was checked.
``conversion`` encodes it in another format, with its ``metadata``. ``object_storage`` reads and writes,
``read_back`` checks what was written, ``storage_errors`` says what went wrong, and ``preflight`` asks a store
before anything is paid for. ``sources`` are the images of a request, ``thumbnail`` is for the gallery.
"""
