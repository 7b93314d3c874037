"""An emulator of ModelScope's asynchronous image API, to write and test Dags without credit or network.

Start it with ``python -m airflow_provider_modelscope.emulator``, or in a test::

    with Emulator(faults=["submit:429:2"]) as emulator:
        ...  # use a connection with emulator.base_url as host

The modules, in the order data flows: ``__main__`` reads the command line, ``server`` speaks HTTP, ``service``
decides on each response, ``parameters`` checks a submission, ``credit`` knows what it costs, ``faults`` says
which responses fail, ``drawing`` draws the image, and ``lettering`` writes on it. The emulator imports
neither Airflow nor the rest of this package: its knowledge of the API is its own, so that it can disprove the
client.
"""

from airflow_provider_modelscope.emulator.server import Emulator

__all__ = ["Emulator"]
