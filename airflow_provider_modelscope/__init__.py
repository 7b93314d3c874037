"""Apache Airflow provider for ModelScope's asynchronous image API.

The packages in the order in which data flows. Each may import those below it, never one above it; a test
(``tests/unit/contract/test_imports.py``) holds this rule.

========================  ===============================================================================
``decorators``            ``@task.modelscope_image``: a function that returns a prompt becomes a task
``operators``             submit a generation; or submit, wait and store in one task
``sensors``               wait for a generation
``transfers``             store the images of a generation
``batch``                 many requests in one task: reading them, keeping the account busy, the state
``tasks``                 what these share: deferring, storing, the submission record, assets, lineage
``hooks``                 the API on a worker, with the credentials of an Airflow connection
``triggers``              the waits in the triggerer
``transport``             HTTP: requests on workers, aiohttp in the triggerer; where it may connect
``manifest``              the rows of a batch and what became of them; reads the manifest that a batch leaves
``provenance``            how an image was made: in a sidecar file, and in the image's own metadata
``waiting``               when to poll again, submit again and give up
``images``                images as bytes: validation, conversion, object storage
``metrics``               counters, timers and gauges, through Airflow's own metrics
``xcoms``                 the XComs that tasks leave: the submission and the stored images
``links``                 links on a task's page, and the path of an image in Airflow's UI
``resuming``              what resumes a generation on this Airflow: the version and a setting decide
``protocol``              the API as pure functions: requests, responses, the account, a generation
``validation``            checks of parameters that report every error at once
``exceptions``            every error, by what a retry would do
``redaction``             what may be shown of a text: no secrets, one line, limited length
``json_values``           values of JSON that anyone may have written, read without trust
``compat``                names of Airflow that moved between its versions
========================  ===============================================================================

Beside them: ``gallery`` shows the images of a Dag run in Airflow's UI, ``check`` asks the service whether it
behaves as assumed, ``emulator`` is the service without a token, credit or network, ``pytest_plugin`` is its
fixture for tests of Dags, and ``get_provider_info`` is what Airflow reads first.

ModelScope calls what it runs a *task*. In Airflow that word is taken, so here it is a *generation* and its id
a ``generation_id``. ``protocol`` translates where it reads JSON. All other words are ModelScope's own.
"""

__version__ = "0.1.0"
