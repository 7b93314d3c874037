"""ModelScope from the triggerer: the protocol over aiohttp. It only looks; what is stored passes a worker."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from airflow_provider_modelscope.api import Answer, generation_call, read_generation
from airflow_provider_modelscope.exceptions import ModelScopeError, ServiceUnavailableError

if TYPE_CHECKING:
    import aiohttp

    from airflow_provider_modelscope.account import Account
    from airflow_provider_modelscope.generation import Generation


class Client:
    """One account's looks at its generations, over one aiohttp session."""

    def __init__(self, account: Account, session: aiohttp.ClientSession) -> None:
        self._account = account
        self._session = session

    async def look(self, generation_id: str) -> Generation | ModelScopeError:
        """Return what the service says of a generation now, or the error that stands in the way."""
        import aiohttp

        call = generation_call(self._account, generation_id)
        try:
            async with self._session.request(
                call.method,
                call.url,
                headers=call.headers,
                proxy=self._account.proxy_for(call.url),
                allow_redirects=False,  # the token goes to the API's own origin only
            ) as response:
                answer = Answer(
                    status_code=response.status, headers=response.headers, body=await response.read()
                )
            return read_generation(answer, account=self._account, generation_id=generation_id)
        except ModelScopeError as error:
            return error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # OSError: a timeout is one too
            return ServiceUnavailableError(
                f"{self._account.base_url} gave no answer: {type(error).__name__} {error}".rstrip(),
                generation_id=generation_id,
            )


@asynccontextmanager
async def open_client(account: Account) -> AsyncIterator[Client]:
    """Open a client that is closed at the end, also where the wait is cancelled."""
    import aiohttp

    trust: ssl.SSLContext | bool = account.verify is not False
    if isinstance(account.verify, str):
        trust = ssl.create_default_context(cafile=account.verify)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trust),
        timeout=aiohttp.ClientTimeout(total=account.request_timeout),
    ) as session:
        yield Client(account, session)
