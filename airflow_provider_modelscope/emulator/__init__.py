"""An emulator of ModelScope's asynchronous image API, to write and test Dags with no token, quota or network.

Start it with ``python -m airflow_provider_modelscope.emulator``, or inside a test::

    with Emulator(faults=["submit:429:2"]) as emulator:
        ...  # a connection whose host is emulator.base_url

The modules, in the order data flows: ``__main__`` reads the command line, ``server`` carries HTTP,
``service`` decides what is answered, ``parameters`` checks what a submission asks for, ``faults`` says which
answers go wrong, and ``picture`` draws the image. Nothing here imports Airflow or the rest of this package:
what the emulator knows of the API it knows on its own, so that it can contradict the client.
"""

from airflow_provider_modelscope.emulator.server import Emulator

__all__ = ["Emulator"]
