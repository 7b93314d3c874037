"""Apache Airflow provider for ModelScope's asynchronous image API.

A reader meets the modules in the order data flows:

=====================  ==========================================================================
``request``            what is asked for, checked before anything is sent
``generation``         what ModelScope says of one generation
``account``            where the service is, and who asks: an Airflow connection, read once
``api``                the protocol: what to send, and what an answer means
``waiting``            when to poll again or to submit again, and when to give up
``image``              one picture: its facts, and its conversion to another format
``object_storage``     where images are read from and stored
``hooks``              the protocol, and the download of an image, on a worker, over requests
``provenance``         how an image was made: told beside it, and inside it
``xmp``                metadata inside a picture's file, without another byte changed
``deferral``           a task's waits: on its worker, in the triggerer, on a worker again
``landing``            a finished generation becomes objects in object storage
``outlets``            what assets are told of stored images
``lineage``            what OpenLineage is told of them
``metrics``            what is counted and timed, through Airflow's own metrics
``triggers``           the protocol in the triggerer, over aiohttp
``upstream``           what a submit task recorded, for the tasks downstream of it
``durable``            what a task remembers of its submission across its tries
``tasks``              what every task of ours has, and what those that store images do alike
``operators``          submit a generation; or submit, wait and store in one task
``sensors``            wait for a generation
``transfers``          store a generation's images
``decorators``         the one task, of a function that returns a prompt
``links``              where a task's images and its model can be looked at
``gallery``            the images of a Dag run in Airflow's own UI
``mistakes``           how mistakes in what was given are found and told
``exceptions``         every error, by what a retry would do
``emulator``           the service without a token, a quota or a network
=====================  ==========================================================================

ModelScope calls what it runs a *task*. That is Airflow's word, so here it is a *generation* and its id
a ``generation_id``; the words are exchanged in ``api`` and ``generation``, where JSON is read, and
nowhere else. Every other word of the API keeps ModelScope's spelling.
"""

__version__ = "0.1.0"
